"""What opt-in approximations save and what they cost, on a running ComfyUI with this pack (docs/performance.md).

    python benchmarks/approximations.py --server http://127.0.0.1:8188 --scenes 32 --output FILE.md

The tiny model in the graph that a user would build, one picture at a time; all take turns scene by scene. Seconds are
the server's own, of a prompt that samples; decoding is a second prompt, for which it still has the samples.
"""

import argparse
import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.graphs import Task, decoding, loader, node, sampling  # noqa: E402
from benchmarks.prompts import Surroundings, named_words, obedience, seen_words  # noqa: E402
from benchmarks.report import PERCEPTION, table  # noqa: E402
from benchmarks.server import Server  # noqa: E402
from benchmarks.timing import Times  # noqa: E402
from benchmarks.tiny_quality import (BASELINE_SEEDS, FIRST_SEED, Pictures, joined, machine, sampled,  # noqa: E402
                                     truth_of)
from jodi_core import JodiPipeline  # noqa: E402
from jodi_core.domains import JODI_DOMAINS  # noqa: E402
from jodi_core.metrics import compare  # noqa: E402
from training.captions import caption  # noqa: E402
from training.world import sample_scene  # noqa: E402

TINY = "tiny (bundled)"
TASKS = {"perception": Task(("image",), JODI_DOMAINS[1:], 10), "control": Task(("depth", "albedo"), ("image",), 20),
         "joint": Task((), JODI_DOMAINS, 20)}


@dataclass(frozen=True)
class Way:
    """steps: share of the published number. patches: (stock node, its inputs) behind the loader, in order."""

    steps: float = 1.0
    weights: str = "default"
    patches: tuple[tuple[str, dict], ...] = ()
    tasks: tuple[str, ...] = tuple(TASKS)


def _cache(kind: str, threshold: float) -> Way:
    return Way(patches=((kind, {"reuse_threshold": threshold, "start_percent": 0.15, "end_percent": 0.95,
                                "verbose": False}),))


def _unguided(*spans: tuple[float, float]) -> Way:
    """No guidance in these parts of the run. Without effect, and so left out, where the image is given."""
    return Way(patches=tuple(("CFGOverride", {"cfg": 1.0, "start_percent": first, "end_percent": last})
                             for first, last in spans), tasks=("control", "joint"))


WAYS = {
    "as published": Way(),
    "half of the steps": Way(steps=0.5),
    "a quarter of the steps": Way(steps=0.25),
    "EasyCache 0.05": _cache("EasyCache", 0.05),
    "EasyCache 0.2": _cache("EasyCache", 0.2),
    "LazyCache 0.2": _cache("LazyCache", 0.2),
    "guidance until 0.5": _unguided((0.5, 1.0)),
    "guidance from 0.2 to 0.7": _unguided((0.0, 0.2), (0.7, 1.0)),
    "fp8_e4m3fn weights": Way(weights="fp8_e4m3fn"),
    "fp8_e5m2 weights": Way(weights="fp8_e5m2"),
    "int8 weights": Way(weights="int8"),
}
PUBLISHED = next(iter(WAYS))
QUALITIES = [*(f"perception: {title}" for title, _, _ in PERCEPTION.values()), "control: image PSNR, dB",
             "joint: colours obeyed", "joint: sides obeyed", "joint: segmentation as perceived",
             "joint: normal median as perceived (lower)"]


def prompt_of(way: Way, task: Task, text: str, seed: int, files: dict[str, str], **switch) -> dict:
    """The graph up to the sampler. The loaders of all ways are part of every prompt, or the server would give up the
    models that one does not use."""
    prompt = {f"load {kind}": loader(TINY, weight_dtype=kind) for kind in {way.weights for way in WAYS.values()}}
    model = [f"load {way.weights}", 0]
    for number, (kind, inputs) in enumerate(way.patches):
        prompt[f"patch {number}"] = node(kind, model=model, **inputs)
        model = [f"patch {number}", 0]
    return prompt | sampling(model, task, text, seed, files, steps=round(task.steps * way.steps), **switch)


@dataclass
class Results:
    """Of one way in one task, scene by scene."""

    seconds: list[float] = field(default_factory=list)
    pictures: list[Pictures] = field(default_factory=list)

    def add(self, server: Server, prompt: dict, task: Task) -> None:
        self.seconds.append(server.run(prompt)[1])
        found = server.pictures(server.run(prompt | decoding(task))[0])
        self.pictures.append({name: picture[None] for name, picture in found.items()})


