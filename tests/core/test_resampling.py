"""Jumps back keep the statistics of the path, and repeat the stretches that they are told to."""

import pytest
import torch

from jodi_core.resampling import noised_back, resampled


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("flow, level, earlier", [(True, 0.3, 0.8), (True, 0.0, 0.5), (False, 1.5, 7.0)])
def test_a_state_taken_back_is_as_noisy_as_one_of_that_level(flow, level, earlier):
    data, *noises = torch.randn(3, 200_000, generator=seeded(0))

    def state(level, noise):
        return (1 - level if flow else 1) * data + level * noise
    back = noised_back(state(level, noises[0]), level, earlier, noises[1], flow)
    noise = back - state(earlier, 0 * data)
    assert noise.std() == pytest.approx(earlier, rel=0.01) and abs((noise * data).mean()) < 0.01 * (1 + earlier)


def test_stretches_are_repeated():
    runs = []

    def solve(x, part, first):
        runs.append((first, part.tolist()))
        return x * 0.5
    levels = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    made = [resampled(solve, torch.ones(2, 3), levels, jump=3, times=2, flow=True, generator=seeded(1))
            for _ in range(2)]
    assert runs[:4] == [(0, [1, 0.75, 0.5, 0.25])] * 2 + [(3, [0.25, 0])] * 2
    assert torch.equal(*made)
    assert torch.equal(resampled(solve, torch.ones(2), levels, jump=9, times=1, flow=True, generator=seeded(1)),
                       torch.full((2,), 0.5))


def test_known_data_is_found_again():
    """A solver that knows the data ends on it, however often it jumps."""
    data = torch.randn(50, generator=seeded(2))

    def solve(x, part, first):
        for level, below in zip(part, part[1:]):
            x = x + (below - level) * (x - data) / level
        return x
    x = torch.randn(50, generator=seeded(3))
    made = resampled(solve, x, torch.linspace(1, 0, 9), jump=2, times=3, flow=True, generator=seeded(4))
    torch.testing.assert_close(made, data, rtol=0, atol=1e-5)
