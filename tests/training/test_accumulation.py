"""A batch is the same however it is cut: into micro-batches, and over processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toy_run import stored

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
PROGRAM = Path(__file__).parent / "toy_run.py"


def trained(folder: Path, micro_batch: int, processes: int) -> dict[str, torch.Tensor]:
    """Weights and their averages after three steps of 8 samples, each with its own task and roles; and the norms of the
    gradients, since steps say little of them."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    subprocess.run([sys.executable, *(launcher if processes > 1 else []), str(PROGRAM), str(folder), "own", "steps=3",
                    "batch=8", f"micro_batch={micro_batch}"],
                   check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {"norms": torch.tensor([line["norm"] for line in log])} | {
        name: value for name, value in stored(folder).items() if name.startswith(("model.", "ema."))}


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("at_once"), 8, 1)


@pytest.mark.parametrize("micro_batch, processes", [(4, 1), (2, 1), (4, 2), (2, 2)])
def test_a_batch_in_parts_gives_the_weights_of_the_whole(at_once, tmp_path, micro_batch, processes):
    parts = trained(tmp_path, micro_batch, processes)
    assert set(parts) == set(at_once)
    for name, value in at_once.items():
        torch.testing.assert_close(parts[name], value, atol=1.1e-4 if name == "norms" else 2e-6, rtol=1e-5)
