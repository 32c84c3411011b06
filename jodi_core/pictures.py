"""Pictures in and out: reading, post-processing per domain, files to look at.

Inside the core a picture is a tensor (B, 3, H, W): float in [0, 1] from `load_picture`, in [-1, 1] beside the
autoencoder (`2 * picture - 1`).
"""

import math
import os

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from .fitting import centre, cover_size
from .segmentation import nearest_class, paint_classes

LONGEST_TILE = 512  # pixels, on a contact sheet


def read_picture(file, name: str = "") -> Image.Image:
    """A decoded PIL picture from a path or an open file that messages call `name`, upright.

    ValueError if it is no readable picture.
    """
    try:
        with Image.open(file) as picture:
            picture.load()
            return ImageOps.exif_transpose(picture)
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = "no known picture format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"cannot read a picture from {name or file}: {reason}") from error


def load_picture(source) -> torch.Tensor:
    """Any picture -> RGB float32 in [0, 1], (B, 3, H, W).

    source: a path, a PIL picture of any mode (alpha is dropped, 16-bit grey keeps its precision), or a float tensor
    (B, C, H, W) in [0, 1] with C = 1, 3 or 4. ValueError for a file that is no picture or a tensor of another shape.
    """
    if isinstance(source, torch.Tensor):
        return _rgb(source)
    if isinstance(source, (str, os.PathLike)):
        source = read_picture(source)
    if source.mode == "F" or source.mode.startswith("I"):
        grey_HW = torch.from_numpy(np.asarray(source).astype(np.float32))
        full_scale = 1.0 if source.mode == "F" else 65535.0  # mode I also comes from 16-bit files
        return _rgb((grey_HW / full_scale).clamp(0, 1)[None, None])
    pixels_HW3 = torch.from_numpy(np.array(source.convert("RGB")))
    return pixels_HW3.permute(2, 0, 1)[None].float() / 255


def _rgb(picture_BCHW: torch.Tensor) -> torch.Tensor:
    if picture_BCHW.ndim != 4 or picture_BCHW.shape[1] not in (1, 3, 4) or 0 in picture_BCHW.shape:
        raise ValueError("a picture tensor has shape (batch, 1, 3 or 4 channels, height, width), "
                         f"not {tuple(picture_BCHW.shape)}")
    picture_BCHW = picture_BCHW.float()
    return picture_BCHW.expand(-1, 3, -1, -1) if picture_BCHW.shape[1] == 1 else picture_BCHW[:, :3]


