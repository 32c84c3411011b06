"""Thumbnails of the workflows in which a text is made of a picture or a picture of a text: drawn, with scenes
and captions of the toy world, to say what the workflow is for.

    python tests/host/text_thumbnails.py        writes workflows/NAME.jpg
"""

import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from thumbnails import compose  # noqa: E402

from training.captions import caption  # noqa: E402
from training.scene import sample_scene  # noqa: E402
from training.world import render  # noqa: E402

SIDE, FIRST, SECOND = 320, 20_000_012, 20_000_017
PAPER, INK, MADE = (236, 232, 222), (40, 40, 44), (176, 58, 46)


def scene(seed: int, domain: str = "image") -> Image.Image:
    picture_3HW = render([sample_scene(seed)], SIDE, SIDE)[domain][0]
    return Image.fromarray(picture_3HW.permute(1, 2, 0).numpy()).convert("RGB")


def card(text: str, made: bool = True) -> Image.Image:
    """A text on paper; red: what the model writes. Parts in brackets are red, others black, if there are any."""
    sheet = Image.new("RGB", (SIDE, SIDE), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(24)
    marked = "[" in text
    y = 28
    for line in [row for part in text.split("\n") for row in textwrap.wrap(part, 23) or [""]]:
        x = 22
        for word in line.split(" "):
            red = "[" in word if marked else made
            word = word.replace("[", "").replace("]", "")
            draw.text((x, y), word, MADE if red else INK, font)
            x += draw.textlength(word + " ", font)
        y += 34
    return sheet


def sentence(seed: int) -> str:
    return caption(sample_scene(seed), seed, shorten=0)


THUMBNAILS = {
    "dual_diffusion_picture": lambda: [card(sentence(FIRST), made=False), scene(FIRST)],
    "caption_folder": lambda: [scene(FIRST), card(sentence(FIRST)), scene(SECOND), card(sentence(SECOND))],
    "ask_picture": lambda: [scene(FIRST), card(QUESTIONS)],
    "fill_blanks": lambda: [scene(SECOND), card(BLANKS)],
    "caption_label_dataset": lambda: [scene(FIRST), card(sentence(FIRST)), scene(FIRST, "depth"),
                                      scene(FIRST, "normal")],
}
QUESTIONS = "What colour is the house?\n[red]\n\nIs there a dog?\n[no]"
BLANKS = "a [red] car in the [middle] on yellow [sand]"


def main() -> None:
    for name, pictures in THUMBNAILS.items():
        compose(pictures()).save(ROOT / "workflows" / f"{name}.jpg", quality=90)
        print(name, flush=True)


if __name__ == "__main__":
    main()
