"""Labels of pictures, read by a joint model and written as files that line up with them.

The model sees the whole picture, stretched to its size bin. A label is stored at the size to which training resizes the
picture before it crops (the cover size of spec 3.3): so with the bins of this model training takes the label as it is,
and both are cropped alike.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from jodi_core import JodiPipeline
from jodi_core.domains import JointRoles
from jodi_core.files import atomic_target
from jodi_core.fitting import cover_size, resize, scale
from jodi_core.pictures import load_picture, postprocess, to_pil
from jodi_core.published import PUBLISHED

from .picture_folder import Job

GREY = ("lineart", "edge", "depth")    # stored with one channel


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done to every picture; enough for another machine."""

    folder: Path
    model: str = "published"     # or "tiny", a file, a folder in bundle layout, hf://
    autoencoder: str = ""        # empty: the model's own
    device: str = ""             # empty: the GPU if there is one
    domains: tuple[str, ...]     # sampled together, whichever of them a picture lacks
    steps: int = 10
    seed: int = 0
    batch: int = 4


def model_ref(model: str) -> str:
    return PUBLISHED["transformer"] if model == "published" else model


class Annotator:
    """Call it with jobs of one size bin; returns what is wrong with each picture, None if its labels are written.

    A label depends on the picture, its name and Work only: batches that are not full are filled up, since sums of other
    shapes round otherwise.
    """

    def __init__(self, work: Work):
        self.work = work
        published = work.model == "published"
        self.pipeline = JodiPipeline.from_pretrained(
            model_ref(work.model), device=work.device or None,
            autoencoder=work.autoencoder or (PUBLISHED["autoencoder"] if published else None))
        self.roles = JointRoles.of(self.pipeline.domains, work.domains, self.pipeline.domains[:1])
        self.pool = ThreadPoolExecutor(min(16, os.cpu_count()))

    def __call__(self, jobs: list[Job]) -> list[str | None]:
        read = list(self.pool.map(self.read, jobs))
        good = [(job, picture) for job, picture in zip(jobs, read) if isinstance(picture, Tensor)]
        if good:
            made = self.labels(*zip(*good))
            list(self.pool.map(self.save, *zip(*((job, row, domain, made[domain]) for row, (job, _) in enumerate(good)
                                                 for domain in job.labels))))
        return [None if isinstance(picture, Tensor) else picture for picture in read]

    def read(self, job: Job) -> Tensor | str:
        """(1, 3, H, W) in [0, 1], of any size; or what is wrong with the picture."""
        try:
            picture_13HW = load_picture(self.work.folder / job.picture)
            cover_size(picture_13HW.shape[-2:], job.target)
        except (OSError, ValueError) as error:
            return f"{self.work.folder / job.picture}: {error}"
        return picture_13HW
