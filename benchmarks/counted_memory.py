"""Memory that one evaluation, and one picture through the autoencoder, need beside the weights: counted, not measured.

    python benchmarks/counted_memory.py --size 1600M --dtype bfloat16 --output FILE.md

The product's code runs on tensors without data; counted are the bytes of all that is alive at once. Attention counts as
one fused kernel, and what kernels take for themselves is not seen. ComfyUI is told 47186 numbers per latent place
(`memory_usage_factor` 4.5 of its formula) and 1000 per pixel.
"""

import argparse
import sys
import weakref
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import DTYPES, SIZES, Inputs, Setting, jobs  # noqa: E402
from benchmarks.contenders import Ours  # noqa: E402
from benchmarks.report import table  # noqa: E402
from jodi_core.models import layers  # noqa: E402

TASKS = ("joint", "control", "perceive1", "perceive7")


class Alive(TorchDispatchMode):
    """`most` bytes were alive at once, without what was there before."""

    def __init__(self, there: list[Tensor]):
        super().__init__()
        self.now = self.most = 0
        self.seen = {value.untyped_storage()._cdata for value in there}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_flatten(result)[0]:
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in self.seen:
                storage = value.untyped_storage()
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


@torch.no_grad()
def counted(run, *given, there) -> int:
    """Bytes that are alive at most while run(*given) computes, beside those of the tensors `there`."""
    with patch.object(layers.F, "scaled_dot_product_attention", lambda q, *rest, **options: torch.empty_like(q)), \
            patch.dict(layers.WIDE_BYTES, meta=layers.WIDE_BYTES["cuda"]), Alive(there) as found:
        run(*given)
    return found.most


def row(name: str, rows: int, most: int, size: int) -> list[str]:
    """size: bytes of one number per place."""
    return [name, str(rows), f"{most / 1e9:.2f}", f"{most / size:.0f}"]


def measured(setting: Setting, sides: list[int]) -> list[list[str]]:
    """A guided evaluation has two rows, perception one; the autoencoder takes one picture at a time."""
    ours, factor, found = Ours(setting, with_autoencoder=True), setting.size.autoencoder.factor, []
    place = {"device": setting.device, "dtype": setting.dtype}
    for side in sides:
        for task in TASKS:
            rows = 1 if task.startswith("perceive") else 2
            job, = jobs(setting, ["forward"], [task], [rows], [side], text_tokens=60, steps=None)
            inputs = Inputs.of(job, ours.network.y_embedder.y_embedding)
            there = [*ours.network.state_dict().values(), *(x for x in vars(inputs).values() if isinstance(x, Tensor))]
            found.append(row(f"{task}, {side} px", rows, counted(ours.forward, job, inputs, there=there),
                             rows * len(job.roles.active) * (side // factor) ** 2 * setting.dtype.itemsize))
        weights = list(ours.autoencoder.state_dict().values())
        latent = torch.empty(1, setting.size.config.in_channels, side // factor, side // factor, **place)
        for name, run, given in (("encode", ours.autoencoder.encode, torch.empty(1, 3, side, side, **place)),
                                 ("decode", ours.autoencoder.decode, latent)):
            found.append(row(f"{name}, {side} px", 1, counted(run, given, there=[*weights, given]),
                             side * side * setting.dtype.itemsize))
    return found


def parse(arguments: list[str]):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1600M", help="model")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--pixels", nargs="+", type=int, default=[512, 1024, 2048], help="sides of the pictures")
    parser.add_argument("--output", type=Path, metavar="FILE.md")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    setting = Setting(SIZES[options.size], torch.device("meta"), DTYPES[options.dtype])
    text = table(["case", "rows", "GB", "numbers per latent place, or per pixel"], measured(setting, options.pixels))
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
