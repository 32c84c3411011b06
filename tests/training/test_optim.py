"""Muon, the split of the parameters, the schedule."""

from dataclasses import replace

import pytest
import torch

from jodi_core.models.jodi import JodiConfig, JodiTransformer
from training.config import OptimConfig, TrainConfig
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
