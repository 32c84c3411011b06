"""Segmentation classes: colours to class numbers and back (spec 3.5).

Two palettes: the 12 coarse classes that the published model paints, and the 150 scene-parsing classes (with 0 for
unlabeled: 151 entries) that its training labels were made from.
"""

import torch

SEGMENTATION_COLOURS = {
    "unlabeled": (0, 0, 127),
    "person": (255, 127, 255),
    "animal": (255, 127, 0),
    "plant": (127, 255, 0),
    "water": (0, 127, 255),
    "mountain": (0, 255, 127),
    "sky": (127, 255, 255),
    "building": (255, 0, 127),
    "vehicle": (127, 0, 255),
    "wall": (255, 255, 127),
    "road": (127, 0, 0),
    "furniture": (0, 127, 0),
}
SEGMENTATION_NAMES = tuple(SEGMENTATION_COLOURS)
PALETTE_12 = torch.tensor(list(SEGMENTATION_COLOURS.values()), dtype=torch.uint8)  # (12, 3)

# Entry i is the coarse class of fine class i, in base 12.
COARSE_CLASS = torch.tensor([int(digit, 12) for digit in (
    "0976939ab030a1a0b530b840b074093bb0b50000000000ba07007a0a04000470000305b00300"
    "b800780087000708a00a00b000088400004b004708000008000284000000000007000000000")])  # (151,)

# Black for unlabeled, then one rrggbb per class.
PALETTE_150 = torch.tensor(list(bytes.fromhex("000000"
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33ff06528fff8cccff04"
    "ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff08ffd607ffe0ffb8060aff47ff290a07ffff"
    "e0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ffeb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe000"
    "99ff000000ffff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff00"
    "0052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc2"
    "00ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ff"
    "ff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ff"
    "ff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cff"
    "b8ff000085ffffd60019c2c266ff005c00ff")), dtype=torch.uint8).view(151, 3)

CHUNK = 1 << 16  # pixels per step: the (pixels, classes, 3) differences stay below 120 MB with the large palette


def nearest_class(picture_B3HW: torch.Tensor, palette_K3: torch.Tensor = PALETTE_12) -> torch.Tensor:
    """Class of each pixel, the palette colour at the least squared distance (the first one on ties).

    picture_B3HW in [-1, 1] -> class numbers (B, H, W), int64.
    """
    batch, _, height, width = picture_B3HW.shape
    pixels_N3 = (picture_B3HW.float().permute(0, 2, 3, 1).reshape(-1, 3) + 1) / 2 * 255
    palette_K3 = palette_K3.to(pixels_N3)
    classes_N = torch.cat([
        (part_M3[:, None] - palette_K3).square().sum(-1).argmin(1) for part_M3 in pixels_N3.split(CHUNK)])
    return classes_N.view(batch, height, width)


def paint_classes(classes_BHW: torch.Tensor, palette_K3: torch.Tensor = PALETTE_12) -> torch.Tensor:
    """Class numbers (..., H, W) -> their colours (..., 3, H, W), float32 in [0, 1]."""
    return (palette_K3.to(classes_BHW.device)[classes_BHW.long()].float() / 255).movedim(-1, -3)
