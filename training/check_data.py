"""`check-data`: the data sets of a configuration, read as training reads them but without a model.

Faults are what makes training skip a sample or stop; warnings are what it goes on with. training/check_picture.py looks
at one picture, training/check_report.py writes down what was found.
"""

import argparse
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from jodi_core.domains import nearest_bin
from jodi_core.models.jodi_config import JodiConfig
from jodi_core.text import FLAGS, clean_prompt

from .check_picture import Finding, Unreadable, look_at
from .check_report import TILE, Report, Seen
from .config import SetConfig, TrainConfig
from .families import FAMILY
from .samples import Samples
from .shards import ShardSet

ASPECT = 0.01        # a label may be so much wider or higher than its picture
AT_A_TIME = 256      # samples that wait for the pool
SAY_EVERY = 10.0     # seconds
EAST_ASIAN = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
# What a large vocabulary mostly takes as one token: a word, a digit, a sign, an East Asian character.
TOKEN = re.compile(rf"[^\W\d_{EAST_ASIAN}]+|\d|[{EAST_ASIAN}]|[^\w\s]|_")


@dataclass(frozen=True)
class OpenSet:
    """A data set of the configuration that could be opened."""

    name: str
    samples: Samples    # without repeats


# ---- the command --------------------------------------------------------------------------------------------------

def options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--sample", type=int, metavar="N", help="look at so many samples, evenly chosen; else at all")
    command.add_argument("--report", type=Path, metavar="DIR",
                         help="where report.json and contact_sheet.png go; else check_data in the run's output folder")
    command.add_argument("--rows", type=int, default=12, help="samples on the contact sheet")
    command.add_argument("--workers", type=int, help="threads that decode; else speed.workers, or the cores, up to 8")


def main(config: TrainConfig, options: argparse.Namespace) -> int:
    """0: training can read everything that was looked at, 1: it cannot."""
    if config.toy.scenes:
        print("toy scenes are drawn when they are needed: there is no data to check")
        return 0
    workers = options.workers or config.speed.workers or min(8, os.cpu_count() or 1)
    folder = options.report or Path(config.output) / "check_data"
    report = check(config, options.sample, options.rows, workers)
    report.write(folder)
    print(f"{report.text()}\n\n{folder}: report.json, contact_sheet.png")
    return 1 if report.faults else 0


def check(config: TrainConfig, count: int | None = None, rows: int = 12, workers: int = 1) -> Report:
    """Look at `count` samples, evenly chosen (None: at all); `rows` of them are drawn."""
    model_config = FAMILY[config.family].starting_config(config)
    report = Report(config, model_config)
    if not config.data.sets:
        report.note("no data", "name a data set in [[data.sets]]", fault=True)
    sets = [open_set(config, part, model_config, report) for part in (*config.data.sets, *config.evaluation.sets)]
    for one, part in zip(sets, config.data.sets):
        for index, size in enumerate(one.samples.sets[0].sizes if one else ()):
            report.count_size(size, one.samples.target(index), part.repeat)
    places = places_of([one for one in sets if one], count)
    drawn = set(evenly(len(places), rows))
    work = [(*place, TILE if number in drawn else 0) for number, place in enumerate(places)]
    for seen in look_at_all(config, model_config, work, workers):
        report.add(seen)
    report.finish()
    return report


def open_set(config: TrainConfig, part: SetConfig, model_config: JodiConfig, report: Report) -> OpenSet | None:
    name = report.open(part)
    data = replace(config.data, sets=(replace(part, repeat=1),), on_error="skip")
    try:
        samples = Samples(data, model_config.domains, model_config.bins)
    except (OSError, ValueError) as error:
        report.note("cannot be opened", str(error), set=name, line=line_of(str(error)), file=part.path, fault=True)
        return None
    report.sets[name]["samples"] = len(samples)
    if not len(samples):
        report.note("no samples", "it has no samples", set=name, file=part.path, fault=True)
    if isinstance(samples.sets[0], ShardSet):
        for shard, index in zip(samples.sets[0].shards, samples.sets[0].indices):
            if index.about["fault"]:
                report.note("damaged shard", index.about["fault"], set=name, file=shard, fault=True)
    return OpenSet(name, samples)


def places_of(sets: list[OpenSet], count: int | None) -> list[tuple[OpenSet, int]]:
    """The samples to look at: of each set its share of `count`, but at least one; None: all."""
    total = sum(len(one.samples) for one in sets)
    return [(one, index) for one in sets for index in evenly(
        len(one.samples), total if count is None else max(1, round(count * len(one.samples) / max(1, total))))]


