"""Pictures in and out: every kind of file, sizes at the edges, post-processing, sheets."""

import numpy as np
import pytest
import torch
from PIL import Image

from jodi_core.fitting import cover_size, fit, resize
from jodi_core.pictures import (contact_sheet, fit_for_training, load_picture, postprocess, read_picture, to_pil,
                                to_pil_16bit)
from jodi_core.segmentation import (COARSE_CLASS, PALETTE_12, PALETTE_150, SEGMENTATION_NAMES, nearest_class,
                                    paint_classes)

RED = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)


@pytest.mark.parametrize("picture, expected", [
    (Image.new("L", (5, 4), 51), (0.2, 0.2, 0.2)),
    (Image.new("RGBA", (5, 4), (255, 0, 51, 0)), (1.0, 0.0, 0.2)),
    (Image.new("LA", (5, 4), (51, 9)), (0.2, 0.2, 0.2)),
    (Image.new("1", (5, 4), 1), (1.0, 1.0, 1.0)),
    (Image.new("RGB", (5, 4), (0, 255, 51)).quantize(4), (0.0, 1.0, 0.2)),
    (Image.new("I", (5, 4), 13107), (0.2, 0.2, 0.2)),
    (Image.fromarray(np.full((4, 5), 13107, np.uint16)), (0.2, 0.2, 0.2)),
    (Image.new("F", (5, 4), 0.2), (0.2, 0.2, 0.2)),
])
def test_every_mode_becomes_rgb(picture, expected):
    tensor = load_picture(picture)
    assert tensor.shape == (1, 3, 4, 5) and tensor.dtype == torch.float32
    torch.testing.assert_close(tensor[0, :, 1, 1], torch.tensor(expected))


def test_16bit_file_keeps_its_precision(tmp_path):
    ramp = torch.linspace(0, 1, 4096).view(1, 1, 64, 64).expand(-1, 3, -1, -1)
    to_pil_16bit(ramp[0]).save(tmp_path / "depth.png")
    assert (load_picture(tmp_path / "depth.png") - ramp).abs().max() < 1 / 65535


def test_camera_rotation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by a quarter turn
    Image.new("RGB", (6, 3)).save(tmp_path / "turned.jpg", exif=exif)
    assert load_picture(tmp_path / "turned.jpg").shape == (1, 3, 6, 3)


@pytest.mark.parametrize("content", [b"", b"no picture at all", "truncated"])
def test_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    if content == "truncated":
        Image.effect_noise((64, 64), 50).save(path)
        content = path.read_bytes()[:500]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot read a picture from .*broken.png"):
        read_picture(path)
    with pytest.raises(FileNotFoundError):
        read_picture(tmp_path / "absent.png")


def test_tensors_in():
    assert load_picture(torch.rand(2, 1, 4, 5)).shape == (2, 3, 4, 5)
    rgba = torch.rand(1, 4, 4, 5)
    assert torch.equal(load_picture(rgba), rgba[:, :3])
    for shape in ((4, 5, 3), (1, 5, 4, 3), (0, 3, 4, 5)):
        with pytest.raises(ValueError, match="a picture tensor has shape"):
            load_picture(torch.zeros(shape))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (37, 53), (300, 8000), (96, 128)])
def test_fit_covers_and_keeps_the_centre(size):
    picture = RED.expand(1, 3, *size).clone()
    fitted = fit(picture, (96, 128))
    assert fitted.shape == (1, 3, 96, 128)
    assert (fitted - RED).abs().max() < 1e-6


def test_fit_takes_the_middle():
    columns = torch.arange(30.0).expand(1, 3, 10, 30)
    torch.testing.assert_close(fit(columns, (10, 10)), columns[..., 10:20])


def test_large_picture_fits():
    assert fit(load_picture(Image.new("RGB", (8000, 8000), (255, 0, 0))), (128, 128)).shape == (1, 3, 128, 128)


def test_too_elongated_picture_says_so():
    with pytest.raises(ValueError, match="8000x1 pixels is too elongated"):
        fit(torch.zeros(1, 3, 1, 8000), (1024, 1024))
    with pytest.raises(ValueError, match="too elongated"):
        fit_for_training(Image.new("RGB", (8000, 1)), (1024, 1024))


