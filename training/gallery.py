"""Pictures of what a run has learned: one contact sheet per task, and how well they agree with the truth."""

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from jodi_core.metrics import compare, to_bytes, unit
from jodi_core.pictures import contact_sheet, postprocess

from .config import TrainConfig


@dataclass(frozen=True)
class Shown:
    """One sample: its pictures (3, H, W) uint8 by domain, and those that each task made of it."""

    truth: dict[str, Tensor]
    made: dict[str, dict[str, Tensor]]
    caption: str


def show(pipeline, config: TrainConfig, truth: dict[str, Tensor], caption: str, seed: int) -> Shown:
    """What `pipeline`, a JodiPipeline or what is called like one, makes of a sample.

    truth: domain -> (3, H, W) in [-1, 1], the image first. Control is given all labels, perception makes all.
    """
    image, *labels = truth
    tasks = {"joint": ((), tuple(truth)), "control": (labels, (image,)), "perceive": ((image,), labels)}
    made = {}
    for task in (task for task in dict.fromkeys(config.tasks) if task in tasks):
        given, wanted = tasks[task]
        guidance = 1.0 if task == "perceive" else config.evaluation.guidance
        found = pipeline(caption, conditions={name: (truth[name][None] + 1) / 2 for name in given}, generate=wanted,
                         seed=seed, height=truth[image].shape[1], width=truth[image].shape[2],
                         steps=config.evaluation.steps, guidance=guidance)
        made[task] = {name: to_bytes(picture)[0] for name, picture in found.pictures.items()}
    shown = {name: to_bytes(postprocess(name, picture[None]))[0] for name, picture in truth.items()}
    return Shown(shown, made, caption)


def agreement(shown: list[Shown]) -> dict[str, float]:
    """Of the labels that perception found with the true ones: every metric over all samples of one size, and the mean
    over the sizes, weighted by their samples."""
    sizes = defaultdict(list)    # (domain, size) -> pairs of found and true
    for sample in shown:
        for domain, picture in sample.made.get("perceive", {}).items():
            sizes[domain, picture.shape].append((picture, sample.truth[domain]))
    values = defaultdict(list)
    for (domain, _), pairs in sizes.items():
        found, truth = (torch.stack(pictures) for pictures in zip(*pairs))
        for (_, metric), value in compare({domain: found}, {domain: truth}).items():
            values[f"metric/{domain}_{metric}"] += [value] * len(pairs) if math.isfinite(value) else []
    return {name: sum(found) / len(found) for name, found in values.items() if found}


def sheets(shown: list[Shown]) -> dict[str, Image.Image]:
    """Per task two rows for each sample: the truth, and under it what the task made; what it was given is repeated."""
    return {task: contact_sheet(columns([pictures for sample in shown
                                         for pictures in (sample.truth, sample.truth | sample.made[task])]))
            for task in (shown[0].made if shown else ())}


def columns(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Domain -> (rows, 3, H, W) in [0, 1], smaller pictures and absent ones on grey."""
    height, width = (max(picture.shape[axis] for row in rows for picture in row.values()) for axis in (1, 2))
    names = list(dict.fromkeys(name for row in rows for name in row))
    empty = torch.full((3, height, width), 24, dtype=torch.uint8)
    return {name: unit(torch.stack([centred(row.get(name, empty), height, width) for row in rows])) for name in names}


def centred(picture_3HW: Tensor, height: int, width: int) -> Tensor:
    down, right = height - picture_3HW.shape[1], width - picture_3HW.shape[2]
    return F.pad(picture_3HW, (right // 2, right - right // 2, down // 2, down - down // 2), value=24)
