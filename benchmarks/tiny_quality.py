"""Quality of the tiny model on toy scenes that it has never seen: a Markdown report, and a sheet of pictures.

    python benchmarks/tiny_quality.py --model tiny --output docs/tiny_quality.md --sheet sheet.png

256 scenes take about a quarter of an hour on one CPU core.
"""

import argparse
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.prompts import Surroundings, chance, named_words, obedience, seen_words  # noqa: E402
from benchmarks.report import Setting, write_report  # noqa: E402
from jodi_core import JodiPipeline  # noqa: E402
from jodi_core.metrics import classes, compare, to_bytes, unit  # noqa: E402
from jodi_core.pictures import contact_sheet, postprocess  # noqa: E402
from jodi_core.segmentation import SEGMENTATION_NAMES, paint_classes  # noqa: E402
from training.captions import caption  # noqa: E402
from training.world import render, sample_scene  # noqa: E402

FIRST_SEED = 10_000_000  # no part of the model is trained on scenes from here on
BASELINE_SEEDS = range(1_000_000, 1_000_512)
SIZE = 128
BATCH = 32
# What is given (None: all labels) and the guidance; guided to the default as well where that is cheap.
CONTROLS = {"all seven labels, guidance 1": (None, 1.0), "depth + albedo, guidance 1": (("depth", "albedo"), 1.0),
            "depth + albedo, guidance 4.5": (("depth", "albedo"), 4.5)}
SHEET_SCENES = 6

Pictures = dict[str, torch.Tensor]  # domain -> (N, 3, H, W) uint8


def truth_of(seeds) -> Pictures:
    parts = [render([sample_scene(seed) for seed in seeds[start:start + BATCH]], SIZE, SIZE)
             for start in range(0, len(seeds), BATCH)]
    return joined(parts)


def joined(parts: list[Pictures]) -> Pictures:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def mean_maps(pictures: Pictures, count: int) -> Pictures:
    """The same answer for every scene: the mean picture, post-processed; for segmentation each pixel's most frequent
    class."""
    maps = {name: postprocess(name, picture.float().mean(0, keepdim=True) / 127.5 - 1)
            for name, picture in pictures.items()}
    if "segmentation" in pictures:
        numbers_NHW = classes(pictures["segmentation"])
        votes_KHW = torch.stack([(numbers_NHW == number).sum(0) for number in range(len(SEGMENTATION_NAMES))])
        maps["segmentation"] = paint_classes(votes_KHW.argmax(0))[None]
    return {name: to_bytes(picture).expand(count, -1, -1, -1) for name, picture in maps.items()}


@torch.no_grad()
def reconstructed(pipeline: JodiPipeline, truth: Pictures) -> Pictures:
    """The truth through the autoencoder and post-processing: no transformer can do better than about this."""
    vae = pipeline.autoencoder
    return {name: torch.cat([to_bytes(postprocess(name, vae.decode(vae.encode(placed(pipeline, part) * 2 - 1))
                                                  .float().clamp(-1, 1))) for part in picture.split(BATCH)])
            for name, picture in truth.items()}


def placed(pipeline, picture_N3HW):
    return unit(picture_N3HW).to(pipeline.device, pipeline.dtype)


def sampled(pipeline: JodiPipeline, prompts=None, conditions: Pictures | None = None, **options) -> Pictures:
    """Pictures for every prompt or condition, in batches; the seed of a batch is the number of its first picture."""
    conditions = conditions or {}
    count = len(prompts or next(iter(conditions.values())))
    parts = []
    for start in range(0, count, BATCH):
        rows = slice(start, start + BATCH)
        result = pipeline(prompts[rows] if prompts else "", seed=start, height=SIZE, width=SIZE,
                          conditions={name: unit(picture[rows]) for name, picture in conditions.items()}, **options)
        parts.append({name: to_bytes(picture) for name, picture in result.pictures.items()})
    return joined(parts)


