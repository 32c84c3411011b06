"""JointNet in the trainer: what samples are asked, runs that are killed and shared out, starts, modes, the file."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from jodi_core.domains import JointRoles
from jodi_core.files import WeightsError
from jodi_core.jointnet.config import JointNetConfig
from jodi_core.jointnet.loading import load_jointnet
from jodi_core.jointnet.schedule import noise_levels
from training import run
from training.card import card
from training.config import LossConfig, StartConfig, TrainConfig
from training.config_file import build, load_config
from training.data import MicroBatches
from training.families import FAMILY
from training.jointnet_losses import draw_question, make_loss
from training.jointnet_model import make_model
from training.order import BatchOrder
from training.parallel import Processes

from toy_run import FakeText, ToySource, lines, stored, toy_config

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"
TINY = {"kind": "nothing", "autoencoder": "tiny", "text_encoder": "tiny"}
TASKS = ("joint", "perceive", "control", "inpaint")
MODEL = JointNetConfig(channels=(8, 8), attention=(False, True), heads=(2, 2), layers=1, text_width=8, norm_groups=4,
                       sample_size=4, in_channels=4, latent_scale=1.0, masked_input=True)
NOTHING = StartConfig(**TINY)
BOTH = JointRoles.of(MODEL.domains, generate=MODEL.domains)


class Pairs(ToySource):
    """The first two domains of the toy samples."""

    def item(self, index, generator):
        item = super().item(index, generator)
        return replace(item, latents_CLHW=item.latents_CLHW[:, :2], present_L=item.present_L[:2])


class FakeParts(FakeText):
    autoencoder = SimpleNamespace(config=SimpleNamespace(latent_channels=4, factor=8, scaling_factor=1.0))


@pytest.fixture(autouse=True)
def toy_parts(monkeypatch):
    monkeypatch.setattr(run, "open_source", lambda *arguments: Pairs())
    monkeypatch.setattr(run, "open_encoders", lambda config, device: FakeParts())


def pair_config(folder, **changes) -> TrainConfig:
    settings = {"start": NOTHING, "model": MODEL, "tasks": TASKS} | changes
    return toy_config(folder, family="jointnet", **settings)


def fresh(**changes):
    return make_model(pair_config("unused", **changes), FakeParts())


def stirred(model):
    """With an exchange that is not zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if ".jointnet_" in name:
                param.normal_(std=0.1, generator=generator)
    return model


def noise_of(model, roles=BOTH, known=None):
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(shape, generator=generator) for shape in ((2, 4, 2, 4, 4), (2, 5, 8)))
    with torch.no_grad():
        return model.eval()(roles.keep_active(x), torch.tensor([300]), model.read_text(text), roles, known)


def micro_batches(config, world=1, rank=0):
    source = Pairs()
    order = BatchOrder(source.bins_N, config.batch, config.steps, config.seed)
    return MicroBatches(source, order, config, MODEL, Processes(rank, world))


# ---- what samples are asked -------------------------------------------------------------------------------------

def questions(task, count=200, **loss):
    present, config = torch.ones(2, dtype=torch.bool), LossConfig(times="uniform", **loss)
    return [draw_question(MODEL, config, present, (4, 2, 4, 6), task, torch.Generator().manual_seed(seed))
            for seed in range(count)]


def test_tasks_say_what_is_known():
    for task, known in (("joint", (1, 1)), ("perceive", (0, 1)), ("control", (1, 0))):
        for question in questions(task, 4):
            assert tuple(question.mask_LHW.mean(dim=(1, 2)).tolist()) == known
            assert question.roles.condition_slots == tuple(place for place in (0, 1) if not known[place])


def test_masks_are_rectangles_or_what_is_around_them():
    masks = torch.stack([question.mask_LHW for question in questions("inpaint")])
    shares = masks.mean(dim=(2, 3))
    assert set(masks.unique().tolist()) == {0.0, 1.0} and shares.min() > 0
    assert 0.3 < shares.mean() < 0.8 and (shares < 1).float().mean() > 0.7
    same = (masks[:, 0] == masks[:, 1]).flatten(1).all(dim=1).float().mean()
    assert 0.4 < same < 0.75


