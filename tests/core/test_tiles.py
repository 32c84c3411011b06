"""Windows cover everything, and blending leaves what they agree on."""

import json
from pathlib import Path

import pytest
import torch

from jodi_core.tiles import Tiling, Window, by_windows, merge, ramp, seam, window_starts, window_weight


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

TINY = json.loads((Path(__file__).parents[1] / "golden" / "jointnet" / "jointnet_tiny.json").read_text())


def cells_of(window: Window, width: int) -> list[int]:
    """[top, bottom, left, right] as the table has it: the right end counts on beyond the edge."""
    _, rows, columns = window.part
    columns = torch.arange(width)[columns]
    return [rows.start, rows.stop, int(columns[0]), int(columns[0]) + len(columns)]


@pytest.mark.parametrize("table", TINY["tile_grids"], ids=lambda table: f"{table['width_px']}x{table['height_px']}")
def test_recorded_grids(table):
    """The original's windows; where they leave cells out there is one more, flush with the edge."""
    size = table["height_px"] // 8, table["width_px"] // 8
    tiling = Tiling((table["window"],) * 2, table["stride"], wrap=table["circular"], full_view=0.4)
    windows = tiling.windows(size, full=table["add_full_view"])
    places = [cells_of(window, size[1]) for window in windows]
    if table["uncovered_latent_cells"]:
        assert places.pop(-1) == [0, 64, size[1] - 64, size[1]]
    assert len(places) == table["n_views"] and places[0] == table["first"] and places[-1] == table["last"]
    assert table["views"] in (None, places)
    seen_hw = torch.zeros(size)
    for window in windows:
        seen_hw[window.part] += window.weight_hw
    assert (seen_hw > 0).all()


@pytest.mark.parametrize("size, tiling", [
    ((8, 8), Tiling((8, 8), 4, ramp=(2, 2))), ((17, 40), Tiling((8, 8), 5, ramp=(3, 0))),
    ((6, 13), Tiling((8, 8), 4, wrap=True)), ((6, 5), Tiling((8, 8), 4, ramp=(2, 2), wrap=True)),
    ((12, 30), Tiling((8, 12), 6, ramp=(0, 2), wrap=True, full_view=0.5, full_weight=5.0))])
@pytest.mark.parametrize("offset", [0, 3])
def test_what_all_windows_agree_on_stays(size, tiling, offset):
    """Any size, also one off the grid, narrower than a window, or as wide as high."""
    x = torch.randn(2, 3, 4, *size, generator=torch.Generator().manual_seed(0))
    shapes = []
    merged = merge(lambda part: shapes.append(x[part].shape[-2:]) or 2 * x[part], x,
                   tiling.windows(size, offset=offset * tiling.wrap, full=tiling.full_view > 0))
    torch.testing.assert_close(merged, 2 * x)
    smallest = tuple(min(sides) for sides in zip(size, tiling.window))
    assert set(shapes) == {smallest} | ({size} if tiling.full_view else set())


def test_windows_go_on_over_the_edge():
    """A circle turned by some cells, with windows moved by as many, is the turned result."""
    x = torch.randn(1, 2, 6, 24, generator=torch.Generator().manual_seed(1))
    tiling = Tiling((6, 8), 4, ramp=(0, 2), wrap=True, full_view=1.0)

    def merged(x, offset):    # each window sees its own first column
        return merge(lambda part: x[part] - x[part][..., :1], x, tiling.windows((6, 24), offset=offset, full=True))
    torch.testing.assert_close(merged(x.roll(3, -1), 3), merged(x, 0).roll(3, -1))
    assert not torch.allclose(merged(x, 3), merged(x, 0))


def test_ramps_rise_at_the_centres_of_cells():
    assert ramp(8, 2).tolist() == [0.25, 0.75, 1, 1, 1, 1, 0.75, 0.25]
    assert ramp(5, 0).tolist() == [1] * 5
    corner = Tiling((8, 8), 4, ramp=(2, 4)).windows((16, 16))[0].weight_hw
    assert corner[0, 0] == 0.125 and corner[0, 4] == 0.25 and corner[3, 1] == 0.375


def test_full_view_in_the_first_steps():
    """Of 50 steps 21 at 0.4: the last one is included."""
    tiling = Tiling((8, 8), 4, full_view=0.4)
    assert sum(tiling.full_at(step, 50) for step in range(50)) == 21
    assert not any(Tiling((8, 8), 4).full_at(step, 50) for step in range(50))
    last = tiling.windows((8, 16), full=True)[-1]
    assert last.weight_hw.shape == (8, 16) and last.weight_hw.unique().tolist() == [5.0]


def test_offsets_follow_from_the_seed():
    tiling = Tiling((8, 8), 4, wrap=True)
    offsets = tiling.offsets(50, seed=3)
    assert set(offsets) == {0, 1, 2, 3} and offsets == tiling.offsets(50, seed=3) != tiling.offsets(50, seed=4)
    assert offsets[:20] == tiling.offsets(20, seed=3)
    assert Tiling((8, 8), 4).offsets(5, seed=3) == [0] * 5


@pytest.mark.parametrize("make, message", [
    (lambda: Tiling((8, 4), 5), "must be from 1 to 4"), (lambda: Tiling((8, 8), 0), "must be from 1 to 8"),
    (lambda: Tiling((8, 8), 4, full_view=1.5), "full_view 1.5"), (lambda: Tiling((8, 8), 4, ramp=(-1, 0)), "ramp"),
    (lambda: Tiling((8, 8), 4, full_weight=0.0), "full_weight"),
    (lambda: Tiling((8, 8), 4).windows((8, 16), offset=2), "only circular ones can move")])
def test_impossible_tilings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_seam_shows_as_a_step():
    closed = torch.sin(torch.arange(64) / 64 * 2 * torch.pi).expand(1, 3, 8, 64)
    assert seam(closed.roll(8, -1)) == pytest.approx(1, abs=0.3) and seam(closed[..., :48]) > 10
