"""The solvers on a flow whose solution is known in closed form."""

import pytest
import torch
import torch.nn.functional as F

from jodi_core.sampling import flow_timesteps, guided, sample_flow_dpm, sample_flow_euler

MEAN, DEVIATION = 0.7, 0.4


def gaussian_velocity(x, t):
    """E[noise - data | x] where data is normal: x = (1 - t) data + t noise, jointly normal with both."""
    variance = (1 - t) ** 2 * DEVIATION ** 2 + t ** 2
    centred = x - (1 - t) * MEAN
    return t / variance * centred - (MEAN + (1 - t) * DEVIATION ** 2 / variance * centred)


def gaussian_flow(x, start, end):
    """Where the flow takes x from one time to another: quantiles stay quantiles."""
    def spread(t):
        return ((1 - t) ** 2 * DEVIATION ** 2 + t ** 2) ** 0.5
    return (1 - end) * MEAN + spread(end) * (x - (1 - start) * MEAN) / spread(start)


def noise():
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def largest_error(sampler, steps):
    times = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
    return (sampler(gaussian_velocity, noise(), times) - gaussian_flow(noise(), 0.9, 0.1)).abs().max().item()


@pytest.mark.parametrize("sampler, order, at_80", [(sample_flow_euler, 1, 0.02), (sample_flow_dpm, 2, 0.0002)])
def test_convergence(sampler, order, at_80):
    errors = [largest_error(sampler, steps) for steps in (20, 40, 80)]
    assert errors[2] < at_80
    assert min(errors[0] / errors[1], errors[1] / errors[2]) > 0.95 * 2 ** order


def test_twenty_steps_of_the_published_grid_reach_the_data():
    out = sample_flow_dpm(gaussian_velocity, noise(), flow_timesteps(20))
    assert (out - gaussian_flow(noise(), flow_timesteps(20)[0].item(), 0)).abs().max() < 0.06


@pytest.mark.parametrize("sampler", [sample_flow_dpm, sample_flow_euler])
def test_a_straight_flow_is_solved_in_one_step(sampler):
    """All data at one point: x0 is known from the start."""
    for steps in (1, 2, 5):
        out = sampler(lambda x, t: (x - MEAN) / t, noise(), flow_timesteps(steps))
        torch.testing.assert_close(out, torch.full_like(out, MEAN), atol=1e-6, rtol=0)