def test_times_and_dropped_captions():
    found = questions("joint", 400, caption_dropout=0.25)
    times = torch.tensor([question.time for question in found])
    assert times.min() < 20 and times.max() > 980 and 450 < times.float().mean() < 550
    assert all(question.sigma == noise_levels()[question.time] for question in found)
    assert 0.18 < sum(question.dropped for question in found) / 400 < 0.32


# ---- the loss ---------------------------------------------------------------------------------------------------

def test_the_loss_is_of_the_noise_where_latents_are_generated():
    """By hand for one sample, and the same beside others with longer texts."""
    model, data = stirred(fresh()), micro_batches(pair_config("unused", in_turn=False, steps=40))
    batch, asked = next(found for found in map(data.__getitem__, range(40)) if found[1][0].task == "inpaint"
                        and found[1][0].mask_LHW.mean() < 0.9 and found[1][1].task != "inpaint")
    question = replace(asked[0], dropped=False)
    a = 1 / (1 + question.sigma ** 2)
    clean, mask = batch.latents_BCLHW[:1], question.mask_LHW[None, None]
    noisy = a ** 0.5 * clean + (1 - a) ** 0.5 * question.noise_CLHW
    known = torch.cat([mask, clean * (1 - mask)], 1)
    text = model.read_text(batch.text_BMC[:1, batch.mask_BM[0]])
    found = model(noisy.float(), torch.tensor([question.time]), text, BOTH, known)
    for domain, name in enumerate(MODEL.domains):
        error = (found - question.noise_CLHW)[0, :, domain].square()[:, question.mask_LHW[domain] > 0].mean()
        for weighting, factor in (("noise", 1), ("velocity", 1 + question.sigma ** 2)):
            weighted = make_loss(model, LossConfig(weighting=weighting), torch.ones(2), FakeParts())
            torch.testing.assert_close(weighted(batch, [question, asked[1]])[1][0][name], error.detach() * factor)


def test_a_dropped_caption_is_the_empty_one():
    loss = make_loss(fresh(), LossConfig(), torch.ones(2), FakeParts())
    batch, asked = micro_batches(pair_config("unused"))[0]
    text, mask = loss.captions(batch, [replace(asked[0], dropped=True), replace(asked[1], dropped=False)], [0, 1])
    assert torch.equal(text[0][mask[0]], FakeText().encode_negative([""])[0])
    assert torch.equal(text[1][mask[1]], batch.text_BMC[1][batch.mask_BM[1]])


def test_gradients_reach_all_parts():
    model = stirred(fresh())
    loss = make_loss(model, LossConfig(), torch.ones(2), FakeParts())
    for number in range(len(TASKS)):
        loss(*micro_batches(pair_config("unused"))[number])[0].backward()
    still = [name for name, param in model.named_parameters() if not param.grad.abs().max() > 0]
    assert not still
    model.zero_grad()    # a given picture: its decoder is not evaluated, and yet its gradient is there
    batch, asked = micro_batches(pair_config("unused", tasks=("perceive",)))[0]
    loss(batch, asked)[0].backward()
    assert not model.unet.conv_out.weight.grad.any() and model.jointnet.conv_out.weight.grad.any()


# ---- runs -------------------------------------------------------------------------------------------------------

class Killed(BaseException):
    pass