@pytest.mark.parametrize("mode", ["uint8", "uint16", "int32", "float32"])
def test_deep_grey_pictures_keep_their_range_in_training(mode):
    ramp_HW = np.tile(np.linspace(0, 1, 64), (64, 1))
    levels = {"uint8": 255, "float32": 1}.get(mode, 65535)
    fitted = fit_for_training(Image.fromarray((ramp_HW * levels).astype(mode)), (64, 64))
    assert (fitted - torch.from_numpy(ramp_HW * 2 - 1)).abs().max() < 0.02


def test_cover_never_falls_short():
    for height in range(1, 60):
        for width in range(1, 60):
            cover = cover_size((height, width), (96, 128))
            assert cover[0] == 96 and cover[1] >= 128 or cover[0] >= 96 and cover[1] == 128


def test_resize_stretches():
    picture = torch.rand(2, 3, 96, 128)
    assert resize(picture, (90, 125)).shape == (2, 3, 90, 125)
    assert resize(picture, (96, 128)) is picture


def test_postprocess_per_domain():
    picture = torch.rand(2, 3, 8, 9) * 2 - 1
    for domain in ("image", "albedo", "openpose", "something_new"):
        torch.testing.assert_close(postprocess(domain, picture), (picture + 1) / 2)
    for domain in ("lineart", "edge", "depth"):
        grey = postprocess(domain, picture)
        assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    depth = postprocess("depth", picture)
    assert depth.amin((1, 2, 3)).tolist() == [0, 0] and depth.amax((1, 2, 3)).tolist() == [1, 1]
    lengths = (postprocess("normal", picture) * 2 - 1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    assert postprocess("image", picture.bfloat16()).dtype == torch.float32


def test_constant_depth_is_zero():
    assert postprocess("depth", torch.full((1, 3, 4, 4), 0.3)).tolist() == torch.zeros(1, 3, 4, 4).tolist()


def test_postprocess_refuses_other_shapes():
    with pytest.raises(ValueError, match="post-processing needs pictures"):
        postprocess("depth", torch.zeros(3, 4, 4))


def test_segmentation_goes_to_class_colours_and_back():
    classes = torch.randint(len(SEGMENTATION_NAMES), (2, 300, 300))  # more pixels than one chunk
    picture = paint_classes(classes) * 2 - 1
    noisy = picture + torch.rand_like(picture) * 0.2 - 0.1
    assert torch.equal(nearest_class(noisy), classes)
    torch.testing.assert_close(postprocess("segmentation", noisy), paint_classes(classes))


def test_nearest_class_takes_the_first_of_equal_colours():
    twins = PALETTE_150[[7, 7, 9]]
    assert nearest_class(paint_classes(torch.tensor([[[0, 1, 2]]]), twins) * 2 - 1, twins).tolist() == [[[0, 0, 2]]]


def test_palettes_are_complete():
    assert len(SEGMENTATION_NAMES) == len(PALETTE_12) == 12
    assert PALETTE_150.shape == (151, 3) and COARSE_CLASS.shape == (151,)
    assert {SEGMENTATION_NAMES[COARSE_CLASS[fine]] for fine in (3, 13, 27, 127)} == {"sky", "person", "water", "animal"}


def test_8bit_is_rounded():
    levels = np.asarray(to_pil(torch.full((3, 2, 2), 0.999)))
    assert levels.tolist() == [[[255] * 3] * 2] * 2


def test_contact_sheet_shows_every_picture_labelled():
    colours = {"image": (1.0, 0, 0), "depth": (0, 1.0, 0), "normal": (0, 0, 1.0)}
    pictures = {name: torch.tensor(rgb).view(1, 3, 1, 1).expand(2, 3, 64, 96) for name, rgb in colours.items()}
    sheet = np.asarray(contact_sheet(pictures))
    for rgb in colours.values():
        found = (sheet == np.array(rgb) * 255).all(-1).sum()
        assert found == 2 * 64 * 96
    text = (sheet.min(-1) > 150).sum()
    assert text > 100, "no labels"
    assert sheet.shape[1] > 3 * 96 and sheet.shape[0] > 2 * 64


def test_contact_sheet_of_one_sample_takes_two_rows_and_shrinks():
    sheet = contact_sheet({str(i): torch.rand(1, 3, 1024, 512) for i in range(8)})
    assert 4 * 256 < sheet.width < 5 * 256 + 100 and 2 * 512 < sheet.height < 1300


def test_contact_sheet_refuses_nothing_and_disagreeing_batches():
    for pictures in ({}, {"a": torch.rand(1, 3, 4, 4), "b": torch.rand(2, 3, 4, 4)}):
        with pytest.raises(ValueError, match="one batch size"):
            contact_sheet(pictures)