@dataclass
class Evaluation:
    """All pictures and numbers of one model on `count` scenes; run it once."""

    pipeline: JodiPipeline
    count: int
    guidance: float

    def run(self) -> "Evaluation":
        seeds = range(FIRST_SEED, FIRST_SEED + self.count)
        scenes, training = [sample_scene(seed) for seed in seeds], truth_of(BASELINE_SEEDS)
        self.prompts = [caption(scene, seed, shorten=0) for scene, seed in zip(scenes, seeds)]
        self.truth = truth_of(seeds)
        say("scenes rendered")
        self.references = {"mean map": compare(mean_maps(training, self.count), self.truth),
                           "autoencoder": compare(reconstructed(self.pipeline, self.truth), self.truth)}
        say("baseline and autoencoder")
        self.perceived = sampled(self.pipeline, conditions={"image": self.truth["image"]})
        self.perception = compare(self.perceived, self.truth)
        say("labels from pictures")
        self._control()
        self._joint([named_words(scene) for scene in scenes],
                    Surroundings.of([sample_scene(seed) for seed in BASELINE_SEEDS], training))
        return self

    def _control(self):
        self.control = {}
        for title, (given, guidance) in CONTROLS.items():
            conditions = {name: self.truth[name] for name in given or self.pipeline.domains[1:]}
            found = sampled(self.pipeline, self.prompts, conditions, guidance=guidance)
            self.control[title] = compare(found, self.truth)["image", "psnr"]
            if given is None:
                self.painted = found
            say(f"picture from {title}")

    def _joint(self, named, surroundings):
        self.joint = sampled(self.pipeline, self.prompts, guidance=self.guidance)
        say("joint generation")
        seen_again = sampled(self.pipeline, conditions={"image": self.joint["image"]})
        labels = {name: self.joint[name] for name in seen_again}
        self.agreement = compare(labels, seen_again)
        self.disagreement = compare(labels, {name: picture.roll(1, 0) for name, picture in seen_again.items()})

        def words(pictures):
            return seen_words(pictures["albedo"], pictures["segmentation"], surroundings)
        seen = words(self.joint)
        self.obeyed, self.by_chance = obedience(named, seen), chance(named, seen)
        self.readable = obedience(named, words(self.truth))
        say("prompts")

    def sheet(self, path: Path) -> None:
        """Rows: for each scene the truth, then what was made of it (the picture from all seven labels, the labels
        from the picture); then as many joint samples."""
        shown = range(min(SHEET_SCENES, self.count))
        made = self.painted | self.perceived
        rows = {name: [source[name][row] for row in shown for source in (self.truth, made)]
                + [self.joint[name][row] for row in shown] for name in self.truth}
        contact_sheet({name: unit(torch.stack(pictures)) for name, pictures in rows.items()}).save(path)


_started = time.time()


def say(what: str) -> None:
    print(f"{time.time() - _started:6.0f} s  {what}", file=sys.stderr, flush=True)


def machine(device: torch.device) -> str:
    """What the numbers were computed on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = Path("/proc/cpuinfo")
    name = platform.processor() or platform.machine()
    if names.exists():
        name = next((line.split(":")[1].strip() for line in names.read_text().splitlines()
                     if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} thread(s)"


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, a bundle folder, or a transformer file")
    parser.add_argument("--autoencoder", default=None, help="file, for a --model that is a transformer file")
    parser.add_argument("--text-encoder", default=None, help="file, for a --model that is a transformer file")
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--guidance", type=float, default=4.5, help="of joint generation")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--sheet", type=Path, default=None, help="PNG file to write")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    pipeline = JodiPipeline.from_pretrained(options.model, autoencoder=options.autoencoder,
                                            text_encoder=options.text_encoder)
    evaluation = Evaluation(pipeline, options.scenes, options.guidance).run()
    setting = Setting(
        command=shlex.join(["python", "benchmarks/tiny_quality.py", *arguments]), machine=machine(pipeline.device),
        files={"transformer": options.model, "autoencoder": options.autoencoder or options.model,
               "text_encoder": options.text_encoder or options.model})
    write_report(options.output, evaluation, setting)
    if options.sheet:
        evaluation.sheet(options.sheet)


if __name__ == "__main__":
    main()