def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path, monkeypatch):
    run.train(pair_config(tmp_path / "whole", steps=4), Processes())
    after_step = run.Watcher.after_step

    def die(watcher, state, *rest):
        after_step(watcher, state, *rest)
        if state.step == 3:
            raise Killed
    monkeypatch.setattr(run.Watcher, "after_step", die)
    with pytest.raises(Killed):
        run.train(pair_config(tmp_path / "killed", steps=4), Processes())
    monkeypatch.setattr(run.Watcher, "after_step", after_step)
    run.train(pair_config(tmp_path / "killed", steps=4), Processes())
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    one, other = stored(tmp_path / "whole"), stored(tmp_path / "killed")
    assert one.keys() == other.keys() and len(one) > 300
    assert all(torch.equal(value, other[name]) for name, value in one.items() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("in_turn", [True, False])
def test_two_processes_have_the_gradient_of_one(in_turn):
    config = pair_config("unused", in_turn=in_turn, batch=8)

    def gradient(world):
        model = stirred(fresh())
        loss = make_loss(model, LossConfig(), torch.ones(2), FakeParts())
        for rank in range(world):
            data = micro_batches(config, world, rank)
            for number in range(data.accumulation):
                loss(*data[number])[0].backward()
        return {name: param.grad for name, param in model.named_parameters()}
    one, two = gradient(1), gradient(2)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-5, rtol=1e-4)


def test_only_the_exchange_of_the_frozen_picture_branch_is_trained(tmp_path):
    path = tmp_path / "base.safetensors"
    save_file({name: value.clone() for name, value in fresh().unet.state_dict().items()
               if not name.startswith("jointnet_")}, path)
    start = replace(NOTHING, kind="stable_diffusion", weights=str(path))
    config = pair_config(tmp_path / "run", mode="map_branch", start=start, steps=3)
    with pytest.MonkeyPatch.context() as patch:
        read_as_toy(patch)
        before = make_model(config, FakeParts())
        run.train(config, Processes())
        run.export(config, tmp_path / "out.safetensors", raw=True)
    after = load_jointnet(tmp_path / "out.safetensors", dtype=torch.float32)
    assert after.config == before.config
    for name, value in before.state_dict().items():
        moved = not torch.equal(after.state_dict()[name], value.half().float())
        if name.startswith("unet.") and not name.startswith("unet.jointnet_"):
            assert not moved, name
        elif name.endswith("conv_out.weight") or ".jointnet_" in name:
            assert moved, name


# ---- starts -----------------------------------------------------------------------------------------------------

def read_as_toy(patch):
    """U-Nets of Stable Diffusion have 32 norm groups and at least 32 channels."""
    from_state_dict = JointNetConfig.from_state_dict
    patch.setattr(JointNetConfig, "from_state_dict", classmethod(lambda cls, shapes, **ours: from_state_dict(
        shapes, norm_groups=4, sample_size=4, latent_scale=1.0, **ours)))


def test_a_start_from_stable_diffusion_is_two_plain_unets(tmp_path, monkeypatch):
    read_as_toy(monkeypatch)
    torch.manual_seed(3)
    plain = diffusers.UNet2DConditionModel(**replace(MODEL, heads=(1, 1)).unet_settings())
    plain.save_pretrained(tmp_path / "sd" / "unet")
    start = replace(NOTHING, kind="stable_diffusion", weights=str(tmp_path / "sd"))
    for masked in (True, False):
        model = fresh(start=start, tasks=("joint",), model=JointNetConfig(domains=("image", "normal"),
                                                                         masked_input=masked))
        assert model.config.masked_input == masked and model.config.domains == ("image", "normal")
        roles = JointRoles.of(model.config.domains, generate=model.config.domains)
        generator = torch.Generator().manual_seed(0)
        x, text = (torch.randn(shape, generator=generator) for shape in ((2, 4, 2, 4, 4), (2, 5, 8)))
        for domain in range(2):
            expected = plain.eval()(x[:, :, domain], 300, text).sample
            torch.testing.assert_close(noise_of(model, roles)[:, :, domain], expected.detach(), atol=1e-5, rtol=1e-4)
    (tmp_path / "sd" / "scheduler").mkdir()
    told = tmp_path / "sd" / "scheduler" / "scheduler_config.json"
    told.write_text(json.dumps({"prediction_type": "v_prediction"}))
    with pytest.raises(WeightsError, match="velocity|v_prediction"):
        fresh(start=start)


