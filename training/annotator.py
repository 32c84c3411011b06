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

from .picture_folder import Job

GREY = ("lineart", "edge", "depth")    # stored with one channel
THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is done to every picture; enough for another machine."""

    folder: Path
    model: str                   # as JodiPipeline.from_pretrained takes them
    autoencoder: str | None
    device: str | None
    domains: tuple[str, ...]     # sampled together, whichever of them a picture lacks
    steps: int
    seed: int
    batch: int


class Annotator:
    """Call it with at most `batch` jobs of one size bin; it returns what is wrong with each picture, None if nothing.

    A label depends on its picture, the picture's name and Work only: batches that are not full are filled up, since
    sums over other shapes round otherwise.
    """

    def __init__(self, work: Work):
        self.work = work
        self.pipeline = JodiPipeline.from_pretrained(work.model, autoencoder=work.autoencoder, device=work.device)
        self.roles = JointRoles.of(self.pipeline.domains, work.domains, self.pipeline.domains[:1])
        self.pool = ThreadPoolExecutor(min(THREADS, os.cpu_count()))

    def __call__(self, jobs: list[Job]) -> list[str | None]:
        faults, good = [None] * len(jobs), []
        for row, (job, found) in enumerate(zip(jobs, self.pool.map(self.read, jobs))):
            if isinstance(found, str):
                faults[row] = found
            else:
                good.append((job, *found))
        if good:
            named, seen, sizes = zip(*good)
            made = self.label(named, torch.cat(seen))
            files = [(job, domain, made[domain][row], size)
                     for row, (job, size) in enumerate(zip(named, sizes)) for domain in job.labels]
            list(self.pool.map(self.save, *zip(*files)))
        return faults

    def read(self, job: Job) -> tuple[Tensor, tuple[int, int]] | str:
        """(1, 3, *bin) in [0, 1] and the size that labels are stored at; or what is wrong with the picture."""
        path = self.work.folder / job.picture
        try:
            picture_13HW = load_picture(path)
            return resize(picture_13HW, job.target), cover_size(picture_13HW.shape[-2:], job.target)
        except (OSError, ValueError) as error:
            return f"{path}: {error}"

    def label(self, jobs: tuple[Job, ...], seen_BCHW: Tensor) -> dict[str, Tensor]:
        """Domain -> (B, 3, *bin) in [0, 1]; rows beyond those of the jobs are not of use."""
        pipeline, target = self.pipeline, jobs[0].target
        rows = [min(row, len(jobs) - 1) for row in range(self.work.batch)]
        noise_BLCHW = torch.cat([pipeline.noise(1, target, noise_seed(self.work.seed, job.picture)) for job in jobs])
        clean_BCDHW = pipeline.encode_conditions(self.roles, {self.roles.domains[0]: seen_BCHW[rows]}, target)
        latent_BCDHW = pipeline.sample(noise_BLCHW[rows], self.roles, clean_BCDHW, steps=self.work.steps)
        return {domain: postprocess(domain, made_BCHW).cpu()
                for domain, made_BCHW in pipeline.decode(latent_BCDHW, self.roles, target).items()}

    def save(self, job: Job, domain: str, label_3HW: Tensor, size: tuple[int, int]) -> None:
        """One file of that size, complete or not there."""
        picture = to_pil(scale(label_3HW[None], size, nearest=domain == "segmentation")[0])
        target = self.work.folder / job.labels[domain]
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_target(target, overwrite=True) as partial:
            (picture.getchannel(0) if domain in GREY else picture).save(partial, format="PNG")


def noise_seed(seed: int, picture: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {picture}".encode()).digest()[:8], "little")
