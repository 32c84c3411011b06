"""Clock, operation counter and peak memory of benchmarks/performance.py."""

import math
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.cases import Inputs, Job, Setting
from benchmarks.contenders import Ours
from jodi_core.models.layers import ONEDNN

# Side of the square matrices whose product is the machine's peak.
PEAK_SIDE = {"cpu": 2048, "cuda": 8192}
# What torch's counter does not know: the text attention on a CPU, oneDNN's products there.
UNKNOWN_TO_TORCH = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
                    lambda q, k, v, *rest, **options: sdpa_flop_count(q, k, v)}
if ONEDNN:
    UNKNOWN_TO_TORCH[torch.ops.mkldnn._linear_pointwise] = \
        lambda x, weight, *rest, **options: 2 * math.prod(x) * weight[0]


@dataclass(frozen=True)
class Times:
    """Seconds of the turns of one contender."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        """Median and, in brackets, the range."""
        digits = 3 if self.median >= 0.1 else 5
        return f"{self.median:.{digits}f} ({min(self.seconds):.{digits}f}-{max(self.seconds):.{digits}f})"


def synchronise(device: torch.device) -> None:
    """Work on a GPU goes on after a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """The result is given up inside, so that no turn runs beside that of another contender."""
    synchronise(device)
    begun = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - begun


def interleaved(runs: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, Times]:
    """Every contender once per round, in turns; every other round in the reverse order."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[::-1 if number % 2 else 1]:
            found[name].append(seconds(runs[name], device))
    return {name: Times(tuple(times)) for name, times in found.items()}


def matrix_product(setting: Setting, side: int) -> tuple[Callable[[], Tensor], int]:
    """The fastest of torch's products of two square matrices here, and its floating-point operations.

    On a CPU torch has two libraries for float32: that of `torch.mm`, and oneDNN, which is twice as fast on some.
    """
    a, b = torch.randn(2, side, side, device=setting.device).to(setting.dtype)
    products = [lambda: torch.mm(a, b)]
    if setting.device.type == "cpu" and setting.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    trials = [min(seconds(product, setting.device) for _ in range(3)) for product in products]
    return products[trials.index(min(trials))], 2 * side ** 3


def operations(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Result of a run, and the floating-point operations (2 per multiply-add) of its products and convolutions."""
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH) as counter:
        result = run()
    return result, counter.get_total_flops()


def operations_of_ours(job: Job) -> int:
    """Counted without computing: so it stays right where the product runs kernels that a counter does not see."""
    setting = replace(job.setting, device=torch.device("meta"))
    job = replace(job, setting=setting)
    ours = Ours(setting, with_autoencoder=job.stage == "whole")
    inputs = Inputs.of(job, ours.network.y_embedder.y_embedding)
    return operations(lambda: getattr(ours, job.stage)(job, inputs))[1]


def own_bytes(contender, job: Job) -> int:
    networks = [contender.network] + ([contender.autoencoder] if job.stage == "whole" else [])
    return sum(value.nbytes for network in networks for value in network.state_dict().values())


def gpu_peak(run: Callable[[], object], contender, job: Job) -> int:
    """Bytes of the contender's own weights and of all that is allocated while it runs. What else is on the GPU, such
    as the other contenders, does not count."""
    device = job.setting.device
    synchronise(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) - before + own_bytes(contender, job)


def process_peak(process: int | str = "self") -> int:
    """Bytes that were resident in this process, or on Linux in another one, at most so far."""
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # On Linux ru_maxrss starts at what the parent process had.
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
