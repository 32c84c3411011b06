"""The optimisers by name, Muon, the schedule, what the configuration refuses."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jodi_core.models.jodi import JodiConfig, JodiTransformer
from training.came import Came
from training.config import OptimConfig, TrainConfig
from training.config_file import load_config
from training.optim import Muon, make_optimizers, orthogonalise, peak_rates, schedule


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (1, 24, 8)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalise(matrices)
    values = torch.linalg.svdvals(found)
    assert found.shape == shape and values.min() > 0.3 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    nearest = u @ v
    assert torch.cosine_similarity(found.flatten(), nearest.flatten(), dim=0) > 0.9


def test_muon_treats_a_1x1_convolution_as_the_matrix_that_it_is():
    gradient = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    ends = []
    for shape in ((8, 12), (8, 12, 1, 1)):
        weight = torch.nn.Parameter(torch.zeros(shape))
        optimizer = Muon([weight], lr=0.1)
        for factor in (1, -0.5):
            weight.grad = factor * gradient.view(shape)
            optimizer.step()
        ends.append(weight.detach().flatten())
    assert torch.equal(*ends) and ends[0].abs().max() > 0


def test_every_parameter_has_one_optimizer():
    model = JodiTransformer(JodiConfig(hidden_size=64, depth=2, num_heads=4, qk_norm=True), device="meta")
    muon, adamw = ([id(p) for group in optimizer.param_groups for p in group["params"]]
                   for optimizer in make_optimizers(model, TrainConfig(optim=OptimConfig(name="muon"))))
    assert sorted(muon + adamw) == sorted(id(p) for p in model.parameters())
    names = {name for name, p in model.named_parameters() if id(p) in muon}
    assert names == {f"blocks.{i}.{part}.weight" for i in range(2) for part in (
        "attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj",
        "mlp.inverted_conv.conv", "mlp.point_conv.conv")}


@pytest.mark.parametrize("name, at_half, at_end", [("constant", 1.0, 1.0), ("linear", 0.5556, 0.0111),
                                                  ("cosine", 0.5868, 0.0003), ("wsd", 1.0, 0.05)])
def test_the_rate_rises_and_takes_its_course(name, at_half, at_end):
    config = OptimConfig(schedule=name, warmup=10, decay=0.2)
    factors = [schedule(step, 100, config) for step in range(100)]
    assert factors[0] == 0.1 and factors[9] == 1.0
    assert factors[50] == pytest.approx(at_half, abs=1e-3) and factors[99] == pytest.approx(at_end, abs=1e-3)
    assert all(later <= earlier for earlier, later in zip(factors[10:], factors[11:]))
    low = [schedule(step, 100, replace(config, floor=0.3)) for step in range(10, 100)]
    assert min(low) >= 0.3 or name == "constant"


def test_the_rate_grows_with_the_root_of_the_batch():
    config = TrainConfig(batch=64, optim=OptimConfig(lr=1e-4, scale_lr=True))
    assert peak_rates(config) == [pytest.approx(5e-5)]


def test_the_reference_recipe():
    config = load_config(Path(__file__).resolve().parents[2] / "training" / "configs" / "reference.toml")
    assert config.model == JodiConfig() and config.accumulation(8) == 1 and config.ema == 0
    assert peak_rates(config) == [pytest.approx(1e-4 * (32 / 256) ** 0.5)]
    optimizer, = make_optimizers(torch.nn.Linear(200, 100), config)
    group, = optimizer.param_groups
    assert isinstance(optimizer, Came)
    assert (group["betas"], group["weight_decay"], group["clip"], group["block_rows"], group["min_8bit"]) == (
        (0.9, 0.999, 0.9999), 0.0, 1.0, 2048, 16384)
    assert [schedule(step, config.steps, config.optim) for step in (0, 999, 1999, 129_999)] == [0.0005, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("values, message", [
    ({"name": "came"}, r"optim.betas has 2 values, but \"came\" takes 3: the original's are \[0.9"),
    ({"betas": (0.9, 0.999, 0.9999)}, "optim.betas has 3 values"),
    ({"name": "came", "betas": (0.9, 0.999, 0.9999), "eps": 1e-6}, "optim.eps = 1e-06 is of adamw.*leave it out"),
    ({"name": "came", "betas": (0.9, 0.999, 0.9999), "block_rows": 64}, "optim.block_rows = 64 is of came_8bit"),
    ({"muon_lr": 0.1}, "optim.muon_lr = 0.1 is of muon"),
    ({"name": "prodigy"}, "finds the rate itself.*use 1.0"),
    ({"name": "came8bit"}, "did you mean came_8bit"),
])
def test_keys_of_other_optimisers_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**values)


@pytest.mark.parametrize("text, message", [
    ("in_turn = true\nspeed.shard = true\noptim.name = 'came_8bit'\noptim.betas = [0.9, 0.999, 0.9999]",
     "whole matrices"),
    ("mode = 'domains'\nstart.extend = {heat = 'depth'}\noptim.name = 'came_8bit'\noptim.betas = [0.9, 0.999, 0.9999]",
     "not quite zero: use optim.name = \"came\""),
    ("speed.rounding = 'kahan'", "speed.rounding is of bfloat16 weights"),
    ("in_turn = true\nspeed.shard = true\nspeed.precision = 'pure_bf16'", "rounds whole tensors"),
    ("mode = 'lora'\nspeed.precision = 'pure_bf16'", "trains few weights"),
    ("optim.name = 'prodigy'\noptim.lr = 1.0\nspeed.precision = 'pure_bf16'", "one tensor after the other"),
])
def test_what_does_not_go_together_is_refused(tmp_path, text, message):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / "run.toml")


@pytest.mark.parametrize("name, package", [("adamw_8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_a_missing_package_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        make_optimizers(torch.nn.Linear(2, 2), TrainConfig(optim=OptimConfig(name=name, lr=1.0)))


def test_prodigy_finds_a_rate():
    weight = torch.nn.Parameter(torch.full((4, 4), 3.0))
    optimizer, = make_optimizers(torch.nn.ParameterList([weight]),
                                 TrainConfig(optim=OptimConfig(name="prodigy", lr=1.0)))
    for _ in range(200):
        weight.grad = 2 * weight.detach()
        optimizer.step()
    assert weight.detach().abs().max() < 0.3 and optimizer.param_groups[0]["d"] > 1e-3


def test_8_bit_adamw_follows_adamw():
    ends = []
    for name in ("adamw", "adamw_8bit"):
        weight = torch.nn.Parameter(torch.ones(64, 64))
        keys = {"min_8bit": 64} if name == "adamw_8bit" else {}
        optimizer, = make_optimizers(torch.nn.ParameterList([weight]),
                                     TrainConfig(optim=OptimConfig(name=name, lr=1e-2, **keys)))
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            weight.grad = torch.randn(64, 64, generator=generator) + 0.5
            optimizer.step()
        ends.append(weight.detach() - 1)
    assert torch.cosine_similarity(ends[0].flatten(), ends[1].flatten(), dim=0) > 0.98 and not torch.equal(*ends)