def test_one_step_goes_straight_to_the_data_and_two_steps_are_both_of_first_order():
    x, (t0, t1, _) = noise(), flow_timesteps(2).tolist()
    start = flow_timesteps(1)[0].item()
    one = sample_flow_dpm(gaussian_velocity, x, flow_timesteps(1))
    torch.testing.assert_close(one, x - start * gaussian_velocity(x, start))
    data = x - t0 * gaussian_velocity(x, t0)
    middle = t1 / t0 * x + (1 - t1 / t0 * (1 - t0) - t1) * data    # the straight line from x to its data
    two = sample_flow_dpm(gaussian_velocity, x, flow_timesteps(2))
    torch.testing.assert_close(two, middle - t1 * gaussian_velocity(middle, t1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sampler", [sample_flow_dpm, sample_flow_euler])
@pytest.mark.parametrize("times", [[1.0, 0.8, 0.5, 0.2, 0.0], [1.0, 0.0], [0.6, 0.4, 0.1, 0.0], [0.9, 0.6, 0.3]])
def test_grids_of_a_host(sampler, times):
    """From exactly 1, where the log signal-to-noise ratio is infinite; from the middle; not to the end."""
    asked, grid = [], torch.tensor(times, dtype=torch.float64)
    out = sampler(lambda x, t: asked.append(t) or gaussian_velocity(x, t), noise(), grid)
    assert asked == times[:-1] and out.isfinite().all()


def test_the_state_is_float32_whatever_the_network_works_in():
    seen = []

    def velocity(x, t):
        seen.append(x.dtype)
        return gaussian_velocity(x, t).bfloat16()
    for sampler in (sample_flow_dpm, sample_flow_euler):
        assert sampler(velocity, noise().bfloat16(), flow_timesteps(3)).dtype == torch.float32
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("sampler", [sample_flow_dpm, sample_flow_euler])
def test_the_callback_counts_evaluations_and_can_stop(sampler):
    reports, x = [], noise()
    before = x.clone()
    sampler(gaussian_velocity, x, flow_timesteps(4), lambda *report: reports.append(report))
    assert [report[:2] for report in reports] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    _, _, state, data = reports[0]
    start = flow_timesteps(4)[0].item()
    assert torch.equal(state, before) and torch.equal(x, before), "the caller's noise stays as it was"
    torch.testing.assert_close(data, before - start * gaussian_velocity(before, start))

    evaluated = []

    def stop(step, steps, x, x0):
        if step == 2:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        sampler(lambda x, t: evaluated.append(t) or x, x, flow_timesteps(4), stop)
    assert len(evaluated) == 2


@pytest.mark.parametrize("steps, expected", [
    (20, {0: 0.9996664, 1: 0.9824196, 10: 0.7496248, 19: 0.1362397}),
    (10, {0: 0.9996664, 1: 0.9639410, 9: 0.2497917}),
])
def test_the_grid(steps, expected):
    times = flow_timesteps(steps)
    assert len(times) == steps + 1 and times[-1] == 0 and (times.diff() < 0).all()
    assert {i: times[i].item() for i in expected} == pytest.approx(expected, abs=2e-7)
    assert flow_timesteps(2, shift=1.0).tolist() == pytest.approx([0.999, 0.4995, 0])


@pytest.mark.parametrize("steps, shift", [(0, 3.0), (-1, 3.0), (5, 0.0)])
def test_grids_that_cannot_be(steps, shift):
    with pytest.raises(ValueError, match="steps .* shift"):
        flow_timesteps(steps, shift)


def test_guidance_leads_away_from_the_unconditional_branch():
    def branches(x, t):
        return torch.cat([x * 0 + 1, x * 0 + 3]).bfloat16()
    x = torch.zeros(2, 3)
    for scale, expected in ((0, 1), (1, 3), (4.5, 10)):
        out = guided(branches, scale)(x, 0.5)
        assert out.dtype == torch.float32 and out.shape == x.shape and (out == expected).all()


def test_rescaled_guidance_has_the_spread_of_the_conditional_rows():
    x = torch.randn(2, 4, 2, 5, 5)
    texts = torch.randn(4, 4, 2, 5, 5)
    for share in (1.0, 0.3):
        plain, rescaled = (guided(lambda x, t: texts, 7.5, rescale)(x, 0.5) for rescale in (0.0, share))
        wanted = share * texts[2:].flatten(1).std(1) + (1 - share) * plain.flatten(1).std(1)
        torch.testing.assert_close(rescaled.flatten(1).std(1), wanted)
        torch.testing.assert_close(F.cosine_similarity(rescaled.flatten(1), plain.flatten(1)), torch.ones(2))


def test_euler_keeps_what_is_put_back():
    """A known half is noised to each time that comes, and the other half does not notice."""
    clean, noise = torch.randn(2, 1, 6), torch.randn(2, 1, 6)
    mask = (torch.arange(6) < 3).float()
    seen = []

    def keep(x, t):
        return mask * x + (1 - mask) * ((1 - t) * clean + t * noise)
    times = flow_timesteps(5)
    last = sample_flow_euler(lambda x, t: x ** 2, noise, times, lambda step, steps, x, x0: seen.append(x), keep)
    free = sample_flow_euler(lambda x, t: x ** 2, noise, times)
    torch.testing.assert_close(last, torch.cat([free[..., :3], clean[..., 3:]], dim=-1))
    torch.testing.assert_close(seen[2][..., 3:], ((1 - times[2]) * clean + times[2] * noise)[..., 3:].float())
