"""One picture of a data set, read as training reads it: what it is, what it holds, and what is odd about it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageOps

from jodi_core.pictures import read_picture, to_pil
from jodi_core.segmentation import PALETTE_12, PALETTE_150

from .samples import bring_to_size

LOOKED_AT = 1 << 16    # pixels of a picture that statistics are made of
GREY = 0.03            # mean spread of the channels (of 0..1) up to which a picture counts as grey
LENGTH, LENGTHS = 0.2, 0.25    # normals: this far from length 1 is off, and so large a part may be off
COLOUR, COLOURS = 6, 0.02      # segmentation: levels of 255 beside a class colour, and the part that may lie there
DARK = 0.05            # an openpose drawing without anything brighter is empty
LINES, DARK_LINES = "light on dark", "dark on light"


@dataclass(frozen=True)
class Finding:
    """Something wrong. A fault makes training skip the sample, or stop; a warning does not."""

    kind: str
    message: str
    fault: bool = False


class Unreadable(ValueError):
    """No picture that training could read; holds the finding."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.finding = Finding(kind, message, fault=True)


@dataclass
class Look:
    """What a picture file is and holds."""

    size: tuple[int, int]              # (height, width), upright
    form: str                          # file format and kind of pixels, as "PNG RGB"
    tile: Image.Image | None           # as training sees it, small, if it was asked for
    findings: list[Finding] = field(default_factory=list)
    mean: float = 0.0
    square: float = 0.0                # mean of the squares
    low: float = 0.0
    high: float = 0.0
    ground: str = ""                   # lines: which is drawn on which
    empty: bool = False                # openpose: nobody


def look_at(domain: str, content: bytes, target: tuple[int, int], segmentation: str, tile: int = 0) -> Look:
    """Decode a file and bring it to size. Unreadable if training could not do so.

    tile: longer side, in pixels, of the small picture that is kept; 0: none.
    """
    picture, form, findings = decode(content)
    try:
        values_3HW = (bring_to_size(domain, picture, target, segmentation).numpy() + 1) / 2
    except ValueError as error:
        raise Unreadable("unusable picture", str(error)) from error
    small = ImageOps.contain(to_pil(torch.from_numpy(values_3HW)), (tile, tile)) if tile else None
    look = Look((picture.height, picture.width), form, small, findings)
    step = max(1, int((values_3HW[0].size / LOOKED_AT) ** 0.5))
    pixels_3N = values_3HW[:, ::step, ::step].reshape(3, -1).astype(np.float64)
    look.mean, look.square = float(pixels_3N.mean()), float(np.square(pixels_3N).mean())
    look.low, look.high = float(values_3HW.min()), float(values_3HW.max())
    describe(domain, look, pixels_3N)
    if domain == "segmentation" and segmentation != "nearest":    # its mixed colours are not the file's
        values_3HW = (bring_to_size(domain, picture, target, "nearest").numpy() + 1) / 2
        pixels_3N = values_3HW[:, ::step, ::step].reshape(3, -1)
    look.findings += suspicions(domain, look, pixels_3N)
    return look


# ---- the file -----------------------------------------------------------------------------------------------------

def decode(content: bytes) -> tuple[Image.Image, str, list[Finding]]:
    """(upright picture, format and kind of pixels, what happens to those that are not plain)."""
    if not content:
        raise Unreadable("corrupt picture", "the file is empty")
    try:
        picture = read_picture(BytesIO(content))
    except ValueError as error:
        cause = error.__cause__
        if isinstance(cause, Image.UnidentifiedImageError):
            raise Unreadable("corrupt picture", "no picture, or its beginning is damaged") from error
        raise Unreadable("corrupt picture", str(cause or error)) from error
    with Image.open(BytesIO(content)) as opened:
        deep = opened.mode == "F" or opened.mode.startswith("I") or ";16" in str(opened.tile)
        form = f"{opened.format} {opened.mode}" + (" 16 bits" if deep and opened.mode == "RGB" else "")
        findings = [Finding("checksum", "its pixels can be read, but a checksum in the file is wrong: it was damaged")
                    ] if opened.format == "PNG" and not checksums_fit(content) else []
        frames = getattr(opened, "n_frames", 1)
    if frames > 1:
        findings.append(Finding("animated", f"only the first of its {frames} pictures is used"))
    if deep:
        findings.append(Finding("more than 8 bits", "its floats are cut to 0..1 and brought to 8 bits"
                                if picture.mode == "F" else "its 16 bits are brought to 8"))
    if picture.mode == "CMYK":
        findings.append(Finding("CMYK", "its inks are turned to RGB without a colour profile: save it as RGB"))
    share = transparent(picture)
    if share:
        findings.append(Finding("transparent", f"{share:.0%} of its pixels are not opaque; transparency is dropped and "
                                "whatever colours lie beneath are trained"))
    return picture, form, findings


