"""Pictures and seam errors of docs/applications.md, made by running the shipped workflows on a real ComfyUI.

    python tests/host/application_pictures.py --comfyui FOLDER        writes docs/images/*.jpg, prints a table
"""

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from jodi_core.tiles import seam  # noqa: E402
from scripts.comfy import Comfy  # noqa: E402
from scripts.workflow import to_prompt  # noqa: E402
from thumbnails import GAP, GROUND, seen_from_the_side  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SEEDS = range(1, 6)
WAYS = {"plain windows, plain decoding": (False, False), "circular windows, plain decoding": (True, False),
        "circular windows, circular decoding": (True, True)}


def prompt_of(server: Comfy, name: str) -> dict:
    return to_prompt(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")),
                     server.get("/object_info"))


def saved(server: Comfy, prompt: dict) -> tuple[list[Image.Image], list[bytes]]:
    """Pictures in the order of the nodes that saved them, and 3D files."""
    outputs = server.run(prompt)
    shown = {node: outputs[node] for node, part in prompt.items() if part["class_type"] == "SaveImage"}
    pictures = [Image.open(io.BytesIO(png)).convert("RGB")
                for _, (png, *_) in sorted(server.pictures(shown).items(), key=lambda item: int(item[0]))]
    files = [server.base / "output" / part["subfolder"] / part["filename"]
             for node, part in prompt.items() if part["class_type"] == "SaveGLB" for part in outputs[node]["3d"]]
    return pictures, [path.read_bytes() for path in files]


def stacked(pictures: list[Image.Image]) -> Image.Image:
    width, height = max(picture.width for picture in pictures), sum(picture.height + GAP for picture in pictures) - GAP
    sheet, top = Image.new("RGB", (width, height), GROUND), 0
    for picture in pictures:
        sheet.paste(picture, ((width - picture.width) // 2, top))
        top += picture.height + GAP
    return sheet


def turned_by_half(picture: Image.Image) -> Image.Image:
    """A panorama with its edges in the middle."""
    return Image.fromarray(np.roll(np.asarray(picture), picture.width // 2, axis=1))


def seams(server: Comfy, windows: bool, decoding: bool) -> list[float]:
    """Mean seam error of image, depth and normals over SEEDS."""
    prompt, errors = prompt_of(server, "panorama"), []
    for part in prompt.values():
        if part["class_type"] in ("JodiTiles", "JodiLabelDecode"):
            part["inputs"]["circular"] = windows if part["class_type"] == "JodiTiles" else decoding
    for seed in SEEDS:
        next(part for part in prompt.values() if part["class_type"] == "JodiJointSampler")["inputs"]["seed"] = seed
        pictures = [torch.from_numpy(np.array(picture)).movedim(-1, 0)[None] / 255
                    for picture in saved(server, prompt)[0][:3]]
        errors.append([seam(picture_13HW) for picture_13HW in pictures])
    return torch.tensor(errors).mean(0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".comfyui" / "ComfyUI", help="the folder with main.py")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, \
            Comfy(options.comfyui, Path(sys.executable), Path(folder), ROOT, "--cpu") as server:
        around = saved(server, prompt_of(server, "panorama"))[0]
        stacked([*around, turned_by_half(around[0])]).save(IMAGES / "panorama.jpg", quality=90)
        stacked(saved(server, prompt_of(server, "panorama_expand"))[0]).save(IMAGES / "expand.jpg", quality=90)
        stacked(saved(server, prompt_of(server, "upsample"))[0]).save(IMAGES / "upsample.jpg", quality=90)
        pictures, (glb,) = saved(server, prompt_of(server, "panorama_mesh"))
        stacked([pictures[0], seen_from_the_side(glb, size=512)]).save(IMAGES / "surroundings.jpg", quality=90)
        print("| | image | depth | normal |\n|---|---|---|---|")
        for way, (windows, decoding) in WAYS.items():
            print(f"| {way} | " + " | ".join(f"{error:.1f}" for error in seams(server, windows, decoding)) + " |",
                  flush=True)


if __name__ == "__main__":
    main()
