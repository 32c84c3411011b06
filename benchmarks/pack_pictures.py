"""Icon and banner of the pack, made with the tiny model.

    python benchmarks/pack_pictures.py            writes docs/images/icon.png and docs/images/banner.png
"""

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from jodi_core import JodiPipeline  # noqa: E402
from jodi_core.pictures import to_pil  # noqa: E402

PROMPT = ("a red house on the left, a person in a yellow shirt waving on the right, under a clear blue sky, on green "
          "grass")
SEED = 4
ICON = 400
BANNER, TILE, GAP = (1260, 540), 254, 8    # 21:9
STRIPS = ("image", "normal", "segmentation", "depth")


def strips(pictures: dict[str, Image.Image], side: int) -> Image.Image:
    """One scene that changes from domain to domain in slanted strips."""
    scaled = [pictures[name].resize((side, side), Image.Resampling.BICUBIC) for name in STRIPS]
    icon = Image.new("RGB", (side, side))
    for row in range(side):
        shift = (side - 2 * row) // 8
        edges = [0, *(side * edge // len(scaled) + shift for edge in range(1, len(scaled))), side]
        for picture, left, right in zip(scaled, edges, edges[1:]):
            icon.paste(picture.crop((left, row, right, row + 1)), (left, row))
    return icon


def tiles(pictures: dict[str, Image.Image]) -> Image.Image:
    """All eight domains in two rows."""
    banner = Image.new("RGB", BANNER, (24, 24, 24))
    left, top = ((side - count * TILE - (count - 1) * GAP) // 2 for side, count in zip(BANNER, (4, 2)))
    for number, picture in enumerate(pictures.values()):
        row, column = divmod(number, 4)
        banner.paste(picture.resize((TILE, TILE), Image.Resampling.BICUBIC),
                     (left + column * (TILE + GAP), top + row * (TILE + GAP)))
    return banner


def main() -> None:
    made = JodiPipeline.from_pretrained("tiny")(PROMPT, guidance=3.0, seed=SEED).pictures
    pictures = {name: to_pil(picture_B3HW[0]) for name, picture_B3HW in made.items()}
    strips(pictures, ICON).save(ROOT / "docs" / "images" / "icon.png", optimize=True)
    tiles(pictures).save(ROOT / "docs" / "images" / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