def test_a_base_model_becomes_the_inpaint_variant(tmp_path):
    config = pair_config(tmp_path / "run", model=replace(MODEL, masked_input=False), tasks=("joint",), steps=2)
    run.train(config, Processes())
    run.export(config, tmp_path / "base.safetensors")
    start = replace(NOTHING, kind="jointnet", weights=str(tmp_path / "base.safetensors"))
    base, wider = (fresh(start=start, tasks=("joint",), model=replace(MODEL, masked_input=masked))
                   for masked in (False, True))
    assert not base.config.masked_input and wider.config.masked_input
    known = torch.randn(2, 5, 2, 4, 4)
    torch.testing.assert_close(noise_of(wider, known=known), noise_of(base))
    with pytest.raises(ValueError, match='tasks control, inpaint, perceive .* tasks = \\["joint"\\]'):
        fresh(start=start, model=replace(MODEL, masked_input=False))


def test_a_start_that_passes_the_noise_through():
    model = fresh(start=replace(NOTHING, pass_through=True), model=replace(MODEL, norm_groups=1))
    x = torch.randn(2, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise_of(model), x / x.square().mean(dim=(1, 3, 4), keepdim=True).sqrt(), atol=1e-3,
                               rtol=1e-3)
    with pytest.raises(ValueError, match="8 channels, twice the 4 of the latents, but model.channels begins with 4"):
        fresh(start=replace(NOTHING, pass_through=True), model=replace(MODEL, channels=(4, 8)))


# ---- configuration ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["jointnet", "tiny_jointnet", "tiny_jointnet_tune"])
def test_the_committed_configurations_load(name):
    assert load_config(CONFIGS / f"{name}.toml").family == "jointnet"


@pytest.mark.parametrize("values, message", [
    ({"family": "jointed"}, "family = 'jointed': use one of .* did you mean jointnet"),
    ({"start": {"kind": "jodi"}}, "start.kind = 'jodi': use one of jointnet, stable_diffusion, nothing"),
    ({"start": {"kind": "jointnet"}}, "start.weights = .*no address that is known here"),
    ({"start": {"kind": "nothing"}}, "start.autoencoder = .*no address that is known here"),
    ({"mode": "lora"}, "mode = 'lora': use one of full, map_branch"),
    ({"model": {"hidden_size": 64}}, "unknown key model.hidden_size"),
    ({"model": {"channels": [8, 8], "attention": [True, True], "heads": [1, 1]}}, "8 channels must be divisible by 32"),
    ({"speed": {"shard": True}}, 'speed.shard = True is of family = "jodi", but family is "jointnet"'),
    ({"start": {"kind": "nothing", "gate": 1.0}}, "start.gate = 1.0 is of family"),
    ({"loss": {"weighting": "sigma"}}, "loss.weighting = 'sigma': use one of noise, velocity"),
    ({"loss": {"caption_dropout": 1.5}}, "caption_dropout is 1.5"),
    ({"family": "jodi", "loss": {"caption_dropout": 0.2}}, 'is of family = "jointnet"'),
    ({"family": "jodi", "tasks": ["inpaint"]}, "tasks = 'inpaint': use one of joint, control, perceive"),
])
def test_contradictions_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        build(TrainConfig, {"family": "jointnet", "start": TINY} | values)


def test_what_the_other_commands_ask_of_a_family():
    config = load_config(CONFIGS / "tiny_jointnet_tune.toml")
    assert FAMILY["jointnet"].caption_tokens(MODEL) == 75
    told = card(config, "ink.safetensors", 5, False)
    assert "**JointNet Loader**" in told and "U-Net of the map" in told and "from `jointnet.safetensors`" in told


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match=r"latents of 4 channels, factor 8, scale 1.0, but the model takes 4, 8, 0.18"):
        fresh(model=replace(MODEL, latent_scale=0.18215))
    with pytest.raises(ValueError, match="the text features are 8 wide, but the model takes 16"):
        make_loss(fresh(model=replace(MODEL, text_width=16)), LossConfig(), torch.ones(2), FakeParts())
