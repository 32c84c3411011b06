"""check-data on damaged and odd pictures: each is named with its file, and harmless ones are not."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jodi_core.segmentation import PALETTE_12, PALETTE_150
from training.check_data import check

from toy_folder import change, config_of, cut, file, paint, pixels, problems


def as_jpeg(path: Path) -> None:
    Image.open(path).save(path, "JPEG", quality=20)


def flip_in_last_chunk(path: Path) -> None:
    """Changes the checksum of a PNG's pixels."""
    content = bytearray(path.read_bytes())
    content[content.rindex(b"IEND") - 6] ^= 255
    path.write_bytes(content)


def sixteen_bit_rgb(path: Path) -> None:
    rows = b"".join(b"\0" + (pixels_W3.astype(">u2") * 257).tobytes() for pixels_W3 in pixels(path))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)),
                       (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


def two_frames(path: Path) -> None:
    Image.open(path).save(path, "PNG", save_all=True, append_images=[Image.new("RGB", (64, 64))])


def see_through(path: Path) -> None:
    picture = Image.open(path).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(path)


FILES = {    # what is done to the picture -> (its domain, kind, is it a fault)
    "deleted": (Path.unlink, "depth", "missing file", True),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "depth", "unreadable file", True),
    "empty": (lambda path: path.write_bytes(b""), "image", "corrupt picture", True),
    "text": (lambda path: path.write_text("no picture"), "normal", "corrupt picture", True),
    "cut": (lambda path: cut(path, 0.6), "image", "corrupt picture", True),
    "cut JPEG": (lambda path: (as_jpeg(path), cut(path, 0.6)), "albedo", "corrupt picture", True),
    "no header": (lambda path: cut(path, 0.01), "image", "corrupt picture", True),
    "elongated": (lambda path: paint(path, np.zeros((1, 8_000_000, 3), np.uint8)), "albedo", "unusable picture", True),
    "flipped bits": (flip_in_last_chunk, "image", "checksum", False),
    "animated": (two_frames, "image", "animated", False),
    "16-bit grey": (lambda path: paint(path, pixels(path)[..., 0].astype(np.uint16) * 257), "depth", "more than 8 bits",
                    False),
    "16-bit RGB": (sixteen_bit_rgb, "albedo", "more than 8 bits", False),
    "transparent": (see_through, "image", "transparent", False),
    "CMYK": (lambda path: Image.open(path).convert("CMYK").save(path, "TIFF"), "image", "CMYK", False),
    "constant": (lambda path: paint(path, np.full((64, 64, 3), 90, np.uint8)), "albedo", "constant", False),
    "heat map": (lambda path: paint(path, pixels(path) * np.uint8([1, 0, 0])), "depth", "not grey", False),
    "no unit length": (lambda path: paint(path, pixels(path) // 2 + np.uint8(64)), "normal", "no unit normals", False),
    "facing away": (lambda path: paint(path, 255 - pixels(path)), "normal", "no unit normals", False),
    "JPEG classes": (as_jpeg, "segmentation", "no class colours", False),
    "dark lines": (lambda path: paint(path, 255 - pixels(path)), "edge", "other lines", False),
    "no ground": (lambda path: paint(path, np.maximum(pixels(path), np.arange(64, dtype=np.uint8)[:, None, None] + 80)),
                  "openpose", "no black ground", False),
    "narrower": (lambda path: paint(path, pixels(path)[:, :60]), "lineart", "other shape", False),
}


@pytest.mark.parametrize("damage", FILES)
def test_a_damaged_file_is_named(folder, damage):
    harm, domain, kind, fault = FILES[damage]
    path = file(folder, 2, domain)
    harm(path)
    report = check(config_of(folder))
    assert problems(report) == [(kind, domain, 3, path.name)]
    problem, = report.problems
    assert problem.fault == fault and problem.file == str(path) and problem.set == str(folder)
    assert report.domains[domain].unreadable == fault


def test_harmless_forms_are_counted_and_not_warned_of(folder):
    for line, form in enumerate(("P", "L", "RGBA", "1")):
        Image.open(file(folder, line, "edge")).convert(form).save(file(folder, line, "edge"))
    report = check(config_of(folder))
    assert report.problems == []
    assert report.domains["edge"].forms == {"PNG P": 1, "PNG L": 1, "PNG RGBA": 1, "PNG 1": 1, "PNG RGB": 2}


@pytest.mark.parametrize("palette, reason", [(PALETTE_150, "150 scene-parsing classes"), (None, "class numbers"),
                                             (PALETTE_12 // 2, "mixed by a resize")])
def test_other_class_colours_are_recognised(folder, palette, reason):
    path = file(folder, 0, "segmentation")
    colours, numbers_HW = np.unique(pixels(path).reshape(-1, 3), axis=0, return_inverse=True)
    numbers_HW = numbers_HW.reshape(64, 64)
    numbers = np.repeat(np.arange(12, dtype=np.uint8)[:, None], 3, 1)
    paint(path, (numbers if palette is None else palette.numpy())[numbers_HW])
    problem, = check(config_of(folder)).problems
    assert problem.kind == "no class colours" and reason in problem.message


def test_bicubic_class_colours_are_not_the_files_fault(folder):
    change(folder, 0, info={"height": 48, "width": 80})
    report = check(config_of(folder, data={"segmentation": "bicubic"}, batch=1, micro_batch=1))
    assert [problem.kind for problem in report.problems] == ["other size"]