def checksums_fit(content: bytes) -> bool:
    """Of a PNG file whose pixels could be read."""
    try:
        with Image.open(BytesIO(content)) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def transparent(picture: Image.Image) -> float:
    """Share of pixels that are not opaque."""
    if not picture.has_transparency_data:
        return 0.0
    histogram = picture.convert("RGBA").getchannel("A").histogram()
    return 1 - histogram[255] / sum(histogram)


# ---- what it shows ------------------------------------------------------------------------------------------------

def describe(domain: str, look: Look, pixels_3N: np.ndarray) -> None:
    if domain in ("lineart", "edge"):
        look.ground = DARK_LINES if np.median(pixels_3N.mean(0)) > 0.5 else LINES
    look.empty = domain == "openpose" and look.high < DARK


def suspicions(domain: str, look: Look, pixels_3N: np.ndarray) -> list[Finding]:
    found = [check(pixels_3N) for check in CHECKS.get(domain, ())]
    if look.high - look.low < 2.5 / 255 and not look.empty:
        found.append(Finding("constant", f"every pixel is alike ({255 * look.mean:.0f} of 255)"))
    return [finding for finding in found if finding]


def grey(pixels_3N: np.ndarray) -> Finding | None:
    spread = float(np.ptp(pixels_3N, axis=0).mean())
    if spread > GREY:
        return Finding("not grey", f"its channels differ by {spread:.2f} of 1 on average: a coloured rendering?")
    return None


def unit_normals(pixels_3N: np.ndarray) -> Finding | None:
    length_N = np.linalg.norm(2 * pixels_3N - 1, axis=0)
    off = float((np.abs(length_N - 1) > LENGTH).mean())
    away = float((2 * pixels_3N[2] - 1 < -LENGTH).mean())
    if off > LENGTHS:
        return Finding("no unit normals", f"{off:.0%} of the vectors 2 rgb - 1 are not of length 1 (half of all are "
                       f"longer than {np.median(length_N):.2f})")
    if away > LENGTHS:
        return Finding("no unit normals", f"{away:.0%} of the vectors 2 rgb - 1 point away from the viewer, whose side "
                       "is blue: channels in another order?")
    return None


def class_colours(pixels_3N: np.ndarray) -> Finding | None:
    levels_N3, counts_N = np.unique((255 * pixels_3N).round().astype(np.int32).T, axis=0, return_counts=True)

    def beside(palette_K3) -> float:
        """Share of pixels without a colour of the palette."""
        near_N = np.zeros(len(levels_N3), bool)
        for colour_3 in palette_K3.numpy().astype(np.int32):
            near_N |= (np.abs(levels_N3 - colour_3) <= COLOUR).all(1)
        return float(counts_N[~near_N].sum() / counts_N.sum())
    share = beside(PALETTE_12)
    if share <= COLOURS:
        return None
    if levels_N3.max() < len(PALETTE_150) and not np.ptp(levels_N3, axis=1).any():
        reason = "class numbers in place of colours?"
    elif beside(PALETTE_150) <= COLOURS:
        reason = "they are those of the 150 scene-parsing classes"
    else:
        reason = "mixed by a resize or by JPEG?"
    return Finding("no class colours", f"{share:.0%} of the pixels have none of the 12 class colours: {reason}")


def dark_ground(pixels_3N: np.ndarray) -> Finding | None:
    ground = float(np.median(pixels_3N.max(0)))
    if ground > 0.2:
        return Finding("no black ground", f"half of its pixels are brighter than {ground:.2f} of 1; skeletons are "
                       "drawn on black")
    return None


CHECKS: dict[str, tuple[Callable[[np.ndarray], Finding | None], ...]] = {
    "lineart": (grey,), "edge": (grey,), "depth": (grey,), "normal": (unit_normals,), "segmentation": (class_colours,),
    "openpose": (dark_ground,)}
