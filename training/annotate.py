"""`annotate`: a folder of pictures becomes a data set, its labels read from the pictures by a joint model."""

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch

from jodi_core.published import PUBLISHED
from jodi_core.weights import read_transformer, resolve

from .annotate_ray import annotate_on_ray
from .annotator import Annotator, Work
from .captioner import write_captions
from .picture_folder import Job, PictureFolder

SAY_EVERY = 10.0        # seconds
WRITE_EVERY = 60.0      # and never more than one part in 20 of the time
INTERRUPTED = 130       # exit code, as shells have it
Results = Iterator[tuple[list[Job], list[str | None]]]


def add_command(commands) -> None:
    does = "make the labels that a folder of pictures lacks; exit code 1 if a picture could not be used"
    parser = commands.add_parser("annotate", help=does, description=does)
    parser.set_defaults(run=main)
    add = parser.add_argument
    add("folder", type=Path, help="pictures, in sub-folders too, with or without metadata.jsonl")
    add("--model", default="published", help='"published" (default), "tiny", a file, a folder, hf://owner/name/file')
    add("--autoencoder", metavar="FILE", help="default: the model's own")
    add("--domains", type=lambda text: tuple(name.strip() for name in text.split(",")), metavar="A,B", default=(),
        help="labels that every picture shall have (default: all that the model knows)")
    add("--split", default="", help="the pictures of metadata.SPLIT.jsonl only")
    add("--caption", default="", metavar="TEXT", help="for pictures that have none, in the metadata or in a .txt file "
        "beside them")
    add("--captioner", metavar="MODEL", help="the folder of a Dual Diffusion model, which writes captions for pictures "
        "that have none, into .txt files beside them")
    add("--overwrite", action="store_true", help="make labels that are there again")
    add("--steps", type=int, default=10, help="default: %(default)s")
    add("--seed", type=int, default=0)
    add("--batch", type=int, default=4, help="pictures at a time (default: %(default)s)")
    add("--device", help="cpu, cuda, mps (default: the GPU if there is one)")
    add("--ray", nargs="?", const="", metavar="ADDRESS", help="share the work on a Ray cluster; without ADDRESS one on "
        "this machine")
    add("--workers", type=int, default=0, help="with --ray (default: one per GPU, or per CPU core)")


def main(options: argparse.Namespace) -> int:
    """Exit code: 0, 1 if a picture could not be used, 2 for anything wrong with the input, 130 interrupted."""
    try:
        return annotate(options)
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        return INTERRUPTED
    except torch.OutOfMemoryError:
        message = f"out of memory: try a smaller --batch than {options.batch}"
    except (ValueError, OSError) as error:
        message = str(error)
    print(f"error: {message}", file=sys.stderr)
    return 2


def annotate(options: argparse.Namespace) -> int:
    model = PUBLISHED["transformer"] if options.model == "published" else options.model
    config = read_transformer(resolve(model, "transformer"))[0]
    domains = checked(options, config.domains)
    folder = PictureFolder(options.folder, domains, config.bins, split=options.split, caption=options.caption,
                           overwrite=options.overwrite)
    folder.remove_unfinished()
    tell_faults(folder.faults)
    print(f"{options.folder}: {len(folder.lines)} pictures, {len(folder.jobs)} lack labels", flush=True)
    if options.captioner and folder.without_caption:
        made = write_captions(folder, options.captioner, options.device, options.seed)
        print(f"{made} captions written by {options.captioner}", flush=True)
    work = Work(folder=options.folder.absolute(), model=model, autoencoder=options.autoencoder, device=options.device,
                domains=domains, steps=options.steps, seed=options.seed, batch=options.batch)
    batches = in_batches(folder.jobs, options.batch)
    if options.ray is None:
        results = on_this_machine(work, batches)
    else:
        results = annotate_on_ray(work, batches, options.ray, options.workers)
    made = collect(folder, results if batches else iter(()))
    folder.remove_unfinished()    # by a worker that died
    print(f"{folder.metadata}: {len(folder.lines) - len(folder.faults)} pictures; {made} labels made, {folder.there} "
          f"were there; {len(folder.faults)} pictures could not be used", flush=True)
    if folder.without_caption:
        print(f"{len(folder.without_caption)} pictures have no caption, and training skips those: write one in a .txt "
              "file beside each, or give --caption, and run this again")
    return 1 if folder.faults else 0


def checked(options: argparse.Namespace, known: tuple[str, ...]) -> tuple[str, ...]:
    """The labels to make, in the model's order. ValueError for what cannot be asked."""
    wanted = options.domains or known[1:]
    wrong = [name for name in wanted if name not in known[1:]]
    if wrong:
        raise ValueError(f"the model makes no label {', '.join(wrong)} of a picture; it makes {', '.join(known[1:])}")
    if min(options.steps, options.batch) < 1 or options.workers < 0 or options.seed < 0:
        raise ValueError(f"--steps {options.steps} and --batch {options.batch} must be at least 1, --workers "
                         f"{options.workers} and --seed {options.seed} not negative")
    if options.workers and options.ray is None:
        raise ValueError("--workers is of Ray: add --ray")
    return tuple(name for name in known if name in wanted)


def in_batches(jobs: list[Job], batch: int) -> list[list[Job]]:
    """Jobs of one size bin together."""
    found = []
    for _, group in groupby(sorted(jobs, key=lambda job: (job.target, job.line)), key=lambda job: job.target):
        of_bin = list(group)
        found += [of_bin[first:first + batch] for first in range(0, len(of_bin), batch)]
    return found


def on_this_machine(work: Work, batches: list[list[Job]]) -> Results:
    annotator = Annotator(work)
    for jobs in batches:
        yield jobs, annotator(jobs)


def collect(folder: PictureFolder, results: Results) -> int:
    """Note what is made, write the metadata now and then and at the end, whatever happens; how many labels."""
    made = done = 0
    start = said = written = time.monotonic()
    pause = WRITE_EVERY
    try:
        for jobs, faults in results:
            for job, fault in zip(jobs, faults):
                folder.add(job, fault)
                made += 0 if fault else len(job.labels)
            tell_faults([fault for fault in faults if fault])
            done += len(jobs)
            now = time.monotonic()
            if now - said > SAY_EVERY:
                print(f"{done}/{len(folder.jobs)} pictures, {done / (now - start):.2f}/s", flush=True)
                said = now
            if now - written > pause:
                folder.write()
                written = time.monotonic()
                pause = max(WRITE_EVERY, 20 * (written - now))
    finally:
        folder.write()
    if done:
        print(f"{done} pictures in {time.monotonic() - start:.0f} s, {done / (time.monotonic() - start):.2f}/s")
    return made


def tell_faults(faults: list[str]) -> None:
    for fault in faults:
        print(f"skipped: {fault}", flush=True)
