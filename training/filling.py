"""Encodes ahead of a run what it will read: pictures are read by threads, and encoded a sample at a time."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch

from .pictures import PictureSource

READERS = 4


def fill(source: PictureSource, part: int, parts: int) -> tuple[int, list[str]]:
    """Put everything into the store that is not there yet, of every parts-th sample.

    (Samples, what could not be read.) All pictures of a sample that are new are encoded and stored together: what a
    batch holds can show in the last bits, so a process that is killed must not leave a part of one.
    """
    faults, waiting, indices = [], deque(), range(part, len(source.samples), parts)
    with ThreadPoolExecutor(READERS) as readers:
        for index in indices:
            try:
                waiting.append(look_up(source, index, readers))
            except (OSError, ValueError) as error:
                faults.append(str(error))
            if len(waiting) > 2 * READERS:
                faults += store_next(source, waiting)
        while waiting:
            faults += store_next(source, waiting)
    for fault in faults:
        source.faults.note("skipped", fault)
    return len(indices), faults


def look_up(source: PictureSource, index: int, readers: ThreadPoolExecutor):
    """What a sample lacks in the store: pictures by key, on their way from the disk, and captions."""
    sample, target = source.samples.sample(index), source.samples.target(index)
    source.check(sample)
    missing = {}
    for domain in source.domains:
        path = sample.pictures.get(domain)
        if path is None:
            source.latent(sample, domain, target)    # the empty picture, by itself: all processes need it
            continue
        key = source.picture_key(path, domain, target)
        if not source.store.has(key):
            missing[key] = readers.submit(source.picture, path, domain, target)
    return missing, list(sample.captions.values())


def store_next(source: PictureSource, waiting: deque) -> list[str]:
    """Encode and store the oldest sample; what could not be read."""
    missing, captions = waiting.popleft()
    faults, pictures = [], {}
    for key, read in missing.items():
        try:
            pictures[key] = read.result()
        except (OSError, ValueError) as error:
            faults.append(str(error))
    if pictures:
        source.store.put(dict(zip(pictures, source.encode(torch.stack(list(pictures.values()))))))
    for caption in captions:
        source.caption(caption)
    return faults
