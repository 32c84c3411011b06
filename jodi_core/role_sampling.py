"""What a training sample is used for: the roles of its domains and its caption, by chance (spec 8.1 and 8.3).

Roles are drawn for the domains of a model, image first. `present` says which label domains a sample has; a sample
without a pose annotation has one all the same, the black picture of "no person", so openpose counts as present.
"""

from collections.abc import Sequence
from itertools import count

import torch

from .domains import Role

TASKS = ("j", "c", "p")  # joint generation, controllable generation, perception: equally likely


def draw_roles(present: Sequence[bool], task: str, generator: torch.Generator) -> tuple[Role, ...]:
    """Roles of (image, *labels) for one sample. present: one flag per label domain; task: one of TASKS.

    Joint: all present domains are generated. Controllable: the image is generated, each present label is a condition
    or ignored with equal chance. Perception: the image is a condition and a uniformly drawn, non-empty set of the
    present labels is generated. Absent labels are ignored. ValueError for perception of nothing.
    """
    choices = _choices(present, task)
    number = int(torch.randint(choices.start, choices.stop, (), generator=generator))
    return _row(present, task, number)


def role_chances(present: Sequence[bool], tasks: Sequence[str] = TASKS) -> dict[tuple[Role, ...], float]:
    """Every row that `draw_roles` can give after a uniform draw of the task, with its probability."""
    chances: dict[tuple[Role, ...], float] = {}
    for task in tasks:
        choices = _choices(present, task)
        for number in choices:
            row = _row(present, task, number)
            chances[row] = chances.get(row, 0.0) + 1 / (len(tasks) * len(choices))
    return chances


def _choices(present: Sequence[bool], task: str) -> range:
    """Numbers of the equally likely rows of a task: bit i says whether the i-th present label is used."""
    every_set = 2 ** sum(map(bool, present))
    if task == "p" and every_set == 1:
        raise ValueError("perception needs at least one label in the sample")
    return {"j": range(every_set - 1, every_set), "c": range(every_set), "p": range(1, every_set)}[task]


def _row(present: Sequence[bool], task: str, number: int) -> tuple[Role, ...]:
    image, label = {"j": (Role.GENERATE, Role.GENERATE), "c": (Role.GENERATE, Role.CONDITION),
                    "p": (Role.CONDITION, Role.GENERATE)}[task]
    used = (bool(number >> place & 1) for place in count())
    return (image, *(label if has and next(used) else Role.IGNORE for has in present))


def caption_chances(available: Sequence[str], weights: dict[str, float] | None = None) -> dict[str, float]:
    """Probability of each of a sample's captions, by the name of its writer: as weighted, uniform without weights.

    Names that the sample lacks lose their share to the others; a sample with none of them is drawn uniformly.
    """
    wanted = {name: (weights or {}).get(name, 0.0) for name in available}
    if not any(wanted.values()):
        wanted = dict.fromkeys(available, 1.0)
    total = sum(wanted.values())
    return {name: weight / total for name, weight in wanted.items()}
