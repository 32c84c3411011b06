"""The pictures of the README, made with the tiny model.

    python benchmarks/readme_pictures.py            writes docs/images/*.png
"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from jodi_core import JodiPipeline  # noqa: E402
from jodi_core.pictures import contact_sheet  # noqa: E402
from training.captions import caption  # noqa: E402
from training.world import render, sample_scene  # noqa: E402

PROMPTS = (
    "a red house on the left, a blue car on the right, under a clear blue sky, on green grass",
    "a pine tree on the left, a person in a yellow shirt waving on the right, on white snow, under a sunset sky",
    "a purple house in the middle, a road, on yellow sand, under a grey overcast sky",
    "a round tree on the right, a brown dog on the left, beside a lake, green grass, under a clear blue sky",
)
HELD_OUT = 20_000_000    # scenes that no part of the tiny model was trained on
SCENES = (1, 3, 4)
GUIDANCE = 3.0


def true_pictures() -> tuple[list, dict[str, torch.Tensor]]:
    """Held-out scenes and their pictures, domain -> (B, 3, 128, 128) in [0, 1]."""
    scenes = [sample_scene(HELD_OUT + number) for number in SCENES]
    return scenes, {name: picture.float() / 255 for name, picture in render(scenes, 128, 128).items()}


def interleave(upper: dict, lower: dict) -> dict[str, torch.Tensor]:
    """Rows of two dictionaries of pictures in turn."""
    return {name: torch.stack([upper[name], lower[name]], dim=1).flatten(0, 1) for name in upper}


def make_sheets(pipe: JodiPipeline) -> dict:
    scenes, truth = true_pictures()
    joint = pipe(PROMPTS, guidance=GUIDANCE, seed=7)
    given = {name: truth[name] for name in ("depth", "segmentation")}
    captions = [caption(scene, 0, shorten=0) for scene in scenes]
    control = [pipe(captions, conditions=given, guidance=GUIDANCE, seed=seed).pictures["image"] for seed in (1, 2, 3)]
    read = pipe(conditions={"image": truth["image"]}, seed=7)
    names = {"depth": "depth (given)", "segmentation": "segmentation (given)"}
    return {
        "joint": contact_sheet(joint.pictures),
        "control": contact_sheet({names[name]: picture for name, picture in given.items()}
                                 | {f"image, seed {seed}": picture for seed, picture in zip((1, 2, 3), control)}),
        "perception": contact_sheet({"image (given)": truth["image"].repeat_interleave(2, dim=0)}
                                    | interleave({name: truth[name] for name in read.pictures}, read.pictures)),
    }


def main() -> None:
    sheets = make_sheets(JodiPipeline.from_pretrained("tiny"))
    (ROOT / "docs" / "images").mkdir(exist_ok=True)
    for name, sheet in sheets.items():
        sheet.save(ROOT / "docs" / "images" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
