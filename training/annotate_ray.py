"""Batches of pictures labelled by the workers of a Ray cluster, through Ray Data. All see the folder under one path."""

import logging
import os
import pickle
from collections.abc import Iterator

from .annotator import Annotator, Work
from .picture_folder import Job

BLOCKS = 64    # per worker: units that Ray hands out


class Worker:
    def __init__(self, work: Work):
        self.annotator = Annotator(work)

    def __call__(self, row: dict) -> dict:
        jobs = pickle.loads(row["jobs"])
        return {"jobs": row["jobs"], "faults": pickle.dumps(self.annotator(jobs))}


def annotate_on_ray(work: Work, batches: list[list[Job]], address: str, workers: int) \
        -> Iterator[tuple[list[Job], list[str | None]]]:
    """(jobs, what is wrong with each) of every batch, in any order.

    address: of a cluster; empty: one on this machine, for this call. workers: each loads the model, and has a GPU to
    itself where the cluster has any; 0: one per GPU, or per CPU core.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(f'--ray needs Ray Data, but {error}: pip install "ray[data]"') from error
    ray.init(address or "local", logging_level="error")
    try:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        has = ray.cluster_resources()
        gpus = 1 if has.get("GPU") and work.device != "cpu" else 0
        workers = workers or int(has["GPU" if gpus else "CPU"])
        rows = ray.data.from_items([{"jobs": pickle.dumps(jobs)} for jobs in batches],
                                   override_num_blocks=min(len(batches), BLOCKS * workers))
        done = rows.map(Worker, fn_constructor_args=(work,), num_cpus=1, num_gpus=gpus,
                        compute=ray.data.ActorPoolStrategy(size=workers))
        for row in done.iter_rows():
            yield pickle.loads(row["jobs"]), pickle.loads(row["faults"])
    finally:
        ray.shutdown()
