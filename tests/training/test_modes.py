"""What is trained: low-rank changes, new domains; starts from Sana; memory and time savings that change nothing."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from jodi_core.domains import JointRoles
from jodi_core.files import WeightsError
from jodi_core.models.jodi import JodiTransformer
from jodi_core.weights import load_transformer, write_model
from training import run
from training.adapters import add_adapters, adapters_of, merge_adapters
from training.config import AdapterConfig, SpeedConfig, StartConfig, TrainConfig
from training.config_file import build
from training.extend import extend
from training.model import make_model
from training.parallel import Processes
from training.sana import load_sana

from toy_run import MODEL, FakeText, ToySource, toy_config, use_toy_parts

pytestmark = [pytest.mark.filterwarnings("ignore:Mismatch dtype"),
              pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]


@pytest.fixture(autouse=True)
def toy_parts(monkeypatch):
    use_toy_parts(monkeypatch.setattr)


def fresh_model() -> JodiTransformer:
    torch.manual_seed(0)
    model = JodiTransformer(MODEL)
    model.init_weights()
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A transformer file to start from."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    write_model(path, "transformer", MODEL, fresh_model().state_dict())
    return path


def velocity(model, roles=None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    roles = roles or JointRoles.of(model.config.domains, generate=model.config.domains[:3])
    x = torch.randn(2, 4, len(roles.active), 4, 4, generator=generator)
    y = torch.randn(2, 5, 8, generator=generator)
    with torch.no_grad():
        return model.velocity(x, torch.tensor([300.0, 700.0]), model.prepare(y, None, roles, x))


def mode_config(folder, base, mode, **changes):
    start = replace(StartConfig(weights=str(base)), **changes.pop("start", {}))
    return toy_config(folder, mode=mode, start=start, adapter=AdapterConfig(rank=4, alpha=8.0), **changes)


# ---- LoRA and DoRA ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("magnitudes", [False, True], ids=["lora", "dora"])
def test_an_adapter_starts_without_effect_and_merges_exactly(magnitudes):
    model, plain = fresh_model(), velocity(fresh_model())
    add_adapters(model, AdapterConfig(rank=4, alpha=8.0), magnitudes)
    torch.testing.assert_close(velocity(model), plain, atol=1e-5, rtol=1e-5)
    trained = {name.rpartition(".")[2] for name, param in model.named_parameters() if param.requires_grad}
    assert trained == {"down", "up"} | ({"magnitude"} if magnitudes else set())
    assert len(adapters_of(model)) == 2 * 7 and not any("depth_conv" in name for name in adapters_of(model))
    with torch.no_grad():
        for adapter in adapters_of(model).values():
            adapter.up.normal_(std=0.1)
            if magnitudes:
                adapter.magnitude.mul_(1.1)
    changed = velocity(model)
    merge_adapters(model)
    assert not adapters_of(model) and set(model.state_dict()) == set(fresh_model().state_dict())
    assert (changed - plain).abs().max() > 1e-2
    torch.testing.assert_close(velocity(model), changed, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["lora", "dora"])
def test_a_trained_adapter_is_a_file_of_its_own(tmp_path, base, mode):
    config = mode_config(tmp_path / "run", base, mode, steps=4)
    run.train(config, Processes())
    run.export(config, tmp_path / "change.safetensors")
    run.export(config, tmp_path / "merged.safetensors", merged=True)
    tensors = load_file(tmp_path / "change.safetensors")
    prefix = "diffusion_model.blocks.1.mlp.point_conv.conv."
    assert tensors[prefix + "lora_A.weight"].shape[0] == 4 and tensors[prefix + "alpha"] == 8.0
    assert (prefix + "dora_scale" in tensors) == (mode == "dora")
    merged, before = load_transformer(tmp_path / "merged.safetensors", device="cpu", dtype=torch.float32), fresh_model()
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.inverted_conv.conv.weight"):
        assert not torch.equal(merged.get_parameter(name), before.get_parameter(name))
    for name in ("x_embedders.0.proj.weight", "blocks.0.mlp.depth_conv.conv.weight"):
        torch.testing.assert_close(merged.get_parameter(name), before.get_parameter(name), atol=1e-3, rtol=1e-3)


def test_averaged_and_raw_weights_differ(tmp_path, base):
    config = mode_config(tmp_path / "run", base, "lora", steps=4)
    run.train(config, Processes())
    run.export(config, tmp_path / "a.safetensors")
    run.export(config, tmp_path / "b.safetensors", raw=True)
    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_target_that_names_nothing():
    with pytest.raises(ValueError, match=r"no layer matches blocks.\*.atn.\*"):
        add_adapters(fresh_model(), AdapterConfig(targets=("blocks.*.atn.*",)), False)


# ---- new domains ------------------------------------------------------------------------------------------------

def test_a_new_domain_starts_as_a_copy():
    model = extend(fresh_model(), {"heat": "depth", "glow": "edge"})
    assert model.config.domains == ("image", "depth", "edge", "heat", "glow")
    assert torch.equal(model.x_embedders[3].proj.weight, model.x_embedders[1].proj.weight)
    assert torch.equal(model.final_layers[4].linear.weight, model.final_layers[2].linear.weight)
    torch.testing.assert_close(velocity(model), velocity(fresh_model()))
    for new, message in (({"depth": "edge"}, "already has a domain depth"), ({"heat": "hue"}, "starts from hue")):
        with pytest.raises(ValueError, match=message):
            extend(fresh_model(), new)


class HeatSource(ToySource):
    """Toy samples with a fourth domain."""

    def item(self, index, generator):
        item = super().item(index, generator)
        heat = item.latents_CLHW[:, 1:2].roll(1, 0)
        return replace(item, latents_CLHW=torch.cat([item.latents_CLHW, heat], 1),
                       present_L=torch.cat([item.present_L, torch.tensor([True])]))


def test_only_the_new_domain_is_trained(tmp_path, base, monkeypatch):
    monkeypatch.setattr(run, "open_source", lambda *arguments: HeatSource())
    config = mode_config(tmp_path / "run", base, "domains", steps=6, start={"extend": {"heat": "depth"}})
    run.train(config, Processes())
    run.export(config, tmp_path / "heat.safetensors", raw=True)
    after, before = load_transformer(tmp_path / "heat.safetensors", device="cpu"), make_model(config, FakeText())
    assert after.config.domains == ("image", "depth", "edge", "heat")
    changed = {name for name, param in after.named_parameters()
               if not torch.allclose(param.float(), before.get_parameter(name), atol=2e-3)}
    assert changed and all(name.startswith(("x_embedders.3", "final_layers.3", "domain_embedding")) for name in changed)
    torch.testing.assert_close(after.domain_embedding.weight[:3].float(), before.domain_embedding.weight[:3], atol=1e-4,
                               rtol=1e-3)
    assert not torch.allclose(after.domain_embedding.weight[3].float(), before.domain_embedding.weight[3], atol=1e-3)


# ---- from Sana --------------------------------------------------------------------------------------------------

def sana_tensors(model) -> dict[str, torch.Tensor]:
    """What the text-to-image model would be called: the trunk, one patch embedding, one final layer."""
    own = model.state_dict()
    tensors = {name: value for name, value in own.items() if not name.startswith(
        ("x_embedders.", "final_layers.", "role_", "domain_embedding"))}
    for part in ("weight", "bias"):
        tensors[f"x_embedder.proj.{part}"] = own[f"x_embedders.1.proj.{part}"]
        tensors[f"final_layer.linear.{part}"] = own[f"final_layers.2.linear.{part}"]
    return tensors | {"final_layer.scale_shift_table": own["final_layers.2.scale_shift_table"],
                      "pos_embed": torch.zeros(1, 16, 32)}


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_start_from_sana(tmp_path, suffix):
    torch.manual_seed(5)
    sana = JodiTransformer(MODEL)
    sana.init_weights()
    path = tmp_path / f"sana.{suffix}"
    tensors = {name: value.clone() for name, value in sana_tensors(sana).items()}
    save_file(tensors, path) if suffix == "safetensors" else torch.save({"state_dict": tensors}, path)
    config = toy_config(tmp_path / "run", start=StartConfig(kind="sana", weights=str(path)))
    model, fresh = make_model(config, FakeText()), make_model(toy_config(tmp_path), FakeText())
    for place in range(3):
        assert torch.equal(model.x_embedders[place].proj.weight, sana.x_embedders[1].proj.weight)
    assert torch.equal(model.final_layers[0].linear.weight, sana.final_layers[2].linear.weight)
    assert torch.equal(model.blocks[1].attn.qkv.weight, sana.blocks[1].attn.qkv.weight)
    for name in ("final_layers.1.linear.weight", "role_embedder.weight", "domain_embedding.weight"):
        assert torch.equal(model.get_parameter(name), fresh.get_parameter(name)), name
    assert torch.equal(model.y_embedder.y_embedding, FakeText().encode_negative([""], 6)[0])


def test_what_is_no_sana_checkpoint(tmp_path, base):
    with pytest.raises(WeightsError, match="no Sana checkpoint"):
        load_sana(fresh_model(), base)
    tensors = {name: value.clone() for name, value in sana_tensors(fresh_model()).items()}
    tensors.pop("blocks.0.attn.proj.bias")
    save_file(tensors, tmp_path / "cut.safetensors")
    with pytest.raises(WeightsError, match="1 missing: blocks.0.attn.proj.bias"):
        load_sana(fresh_model(), tmp_path / "cut.safetensors")


# ---- configuration ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("values, message", [
    ({"mode": "domains"}, "start.extend is empty"),
    ({"mode": "lora", "start": {"extend": {"heat": "depth"}}}, "start.extend adds new ones"),
    ({"mode": "lora", "start": {"kind": "nothing"}}, "needs weights to start from"),
    ({"mode": "dora", "optim": {"name": "muon"}}, "use adamw"),
    ({"mode": "domains", "start": {"extend": {"a": "depth"}}, "optim": {"weight_decay": 0.1}}, "weight_decay = 0, not"),
    ({"adapter": {"rank": 0}}, "adapter.rank is 0"),
])
def test_contradictions_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        build(TrainConfig, values)


# ---- savings ----------------------------------------------------------------------------------------------------

def test_recomputed_blocks_train_alike(tmp_path):
    results = []
    for number, recompute in enumerate((0, 1, 2)):
        speed = SpeedConfig(device="cpu", precision="float32", recompute=recompute)
        config = toy_config(tmp_path / str(number), steps=3, speed=speed)
        run.train(config, Processes())
        model = make_model(config, FakeText())
        run.load_weights(config, model, averaged=False)
        results.append(model.state_dict())
    for other in results[1:]:
        assert all(torch.equal(other[name], value) for name, value in results[0].items())
