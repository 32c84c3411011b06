"""Thumbnails of the workflows, made by running each of them on a real ComfyUI with the tiny model.

    python tests/host/thumbnails.py --comfyui FOLDER [NAME ...]        writes workflows/NAME.jpg
"""

import argparse
import base64
import io
import json
import math
import struct
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from scripts.comfy import Comfy  # noqa: E402
from scripts.workflow import to_prompt  # noqa: E402

WIDTH, HEIGHT, GAP = 640, 360, 8
GROUND = (24, 24, 24)
MOST = 8    # pictures on a thumbnail
SIDE, PAPER, GIVEN, WRITTEN = 320, (236, 232, 222), (40, 40, 44), (176, 58, 46)    # of a text


def cell_size(count: int, rows: int) -> tuple[int, int]:
    """(width, height) of each of `count` pictures in `rows` rows."""
    columns = math.ceil(count / rows)
    return (WIDTH - GAP) // columns - GAP, (HEIGHT - GAP) // rows - GAP


def scale_into(picture: Image.Image, cell: tuple[int, int]) -> float:
    return min(cell[0] / picture.width, cell[1] / picture.height)


def compose(pictures: list[Image.Image]) -> Image.Image:
    """Pictures in as many rows as show most of them, each as large as fits into its cell."""
    def shown(rows: int) -> float:
        cell = cell_size(len(pictures), rows)
        return sum(scale_into(picture, cell) ** 2 * picture.width * picture.height for picture in pictures)
    rows = max(range(1, len(pictures) + 1), key=shown)
    columns, cell = math.ceil(len(pictures) / rows), cell_size(len(pictures), rows)
    sheet = Image.new("RGB", (WIDTH, HEIGHT), GROUND)
    for number, picture in enumerate(pictures):
        scale = scale_into(picture, cell)
        picture = picture.resize((int(picture.width * scale), int(picture.height * scale)), Image.Resampling.LANCZOS)
        row, column = divmod(number, columns)
        sheet.paste(picture, (GAP + column * (cell[0] + GAP) + (cell[0] - picture.width) // 2,
                              GAP + row * (cell[1] + GAP) + (cell[1] - picture.height) // 2))
    return sheet


def turned(points_N3: np.ndarray, angle: float) -> np.ndarray:
    """Points in front of the viewer, who looks along -z, turned about the vertical axis through their middle."""
    centre_3 = np.median(points_N3, axis=0)
    x, y, z = (points_N3 - centre_3).T
    return np.stack([x * np.cos(angle) + z * np.sin(angle), y, z * np.cos(angle) - x * np.sin(angle)], 1) + centre_3


def from_above(points_N3: np.ndarray, angle: float = 0.9) -> np.ndarray:
    """Points around the viewer as seen from above and far enough away to see most of them."""
    x, y, z = points_N3.T
    away = 2.2 * np.quantile(np.hypot(x, z), 0.9)
    return np.stack([x, y * np.cos(angle) - z * np.sin(angle), y * np.sin(angle) + z * np.cos(angle) - away], 1)


def seen_from_the_side(glb: bytes, size: int = 340, degrees: float = 28.0) -> Image.Image:
    """The vertices of a textured GLB surface as coloured dots, turned about the vertical axis."""
    length, = struct.unpack_from("<I", glb, 12)
    document, binary = json.loads(glb[20:20 + length]), glb[28 + length:]

    def accessor(number: int, width: int) -> np.ndarray:
        view = document["bufferViews"][document["accessors"][number]["bufferView"]]
        return np.frombuffer(binary, "<f4", view["byteLength"] // 4, view["byteOffset"]).reshape(-1, width)
    parts = document["meshes"][0]["primitives"][0]["attributes"]
    points_N3, uvs_N2 = accessor(parts["POSITION"], 3), accessor(parts["TEXCOORD_0"], 2)
    texture = Image.open(io.BytesIO(base64.b64decode(document["images"][0]["uri"].partition(",")[2]))).convert("RGB")
    rows, columns = (uvs_N2[:, 1] * texture.height).astype(int), (uvs_N2[:, 0] % 1 * texture.width).astype(int)
    pixels = np.asarray(texture)[rows, columns]
    turned_N3 = from_above(points_N3) if points_N3[:, 2].max() > 0 else turned(points_N3, np.radians(degrees))
    across = size * 0.5 * (1 + turned_N3[:, 0] / -turned_N3[:, 2] * 1.9), size * 0.5 * (
        1 - turned_N3[:, 1] / -turned_N3[:, 2] * 1.9)
    canvas = np.full((size, size, 3), GROUND, np.uint8)
    for point in np.argsort(turned_N3[:, 2]):    # the farthest first
        column, row = int(across[0][point]), int(across[1][point])
        if 0 <= column < size - 3 and 0 <= row < size - 3:
            canvas[row:row + 3, column:column + 3] = pixels[point]
    return Image.fromarray(canvas)


def card(given: str, written: str) -> Image.Image:
    """A text on paper: what was given, and in red what the model wrote."""
    sheet = Image.new("RGB", (SIDE, SIDE), PAPER)
    draw, font, y = ImageDraw.Draw(sheet), ImageFont.load_default(24), 28
    for text, colour in ((given, GIVEN), (written, WRITTEN)):
        for line in textwrap.wrap(text, 23):
            draw.text((22, y), line, colour, font)
            y += 34
    return sheet


def texts_of(outputs: dict, prompt: dict) -> list[Image.Image]:
    """A card for each text that a run shows, below the question or the blanks that it answers. Scores have none."""
    cards = []
    for node in sorted((node for node, found in outputs.items() if found.get("text")), key=int):
        asked = prompt[prompt[node]["inputs"]["source"][0]]["inputs"]
        given = asked.get("question", asked.get("text", ""))
        cards += [card(given, text) for text in outputs[node]["text"] if not text.replace(".", "").isdigit()]
    return cards


def pictures_of(server: Comfy, prompt: dict) -> list[Image.Image]:
    """What a run saved, in the order of the nodes, of many the sheet alone; its 3D view and texts, if it has any."""
    outputs = server.run(prompt)
    shown = {node: found for node, found in outputs.items()
             if found.get("images") and found["images"][0]["filename"].endswith(".png")}
    saved = sorted(server.pictures(shown).items(), key=lambda item: int(item[0]))
    titles = {node: prompt[node]["inputs"]["filename_prefix"] for node, _ in saved}
    sheets = [files for node, files in saved if titles[node].endswith("sheet")]
    chosen = sheets or [files for _, files in saved]
    found = [Image.open(io.BytesIO(png)).convert("RGB") for files in chosen for png in files][:MOST]
    surfaces = [server.base / "output" / part["subfolder"] / part["filename"]
                for output in outputs.values() for part in output.get("3d", [])]
    return found + [seen_from_the_side(path.read_bytes()) for path in surfaces[:1]] + texts_of(outputs, prompt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".comfyui" / "ComfyUI", help="the folder with main.py")
    parser.add_argument("names", nargs="*", help="workflows; all by default")
    options = parser.parse_args()
    paths = sorted((ROOT / "workflows").glob("*.json"))
    with tempfile.TemporaryDirectory() as folder, \
            Comfy(options.comfyui, Path(sys.executable), Path(folder), ROOT, "--cpu") as server:
        for path in (path for path in paths if not options.names or path.stem in options.names):
            prompt = to_prompt(json.loads(path.read_text(encoding="utf-8")), server.get("/object_info"))
            compose(pictures_of(server, prompt)).save(path.with_suffix(".jpg"), quality=90)
            print(path.with_suffix(".jpg").name, flush=True)


if __name__ == "__main__":
    main()