def evenly(length: int, count: int) -> list[int]:
    """`count` of the numbers below `length`, evenly spread from the first to the last; all if there are no more."""
    count = min(length, count)
    return [number * (length - 1) // max(1, count - 1) for number in range(count)]


def look_at_all(config: TrainConfig, model_config: JodiConfig, work: list[tuple[OpenSet, int, int]],
                workers: int) -> Iterator[Seen]:
    """What was seen of each (set, index, tile), in order; says now and then how far it is."""
    said = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:    # decoding and resizing run outside the interpreter's lock
        for first in range(0, len(work), AT_A_TIME):
            yield from pool.map(lambda one: look_at_sample(config, model_config, *one), work[first:first + AT_A_TIME])
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                print(f"{min(first + AT_A_TIME, len(work))} of {len(work)} samples", flush=True)


# ---- one sample ---------------------------------------------------------------------------------------------------

def look_at_sample(config: TrainConfig, model_config: JodiConfig, one: OpenSet, index: int, tile: int) -> Seen:
    """tile: longer side of small pictures for the contact sheet; 0: it is not on it."""
    seen = Seen(one.name, one.samples.target(index), tile)
    try:
        sample = one.samples.sample(index)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        seen.where, seen.line = f"sample {index + 1} of the set", line_of(str(error))
        seen.tell(Finding("unusable entry", str(error), fault=True), "")
        return seen
    seen.metadata, _, seen.where = sample.name.rpartition(", ")
    seen.line = line_of(sample.name)
    for domain, source in sample.pictures.items():
        seen.files[domain] = str(source)
        try:
            content = content_of(source)
            look = seen.looks[domain] = look_at(domain, content, seen.target, config.data.segmentation, tile)
        except Unreadable as error:
            seen.tell(error.finding, seen.files[domain], domain)
        else:
            for finding in look.findings:
                seen.tell(finding, seen.files[domain], domain)
    check_presence(config, seen, model_config.domains)
    check_sizes(seen, sample.size, model_config)
    check_captions(seen, sample.captions, FAMILY[config.family].caption_tokens(model_config))
    return seen


def content_of(source) -> bytes:
    """Of the file that a sample names."""
    try:
        return source.read_bytes()
    except FileNotFoundError:
        raise Unreadable("missing file", "no such file") from None
    except OSError as error:
        raise Unreadable("unreadable file", error.strerror or str(error)) from error
    except ValueError as error:    # a shard is not what it was
        raise Unreadable("corrupt picture", str(error)) from error


def check_presence(config: TrainConfig, seen: Seen, domains: tuple[str, ...]) -> None:
    if domains[0] not in seen.files:
        seen.tell(Finding("no image", "the entry names no image", fault=True), seen.metadata)
    labels = len(seen.files) - (domains[0] in seen.files)
    nobody = "openpose" in domains and config.data.empty_pose
    if "perceive" in config.tasks and not labels and not nobody:
        seen.tell(Finding("no labels", 'it has no label, but the task "perceive" makes labels: training stops here',
                          fault=True), seen.metadata)


def check_sizes(seen: Seen, size: tuple[int, int], model_config: JodiConfig) -> None:
    """The picture against the size in the metadata, labels against the picture."""
    domain = model_config.domains[0]
    image = seen.looks.get(domain)
    if image is None:
        return
    if image.size != size:
        own = nearest_bin(*image.size, model_config.bins)
        seen.tell(Finding("other size", f"it has {by(image.size)} pixels, but info says {by(size)}" + (
            f": it is brought to {by(seen.target)} and not to {by(own)}" if own != seen.target else "")),
            seen.files[domain], domain)
    for domain, look in seen.looks.items():
        if abs(look.size[0] * image.size[1] / (look.size[1] * image.size[0]) - 1) > ASPECT:
            seen.tell(Finding("other shape", f"it has {by(look.size)} pixels, but its picture {by(image.size)}: they "
                              "do not lie over one another"), seen.files[domain], domain)


def check_captions(seen: Seen, captions: dict[str, str], limit: int) -> None:
    for source, text in captions.items():
        if not isinstance(text, str):
            seen.tell(Finding("unusable caption", f"the caption {source!r} is {text!r} and no text", fault=True),
                      seen.metadata)
            return
    seen.captions = captions
    if not captions:
        seen.tell(Finding("no caption", "it has no caption", fault=True), seen.metadata)
    for source, text in captions.items():
        prompt = clean_prompt(text)
        if not prompt:
            seen.tell(Finding("empty caption", f"the caption {source!r} is empty"), seen.metadata)
        elif prompt != text.strip():
            flag = next(flag for flag in FLAGS if flag in text)
            seen.tell(Finding("cut caption", f"{flag!r} in the caption {source!r} ends it"), seen.metadata)
        tokens = len(TOKEN.findall(prompt))
        if tokens > limit:
            seen.tell(Finding("long caption", f"the caption {source!r} has about {tokens} tokens, but the model reads "
                              f"{limit}: the rest is cut off"), seen.metadata)


def line_of(name: str) -> int | None:
    """The line that a message or the name of a sample tells."""
    found = re.search(r"\bline (\d+)", name)
    return int(found[1]) if found else None


def by(size: tuple[int, int]) -> str:
    """As people say it: width x height."""
    return f"{size[1]}x{size[0]}"