def run_all(server: Server, ways: dict[str, Way], truth: Pictures,
            texts: list[str]) -> dict[tuple[str, str], Results]:
    """(way, task) -> results; the order turns round from scene to scene. The first scene comes twice, to warm up."""
    found = {(name, task): Results() for name, way in ways.items() for task in way.tasks}
    for turn, row in enumerate([0, *range(len(texts))]):
        files = {name: server.upload(f"approximations_{row}_{name}.png", truth[name][row])
                 for name in {name for task in TASKS.values() for name in task.given}}
        for name, task in list(found)[::-1 if turn % 2 else 1]:
            results = Results() if turn == 0 else found[name, task]
            results.add(server, prompt_of(ways[name], TASKS[task], texts[row], 1000 * turn, files), TASKS[task])
        print(f"{time.strftime('%H:%M:%S')} scene {turn} of {len(texts)}", file=sys.stderr, flush=True)
    return found


def quality(found: dict[tuple[str, str], Results], ways: dict[str, Way], truth: Pictures,
            scenes: list) -> list[list[str]]:
    """QUALITIES of each way, empty where it changes nothing. Joint labels are held against what the plain core
    perceives in the joint picture."""
    judge = JodiPipeline.from_pretrained("tiny")
    surroundings = Surroundings.of([sample_scene(seed) for seed in BASELINE_SEEDS], truth_of(BASELINE_SEEDS))
    named, rows = [named_words(scene) for scene in scenes], []
    for name, way in ways.items():
        made = {task: joined(found[name, task].pictures) for task in way.tasks}
        perceived = compare(made["perception"], truth) if "perception" in made else {}
        cells = [f"{perceived[key]:{form}}" if perceived else "" for key, (_, form, _) in PERCEPTION.items()]
        joint = made["joint"]
        obeyed = obedience(named, seen_words(joint["albedo"], joint["segmentation"], surroundings))
        seen_again = sampled(judge, conditions={"image": joint["image"]})
        agreement = compare({label: joint[label] for label in seen_again}, seen_again)
        rows.append([*cells, f"{compare(made['control'], truth)['image', 'psnr']:.1f}", f"{obeyed['colour']:.2f}",
                     f"{obeyed['side']:.2f}", f"{agreement['segmentation', 'accuracy']:.3f}",
                     f"{agreement['normal', 'median']:.2f}"])
    return rows


def speed(found: dict[tuple[str, str], Results], ways: dict[str, Way]) -> list[list[str]]:
    rows = []
    for name, way in ways.items():
        cells = [name]
        for task in TASKS:
            if task not in way.tasks:
                cells += ["", ""]
                continue
            times, plain = (Times(tuple(found[which, task].seconds)) for which in (name, PUBLISHED))
            cells += [f"{times.median:.2f}", f"{plain.median / times.median:.2f}"]
        rows.append(cells)
    return rows


def parse(arguments: list[str]):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="URL", help="a running ComfyUI that has this pack")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help=f"beside {PUBLISHED!r}")
    parser.add_argument("--scenes", type=int, default=32, help="held-out ones, as in benchmarks/tiny_quality.py")
    parser.add_argument("--output", type=Path, metavar="FILE.md")
    options = parser.parse_args(arguments)
    if options.scenes < 2:
        parser.error("--scenes must be at least 2")
    return options


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options, load = parse(arguments), os.getloadavg()[0]
    seeds = range(FIRST_SEED, FIRST_SEED + options.scenes)
    scenes, truth = [sample_scene(seed) for seed in seeds], truth_of(seeds)
    texts = [caption(scene, seed, shorten=0) for scene, seed in zip(scenes, seeds)]
    ways = {name: way for name, way in WAYS.items() if name in (PUBLISHED, *options.ways)}
    found = run_all(Server(options.server), ways, truth, texts)
    command = shlex.join(["python", "benchmarks/approximations.py", *arguments])
    head = [f"`{command}`", f"{time.strftime('%Y-%m-%d')}, {machine(torch.device('cpu'))}, load average at the start "
            f"{load:.1f}, at the end {os.getloadavg()[0]:.1f}; {options.scenes} scenes, one at a time."]
    timed = table(["", *(cell for task in TASKS for cell in (f"{task}, seconds", "speed"))], speed(found, ways))
    columns = quality(found, ways, truth, scenes)
    judged = table(["", *ways], [[title, *cells] for title, *cells in zip(QUALITIES, *columns, strict=True)])
    text = "\n\n".join([*head, timed, judged]) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
