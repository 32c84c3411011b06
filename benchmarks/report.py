"""The Markdown report of the tiny model's quality."""

import datetime
from dataclasses import dataclass
from pathlib import Path

import torch

from jodi_core.files import sha256
from jodi_core.metrics import share
from jodi_core.weights import resolve

# (domain, metric) -> (what a reader sees, format, floor that a training on CPUs alone has to reach)
PERCEPTION = {
    ("depth", "delta1"): ("depth delta1", ".3f", 0.82),
    ("depth", "abs_rel"): ("depth AbsRel (lower is better)", ".3f", None),
    ("normal", "mean"): ("normal mean angle, degrees (lower)", ".1f", None),
    ("normal", "median"): ("normal median angle, degrees (lower)", ".2f", 1.8),
    ("segmentation", "miou"): ("segmentation mIoU", ".3f", 0.5),
    ("segmentation", "accuracy"): ("segmentation pixel accuracy", ".3f", None),
    ("lineart", "f1"): ("lineart F1", ".3f", None),
    ("edge", "f1"): ("edge F1", ".3f", None),
    ("albedo", "psnr"): ("albedo PSNR, dB", ".1f", 20.5),
    ("openpose", "iou"): ("pose IoU", ".3f", None),
}
CONTROL_FLOOR = 19.0  # from depth + albedo
AGREEMENT = [("segmentation", "accuracy"), ("normal", "median"), ("albedo", "psnr"), ("depth", "delta1")]
OBEDIENCE = {  # -> (what a reader sees, floor)
    "present": ("thing is there", None), "colour": ("colour of house, car, shirt", 0.6),
    "colour_if_present": ("colour, where the thing is there", None), "side": ("side of a thing", None),
    "side_if_present": ("side, where the thing is there", None), "sky": ("kind of sky", None),
    "ground": ("kind of ground", None),
}

DEFINITIONS = """\
Held-out scenes, seeds from 10 000 000 on, 128x128 pixels. All pictures are compared as the product writes them
(post-processed, 8 bits). *Mean map* is the trivial answer: the mean over 512 training scenes, post-processed like any
other (for segmentation the most frequent class of each pixel). *Autoencoder* is the truth encoded, decoded and
post-processed. *Closed* is the share of the distance from the one to the other.

* depth: disparity stretched to the full range of each picture, outside the true sky, both sides raised to 0.05 of the
  range; delta1 is the share of pixels with a ratio below 1.25, AbsRel the mean of |found - true| / true.
* normals: angle over all pixels. Segmentation: mIoU over the classes that occur, summed up over all scenes.
* lineart, edge: pixels above one half; one within 1 pixel of a pixel of the other picture is met. Pose: pixels with a
  channel above 0.3. F1 and IoU are of all scenes together, PSNR is the mean over scenes.
* words: of a full caption, in the generated albedo and segmentation. A thing is there if its class fills 0.6 % of the
  picture; its colour is that of most of its pixels near a colour word; a missing thing has neither colour nor side.
  *Chance* is the same count with the captions of other scenes, *truth* with the true labels."""


@dataclass(frozen=True)
class Setting:
    """What made a report: command line, machine, and the files by kind."""

    command: str
    machine: str
    files: dict[str, str]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value, form):
    return "" if value is None else format(value, form)


def _scored(title, form, floor, baseline, value, ceiling):
    closed = share(value, baseline, ceiling)
    return [title, _number(baseline, form), f"**{value:{form}}**", _number(ceiling, form), f"{closed:.0%}",
            _number(floor, form)]


def perception_table(evaluation) -> str:
    low, high = (evaluation.references[name] for name in ("mean map", "autoencoder"))
    rows = [_scored(title, form, floor, low[key], evaluation.perception[key], high[key])
            for key, (title, form, floor) in PERCEPTION.items()]
    return table(["labels from the picture", "mean map", "reached", "autoencoder", "closed", "floor"], rows)


def control_table(evaluation) -> str:
    low, high = (evaluation.references[name]["image", "psnr"] for name in ("mean map", "autoencoder"))
    rows = [_scored(title, ".1f", CONTROL_FLOOR if title.startswith("depth") else None, low, value, high)
            for title, value in evaluation.control.items()]
    return table(["picture PSNR in dB, from", "mean map", "reached", "autoencoder", "closed", "floor"], rows)


def agreement_table(evaluation) -> str:
    rows = []
    for key in AGREEMENT:
        title, form, _ = PERCEPTION[key]
        columns = evaluation.disagreement[key], evaluation.agreement[key], evaluation.perception[key]
        rows.append([title, *(f"{value:{form}}" for value in columns)])
    return table(["joint labels against perception of the joint picture", "of another sample", "reached",
                  "perception itself"], rows)


def obedience_table(evaluation) -> str:
    rows = [[title, f"{evaluation.by_chance[key]:.2f}", f"**{evaluation.obeyed[key]:.2f}**",
             f"{evaluation.readable[key]:.2f}", _number(floor, ".2f")]
            for key, (title, floor) in OBEDIENCE.items() if key in evaluation.obeyed]
    return table(["word of the prompt", "chance", "obeyed", "truth", "floor"], rows)


def write_report(path: Path, evaluation, setting: Setting) -> None:
    """The report of a finished `Evaluation`."""
    guidance = evaluation.guidance
    files = {kind: resolve(ref, kind) for kind, ref in setting.files.items()}
    parts = [
        "# Quality of the tiny model", f"`{setting.command}`",
        f"{datetime.date.today()}, {evaluation.count} scenes, {setting.machine}, torch {torch.__version__}.",
        "## Perception\n\n10 steps, the picture given, nothing else.", perception_table(evaluation),
        "## Controllable generation\n\n20 steps, labels and caption given.", control_table(evaluation),
        f"## Joint generation\n\n20 steps, guidance {guidance:g}, captions of the held-out scenes.",
        obedience_table(evaluation), agreement_table(evaluation),
        "## What the numbers mean", DEFINITIONS, "## Files",
        table(["file", "bytes", "sha256"], [[kind, f"{file.stat().st_size:,}", sha256(file)]
                                            for kind, file in files.items()])]
    text = "\n\n".join(parts) + "\n"
    path.write_text(text)
    print(text)
