"""python -m training plot RUN [RUN2 ...]: the curves of runs, from their log.jsonl, as one picture."""

import argparse
import math
from itertools import accumulate
from pathlib import Path

from jodi_core.domains import JODI_DOMAINS

from . import log
from .chart import COLOURS, Curve, Panel, draw_page
from .config import TASKS

TITLES = {"loss": "Loss", "task": "Loss per task", "domain": "Loss per domain", "time": "Loss per time band",
          "lr": "Learning rate", "muon_lr": "Learning rate of block matrices", "norm": "Gradient norm",
          "samples_per_s": "Samples per second", "memory_gb": "Memory (GB)", "skipped": "Skipped samples",
          "steps_left_out": "Steps left out", "faults": "Faults so far"}
TOGETHER = ("task", "domain", "time", "eval/task", "eval/domain", "eval/time")    # curves that share a panel
TROUBLE = ("skipped", "steps_left_out", "faults")      # shown only if there was any
STEADY = ("lr", "muon_lr", "memory_gb", *TROUBLE)      # not smoothed
FROM_ZERO = ("samples_per_s", *STEADY)
ORDER = ("loss", "task", "domain", "time", "lr", "muon_lr", "norm", "samples_per_s", "memory_gb", *TROUBLE, "eval/loss",
         "eval/task", "eval/domain", "eval/time")
MEMBERS = (*TASKS, *JODI_DOMAINS)
COLUMNS = 3

Series = dict[str, tuple[list[float], list[float]]]    # name -> steps, values


def add_command(commands) -> None:
    command = commands.add_parser("plot", help="draw the curves of runs as a picture",
                                  description="Draw the curves of runs, from their log.jsonl, as one picture.")
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output folder of a run")
    command.add_argument("--output", type=Path, help="the picture to write (default: curves.png in the first run)")
    command.set_defaults(run=main)


def main(options: argparse.Namespace) -> None:
    target = options.output or options.runs[0] / "curves.png"
    plot(options.runs).save(target)
    print(target)


def plot(folders: list[Path]):
    """The picture (PIL). FileNotFoundError or ValueError for a run that has no log."""
    runs = dict(zip(names_of(folders), map(series, folders)))
    last = {name: f"{name}, step {max(steps[-1] for steps, _ in found.values()):g}" for name, found in runs.items()}
    if len(runs) == 1:
        return draw_page(*last.values(), [], panels_of_one(*runs.values()), COLUMNS)
    entries = [(text, colour(number)) for number, text in enumerate(last.values())]
    return draw_page("Runs", entries, panels_of_many(list(runs.values())), COLUMNS)


def names_of(folders: list[Path]) -> list[str]:
    """The folders' own names if they differ."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def series(folder: Path) -> Series:
    """All finite values of a run by name; tasks as "task/joint"."""
    path = folder / log.NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; RUN is the output folder of a run that has written a log line")
    found = {}
    for line in log.read(path):
        for name, value in line.items():
            if name != "step" and math.isfinite(value):
                found.setdefault(full_name(name), {})[line["step"]] = value
    if not found:
        raise ValueError(f"{path} has no values yet")
    return {name: tuple(map(list, zip(*sorted(values.items())))) for name, values in found.items()}


def full_name(name: str) -> str:
    prefix, separator, last = name.rpartition("/")
    return f"{prefix}{separator}task/{last}" if last in TASKS else name


# ---- panels -----------------------------------------------------------------------------------------------------

def ordered(names) -> list[str]:
    """Losses first, then what steers and costs, then evaluations; tasks and domains in their own order."""
    def rank(name: str) -> tuple[int, int, str]:
        last = name.rpartition("/")[2]
        return (ORDER.index(group_of(name)) if group_of(name) in ORDER else len(ORDER),
                MEMBERS.index(last) if last in MEMBERS else len(MEMBERS), name)
    return sorted(set(names), key=rank)


def group_of(name: str) -> str:
    """The panel that a name belongs to when there is one run."""
    group = name.rpartition("/")[0]
    return group if group in TOGETHER else name


def title_of(name: str) -> str:
    if name.startswith("eval/"):
        title = title_of(name.removeprefix("eval/"))
        return f"Evaluation: {title[0].lower()}{title[1:]}"
    if name in TITLES:
        return TITLES[name]
    group, _, last = name.rpartition("/")
    return f"{TITLES[group]}: {last}" if group in TITLES else last


def panels_of_one(run: Series) -> list[Panel]:
    """Curves of a group share a panel, each with its colour."""
    names = ordered(shown(run))
    panels = []
    for group in dict.fromkeys(map(group_of, names)):
        members = [name for name in names if group_of(name) == group]
        together = group in TOGETHER
        curves = [curve(name, name.rpartition("/")[2], run[name], colour(place), raw=len(members) < 4)
                  for place, name in enumerate(members)]
        panels.append(Panel(title_of(group), curves, together, group in FROM_ZERO))
    return panels


def panels_of_many(runs: list[Series]) -> list[Panel]:
    """A panel for every name, with a colour for every run."""
    return [Panel(title_of(name), [curve(name, "", run[name], colour(number), raw=len(runs) < 4)
                                   for number, run in enumerate(runs) if name in run], False, name in FROM_ZERO)
            for name in ordered(name for run in runs for name in shown(run))]


def shown(run: Series) -> list[str]:
    return [name for name, (_, values) in run.items() if name not in TROUBLE or any(values)]


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def curve(name: str, label: str, found: tuple[list[float], list[float]], ink: str, raw: bool) -> Curve:
    steps, values = found
    if name in STEADY or name.startswith("eval/"):
        return Curve(label, steps, values, ink)
    return Curve(label, steps, smoothed(values), ink, values if raw else None)


def smoothed(values: list[float]) -> list[float]:
    """Mean of the values around each, up to a thirtieth of all to either side; as few before it as there are at the
    beginning, where curves are steep."""
    sums = list(accumulate(values, initial=0.0))
    found = []
    for place in range(len(values)):
        reach = min(len(values) // 30, place)
        first, end = place - reach, min(place + reach + 1, len(values))
        found.append((sums[end] - sums[first]) / (end - first))
    return found
