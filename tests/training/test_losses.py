"""The loss, its gradients and its times, against the recorded numbers of the original."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jodi_core.domains import JointRoles
from jodi_core.models.jodi import JodiConfig, JodiTransformer
from training.losses import draw_times, flow_loss, shifted_sigmas

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


def row_loss(model, recorded, row, **changes):
    """(roles, losses of the generated domains) of one recorded sample."""
    roles = JointRoles(model.config.domains, recorded["role"][row].tolist())
    sigma = shifted_sigmas(NUMBERS["flow_shift"])[recorded["timestep_index"][row:row + 1]]
    x0, noise = (roles.keep_active(recorded[name][row:row + 1].transpose(1, 2)) for name in ("x0", "noise"))
    values = dict(sigma_B=sigma, time_B=recorded["model_t"][row:row + 1], noise_BCDHW=noise, null_rows_B=None,
                  weight_D=torch.ones(8)) | changes
    return roles, flow_loss(model, x0, recorded["y"][row], recorded["mask"][row].flatten(1), roles, **values)


def test_loss_per_domain(model, recorded):
    for row in range(4):
        roles, losses = row_loss(model, recorded, row)
        generated = [roles.active[slot] for slot in roles.generated_slots]
        torch.testing.assert_close(losses, recorded["se_mean_per_domain"][row, generated], rtol=2e-6, atol=0)


def test_gradients(model, recorded):
    """The original averages over all domains, but lets only generated ones act on the weights."""
    model.zero_grad()
    for row in range(4):
        (row_loss(model, recorded, row)[1].sum() / (4 * 8)).backward()
    found = {name.removesuffix(".weight") if "table" in name or "domain_emb" in name else name: value.grad
             for name, value in model.named_parameters()}
    assert set(NUMBERS["grad_norms"]) == set(found)
    for name, norm in NUMBERS["grad_norms"].items():
        assert found[name].norm().item() == pytest.approx(norm, rel=1e-5, abs=1e-9), name
    tensors = {name.removeprefix("grad."): value for name, value in recorded.items() if name.startswith("grad.")}
    assert len(tensors) > 5
    for name, value in tensors.items():
        assert (found[name] - value).abs().max() < 2e-6 * value.abs().max(), name


def test_weights_act_on_their_domain(model, recorded):
    roles, plain = row_loss(model, recorded, 0)
    weight = torch.arange(8.0)
    _, weighted = row_loss(model, recorded, 0, weight_D=weight)
    generated = [roles.active[slot] for slot in roles.generated_slots]
    torch.testing.assert_close(weighted, plain * weight[generated])


def test_a_dropped_caption_changes_the_loss(model, recorded):
    rows = [row for row in range(4) if recorded["role"][row, 0] != 1]
    for row in rows:
        _, plain = row_loss(model, recorded, row)
        _, kept = row_loss(model, recorded, row, null_rows_B=torch.tensor([False]))
        _, dropped = row_loss(model, recorded, row, null_rows_B=torch.tensor([True]))
        assert torch.equal(plain, kept) and not torch.allclose(plain, dropped, rtol=1e-6)


def test_the_integer_times_of_all_noise_levels():
    """Two of them differ from exact arithmetic."""
    times = json.loads((GOLDEN / "jodi_train_times.json").read_text())["values"]
    assert (1000 * shifted_sigmas(3.0)).trunc().int().tolist() == times


def test_noise_levels_and_draws(recorded):
    sigmas = shifted_sigmas(NUMBERS["flow_shift"])
    for index, sigma in NUMBERS["shifted_sigma"].items():
        assert sigmas[int(index)].item() == pytest.approx(sigma, rel=1e-7)
    index = NUMBERS["logit_normal_seed0_index"]
    sigma, time = draw_times(len(index), NUMBERS["flow_shift"], torch.Generator().manual_seed(0))
    assert torch.equal(sigma, sigmas[index])
    assert time.tolist() == [int(1000 * sigmas[i]) for i in index]


def test_draws_follow_mean_and_deviation():
    generator = torch.Generator().manual_seed(0)
    sigma, time = draw_times(20_000, 1.0, generator, mean=-0.5, std=0.8)
    logits = torch.logit(sigma.clamp(1e-3, 1 - 1e-3))
    assert logits.mean().item() == pytest.approx(-0.5, abs=0.03)
    assert logits.std().item() == pytest.approx(0.8, abs=0.03)
    assert torch.equal(time, time.round()) and time.min() >= 0 and time.max() < 1000