def to_rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB of a picture of any mode, as `load_picture` reads it: PIL alone would clip 16-bit grey to white."""
    deep = picture.mode == "F" or picture.mode.startswith("I")
    return to_pil(load_picture(picture)[0]) if deep else picture.convert("RGB")


def fit_for_training(picture: Image.Image, target: tuple[int, int]) -> torch.Tensor:
    """As `fit`, but bicubic on 8-bit pixels, as the training pictures were (spec 8.1): (3, H, W) in [-1, 1]."""
    height, width = cover_size((picture.height, picture.width), target)
    cover = to_rgb(picture).resize((width, height), Image.Resampling.BICUBIC)
    top, left = centre((height, width), target)
    crop = cover.crop((left, top, left + target[1], top + target[0]))
    return load_picture(crop)[0] * 2 - 1


def postprocess(domain: str, picture_B3HW: torch.Tensor) -> torch.Tensor:
    """A decoded picture (B, 3, H, W) in [-1, 1] -> what its domain means, float32 in [0, 1], 3 channels (spec 3.5).

    Lineart and edge become grey, depth grey and stretched to the full range of each sample, normals unit vectors,
    segmentation the nearest class colours; any other domain is a plain picture. ValueError unless 4-D.
    """
    if picture_B3HW.ndim != 4 or picture_B3HW.shape[1] != 3:
        raise ValueError(f"post-processing needs pictures (batch, 3, height, width), not {tuple(picture_B3HW.shape)}")
    picture_B3HW = picture_B3HW.float()
    if domain in ("lineart", "edge"):
        return _grey((picture_B3HW.mean(1, keepdim=True) + 1) / 2)
    if domain == "depth":
        return _grey(_full_range(picture_B3HW.mean(1, keepdim=True)))
    if domain == "normal":
        return (F.normalize(picture_B3HW, dim=1) + 1) / 2
    if domain == "segmentation":
        return paint_classes(nearest_class(picture_B3HW))
    return (picture_B3HW + 1) / 2


def _grey(picture_B1HW: torch.Tensor) -> torch.Tensor:
    return picture_B1HW.expand(-1, 3, -1, -1).contiguous()


def _full_range(picture_B1HW: torch.Tensor) -> torch.Tensor:
    low_B111, high_B111 = picture_B1HW.aminmax(dim=-1, keepdim=True)
    low_B111, high_B111 = low_B111.amin(2, keepdim=True), high_B111.amax(2, keepdim=True)
    span_B111 = high_B111 - low_B111
    # A constant map has no range; the original's 0/0 is not reproduced.
    return torch.where(span_B111 > 0, (picture_B1HW - low_B111) / span_B111, 0.0)


def to_pil(picture_3HW: torch.Tensor) -> Image.Image:
    """A picture (3, H, W) in [0, 1] -> 8-bit RGB, rounded to nearest."""
    pixels_HW3 = (picture_3HW.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels_HW3.contiguous().cpu().numpy())


def to_pil_16bit(picture_3HW: torch.Tensor) -> Image.Image:
    """The first channel of a grey picture (3, H, W) in [0, 1] -> 16-bit grey, for depth maps saved as PNG."""
    levels_HW = (picture_3HW[0].detach().double().clamp(0, 1) * 65535).round()
    return Image.fromarray(levels_HW.cpu().numpy().astype(np.uint16))


def contact_sheet(pictures: dict[str, torch.Tensor]) -> Image.Image:
    """All pictures on one labelled sheet, sample by sample, within a sample in the order of the dictionary.

    pictures: name -> (B, 3, H, W) in [0, 1], the same B for all. A sample takes one row, but a single sample of more
    than four pictures takes two. ValueError if there is nothing to show or the batch sizes disagree.
    """
    batches = {len(picture_B3HW) for picture_B3HW in pictures.values()}
    if len(batches) != 1 or 0 in batches:
        raise ValueError(f"a contact sheet needs pictures of one batch size, not {sorted(batches)}")
    batch = batches.pop()
    columns = math.ceil(len(pictures) / 2) if batch == 1 and len(pictures) > 4 else len(pictures)
    tiles = []
    for sample in range(batch):
        for name, picture_B3HW in pictures.items():
            tile = to_pil(picture_B3HW[sample])
            tile.thumbnail((LONGEST_TILE, LONGEST_TILE), Image.Resampling.LANCZOS)
            tiles.append((name, tile))
    return tile_sheet(tiles, columns)


def tile_sheet(tiles: list[tuple[str, Image.Image]], columns: int) -> Image.Image:
    """Labelled pictures of any sizes, row by row, on one sheet."""
    width, height = (max(getattr(tile, side) for _, tile in tiles) for side in ("width", "height"))
    font_size = max(11, min(width, height) // 16)
    font = ImageFont.load_default(font_size)
    label, gap = font_size * 3 // 2, max(4, width // 64)
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + label + gap) + gap), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    for number, (name, tile) in enumerate(tiles):
        row, column = divmod(number, columns)
        left, top = gap + column * (width + gap), gap + row * (height + label + gap)
        draw.text((left + width // 2, top + label // 2), name, fill=(235, 235, 235), font=font, anchor="mm")
        sheet.paste(tile, (left + (width - tile.width) // 2, top + label))
    return sheet
