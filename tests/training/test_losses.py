"""The loss, its gradients and its times, against the recorded numbers of the original."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jodi_core.domains import JointRoles
from jodi_core.models.jodi import JodiConfig, JodiTransformer
from training.config import LossConfig
from training.losses import Batch, JointLoss, Question, draw_question, draw_time, level_index, shifted_sigmas

GOLDEN = Path(__file__).parent.parent / "golden"
NUMBERS = json.loads((GOLDEN / "jodi" / "model_a.loss.json").read_text())


@pytest.fixture(scope="module")
def recorded():
    return load_file(GOLDEN / "jodi" / "model_a.loss.safetensors")


@pytest.fixture(scope="module")
def model():
    values = json.loads((GOLDEN / "jodi" / "model_a.json").read_text())["model"]
    model = JodiTransformer(JodiConfig.from_reference(values))
    model.load_state_dict(load_file(GOLDEN / "jodi" / NUMBERS["weights"]))
    return model.float()


def recorded_batch(model, recorded, dropped=False):
    """(batch, questions) of the four recorded samples."""
    x0, noise = (recorded[name].transpose(1, 2) for name in ("x0", "noise"))
    sigma_B = shifted_sigmas(NUMBERS["flow_shift"])[recorded["timestep_index"]]
    batch = Batch(x0, torch.ones(x0.shape[0], 8, dtype=torch.bool), recorded["y"].flatten(0, 1),
                  recorded["mask"].flatten(1).bool())
    rows = zip(recorded["role"].tolist(), sigma_B, recorded["model_t"], noise)
    return batch, [Question("", JointRoles(model.config.domains, role), float(sigma), float(time), dropped, row_noise)
                   for role, sigma, time, row_noise in rows]


def evaluate(model, recorded, weight=None, config=LossConfig(), **changes):
    weight = torch.ones(8) if weight is None else weight
    return JointLoss(model, config, weight)(*recorded_batch(model, recorded, **changes))


def test_loss_per_domain(model, recorded):
    """Rows of different roles, evaluated in one call."""
    errors = evaluate(model, recorded)[1]
    for row, found in enumerate(errors):
        generated = [i for i, role in enumerate(recorded["role"][row].tolist()) if role == 0]
        assert list(found) == [model.config.domains[i] for i in generated]
        torch.testing.assert_close(torch.stack(list(found.values())), recorded["se_mean_per_domain"][row, generated],
                                   rtol=2e-6, atol=0)


def test_gradients(model, recorded):
    """The original averages over all domains, but lets only generated ones act on the weights."""
    model.zero_grad()
    (evaluate(model, recorded)[0] / 4).backward()
    found = {name.removesuffix(".weight") if "table" in name or "domain_emb" in name else name: value.grad
             for name, value in model.named_parameters()}
    assert set(NUMBERS["grad_norms"]) == set(found)
    for name, norm in NUMBERS["grad_norms"].items():
        assert found[name].norm().item() == pytest.approx(norm, rel=1e-5, abs=1e-9), name
    tensors = {name.removeprefix("grad."): value for name, value in recorded.items() if name.startswith("grad.")}
    assert len(tensors) > 5
    for name, value in tensors.items():
        assert (found[name] - value).abs().max() < 2e-6 * value.abs().max(), name


def test_weights_and_shares(model, recorded):
    weight = torch.arange(8.0)
    total, errors = evaluate(model, recorded, weight, LossConfig(share=0.5))
    expected = sum(sum(weight[model.config.domains.index(name)] * value for name, value in found.items()) / len(found)
                   * (len(found) / 8) ** 0.5 for found in errors)
    torch.testing.assert_close(total, expected)


def test_a_dropped_caption_changes_the_loss_but_not_that_of_perception(model, recorded):
    plain, dropped = (evaluate(model, recorded, dropped=flag)[1] for flag in (False, True))
    for row, (one, other) in enumerate(zip(plain, dropped)):
        same = all(torch.allclose(one[name], other[name], rtol=1e-6) for name in one)
        assert same == (recorded["role"][row, 0] == 1)


def test_the_integer_times_of_all_noise_levels():
    """Two of them differ from exact arithmetic."""
    times = json.loads((GOLDEN / "jodi_train_times.json").read_text())["values"]
    assert (1000 * shifted_sigmas(3.0)).trunc().int().tolist() == times


def test_noise_levels_and_draws(recorded):
    sigmas = shifted_sigmas(NUMBERS["flow_shift"])
    for index, sigma in NUMBERS["shifted_sigma"].items():
        assert sigmas[int(index)].item() == pytest.approx(sigma, rel=1e-7)
    index = NUMBERS["logit_normal_seed0_index"]
    draws = torch.randn(len(index), generator=torch.Generator().manual_seed(0))
    assert level_index(LossConfig(), draws).tolist() == index


@pytest.mark.parametrize("times, mean", [("logit_normal", 0.5), ("uniform", 0.5), ("mode", 0.5)])
def test_draws_of_noise_levels(times, mean):
    generator = torch.Generator().manual_seed(0)
    config = LossConfig(times=times, exact_time=True)
    sigma, time = torch.tensor([draw_time(config, 1.0, generator) for _ in range(4000)], dtype=torch.float64).T
    assert torch.equal(time, 1000 * sigma) and sigma.mean().item() == pytest.approx(mean, abs=0.02)
    middle = ((sigma > 0.25) & (sigma < 0.75)).double().mean().item()
    assert middle == pytest.approx({"logit_normal": 0.728, "uniform": 0.5, "mode": 0.734}[times], abs=0.04)


def test_integer_time_is_the_default():
    generator = torch.Generator().manual_seed(0)
    times = torch.tensor([draw_time(LossConfig(mean=-0.5), 3.0, generator)[1] for _ in range(500)])
    assert torch.equal(times, times.round()) and times.max() < 1000


def test_a_question_follows_its_generator(model):
    present = torch.tensor([True, True, False, True, True, True, False, True])
    for task, check in (("joint", lambda roles: roles.generated_slots == tuple(range(6))),
                        ("control", lambda roles: roles.generated_slots == (0,)),
                        ("perceive", lambda roles: roles.image_given)):
        one, again, other = (draw_question(model.config, LossConfig(), present, (32, 8, 2, 2), task,
                                           torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert check(one.roles) and not {2, 6} & set(one.roles.active)
        assert torch.equal(one.noise_CLHW, again.noise_CLHW) and (one.sigma, one.roles) == (again.sigma, again.roles)
        assert not torch.equal(one.noise_CLHW, other.noise_CLHW)
