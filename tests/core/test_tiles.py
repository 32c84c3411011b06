"""Windows cover everything, and blending leaves what they agree on."""

import pytest
import torch

from jodi_core.tiles import by_windows, window_starts, window_weight


@pytest.mark.parametrize("length", [5, 8, 9, 12, 16, 31, 64])
@pytest.mark.parametrize("overlap", [0, 2, 4, 6])
def test_windows_cover_and_overlap(length, overlap):
    starts = window_starts(length, 8, overlap)
    assert starts[0] == 0 and starts[-1] + 8 >= length and (length <= 8 or starts[-1] + 8 == length)
    assert all(0 < later - earlier <= 8 - overlap for earlier, later in zip(starts, starts[1:]))


@pytest.mark.parametrize("size", [(8, 8), (8, 21), (30, 9), (17, 40)])
@pytest.mark.parametrize("overlap", [0, 2, 6])
def test_what_windows_agree_on_stays(size, overlap):
    x = torch.randn(2, 3, 4, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(by_windows(lambda part: 2 * x[part], x, (8, 8), (overlap, overlap)), 2 * x)


def test_blending_is_smooth():
    """Windows that disagree by one: no step between neighbouring cells is larger than the ramp's."""
    x, calls = torch.zeros(1, 8, 40), []

    def evaluate(part):
        calls.append(part)
        return torch.full_like(x[part], float(len(calls) % 2))
    blended = by_windows(evaluate, x, (8, 8), (4, 4))
    assert len(calls) == 9 and (blended.diff(dim=-1).abs() <= 0.25 + 1e-6).all()
    assert (window_weight(8, 4) > 0).all()
