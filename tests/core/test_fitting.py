"""Pictures to a size and back: what was made lies over the picture, pixel for pixel."""

import pytest
import torch

from jodi_core.fitting import FIT_MODES, Fit, fade, widen

SIZES = [(64, 64), (50, 91), (97, 33), (300, 200), (1, 7)]


def ramps(height, width):
    """Two channels whose values are the relative position: they show where a pixel comes from."""
    y, x = ((torch.arange(side) + 0.5) / side for side in (height, width))
    return torch.stack([y[:, None].expand(height, width), x.expand(height, width)])[None]


@pytest.mark.parametrize("source", SIZES)
@pytest.mark.parametrize("mode", FIT_MODES)
def test_there_and_back_stays_in_place(mode, source):
    way = Fit(mode, source, (48, 64))
    there = way.apply(ramps(*source))
    back = way.restore(way.cut_padding(there))
    assert there.shape[-2:] == (48, 64) and back.shape[-2:] == source
    seen = back.sum(1, keepdim=True) > 0
    # Half a cell of the smaller grid, at most: what resizing itself smears near the border.
    bound = torch.tensor([1.0 / min(side, target) for side, target in zip(source, (48, 64))]).view(1, 2, 1, 1)
    assert ((back - ramps(*source)).abs() * seen <= bound + 0.01).all()
    assert seen.all() or mode == "crop"


@pytest.mark.parametrize("mode, black", [("crop", 0.5), ("pad", 0.0), ("stretch", 0.0)])
def test_what_crop_cut_away_is_black(mode, black):
    """A square model sees half of a picture that is twice as wide as high."""
    way = Fit(mode, (40, 80), (32, 32))
    back = way.restore(way.cut_padding(way.apply(torch.ones(1, 1, 40, 80))))
    assert float((back == 0).float().mean()) == black and (back[..., 20:60] > 0.99).all()


def test_classes_are_not_mixed():
    way = Fit("stretch", (90, 50), (32, 32))
    made = torch.randint(0, 3, (1, 1, 32, 32)).float()
    assert set(way.restore(made, nearest=True).unique().tolist()) <= {0.0, 1.0, 2.0}


def test_a_hair_of_a_picture():
    assert Fit("pad", (3, 9000), (64, 64)).apply(torch.rand(1, 3, 3, 9000)).shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="too elongated"):
        Fit("crop", (3, 90000), (1024, 1024)).apply(torch.rand(1, 3, 3, 90000))


def test_masks_fade_around_what_they_cover():
    mask = torch.zeros(1, 1, 3, 8)
    mask[..., 1, 2] = 1
    assert fade(mask, 3)[0, 0, 1].tolist() == pytest.approx([0.5, 0.75, 1, 0.75, 0.5, 0.25, 0, 0])
    assert torch.equal(fade(mask, 0), mask)


def test_a_picture_in_the_middle_of_its_mirror_images():
    picture = torch.arange(1.0, 4).view(1, 1, 1, 3).expand(2, 3, 4, 3)
    canvas, mask = widen(picture, 12)
    assert canvas[1, 2, 3].tolist() == [3, 3, 2, 1, 1, 2, 3, 3, 2, 1, 1, 2]
    assert mask.shape == (2, 1, 4, 12) and mask[0, 0, 0].tolist() == [1] * 4 + [0] * 3 + [1] * 5
    assert widen(picture, 12, copies=1)[0][0, 0, 0].tolist() == [0, 3, 2, 1, 1, 2, 3, 3, 2, 1, 0, 0]
    assert torch.equal(widen(picture, 3)[0], picture) and not widen(picture, 3)[1].any()
    with pytest.raises(ValueError, match="2 pixels wide has no room for a picture of 3"):
        widen(picture, 2)
