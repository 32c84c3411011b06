"""bfloat16 weights: steps that plain rounding loses, randomness that resumes, states that stay float32."""

import pytest
import torch

from training.came import Came
from training.rounding import Rounded, round_randomly


def trained(rounding: str | None, make=lambda params: torch.optim.SGD(params, 1e-3), steps: int = 200) -> torch.Tensor:
    """100 weights of 1.0 after steps of 1e-3 upwards, in bfloat16 (whose values next to 1 are 1/256 and 1/128 away)."""
    weight = torch.nn.Parameter(torch.ones(10, 10, dtype=torch.bfloat16))
    optimizer = make([weight])
    if rounding:
        optimizer = Rounded(optimizer, rounding, seed=0)
    for number in range(steps):
        weight.grad = -torch.ones_like(weight)
        optimizer.number = number
        optimizer.step()
    assert weight.dtype == torch.bfloat16
    return weight.detach().float()


def test_small_steps_are_lost_by_plain_rounding_only():
    assert (trained(None) == 1).all(), "rounding to the nearest value stands still"
    kahan, stochastic = trained("kahan"), trained("stochastic")
    assert (kahan - 1.2).abs().max() < 1 / 256
    assert stochastic.mean() == pytest.approx(1.2, abs=0.01) and stochastic.std() > 0.01


@pytest.mark.parametrize("make", [lambda params: torch.optim.AdamW(params, 1e-3, weight_decay=0.0),
                                  lambda params: Came(params, 1e-3),
                                  lambda params: Came(params, 1e-3, block_rows=4, min_8bit=50)])
def test_the_optimisers_get_as_far_as_with_float32_weights(make):
    exact = torch.nn.Parameter(torch.ones(10, 10))
    optimizer = make([exact])
    for _ in range(100):
        exact.grad = -torch.ones_like(exact)
        optimizer.step()
    far = exact.detach() - 1
    assert far.min() > 0.05
    assert (trained("kahan", make, 100) - 1 - far).abs().max() < 1 / 256
    assert (trained("stochastic", make, 100) - 1).mean() == pytest.approx(far.mean().item(), abs=0.01)


def test_random_rounding_is_right_on_average_and_leaves_what_fits():
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([1 + 1 / 512, -3.1, 2e-39, 0.0])
    rounded = torch.stack([round_randomly(values, generator).float() for _ in range(4000)])
    torch.testing.assert_close(rounded.mean(0), values, rtol=1e-3, atol=0)
    for column in rounded.T:
        assert len(column.unique()) <= 2
    fits = torch.randn(100, generator=generator).bfloat16()
    assert torch.equal(round_randomly(fits.float(), generator), fits)


def test_the_number_of_the_step_decides_the_rounding():
    ends = []
    for number in (5, 5, 6):
        weight = torch.nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
        optimizer = Rounded(torch.optim.SGD([weight], 1e-3), "stochastic", seed=1)
        torch.rand(len(ends))    # other randomness does not matter
        optimizer.number, weight.grad = number, -torch.ones_like(weight)
        optimizer.step()
        ends.append(weight.detach())
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_states_are_float32_and_come_back_exactly(rounding):
    weights = [torch.nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16)) for _ in range(2)]
    first, second = (Rounded(torch.optim.AdamW([weight], 1e-3), rounding, 0) for weight in weights)
    for scale in (1.0, 0.3):
        weights[0].grad = torch.full_like(weights[0], scale)
        first.step()
    second.load_state_dict(first.state_dict())
    before, after = first.state[weights[0]], second.state[weights[1]]
    assert after["exp_avg"].dtype == torch.float32 and set(before) == set(after)
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    assert after["exp_avg"].data_ptr() != before["exp_avg"].data_ptr()
