"""Where one evaluation of the transformer spends its time, part by part, beside what the machine could do.

    python benchmarks/parts.py --size 1600M --device cuda --dtype bfloat16 --task joint [--compiled] --output FILE.md

Every part of a middle block runs alone on random numbers of the case's shapes. GFLOP are those of products and
convolutions (2 per multiply-add), GB what has to be read and written at least: each operand once. The limits beside
which they stand are measured in the same run: a square matrix product, and a copy of a large tensor.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import timing  # noqa: E402
from benchmarks.cases import DTYPES, SIZES, TASKS, Inputs, Job, Setting, add_setting, jobs  # noqa: E402
from benchmarks.contenders import Ours  # noqa: E402
from benchmarks.performance import heading  # noqa: E402
from benchmarks.report import table  # noqa: E402
from jodi_core.models.layers import linear, linear_attention, modulate, pointwise  # noqa: E402

COLUMNS = ["part", "times", "ms in all", "of the parts", "GFLOP", "of the product's speed", "GB", "of the copy's speed"]
COPIED = {"cpu": 2 ** 28, "cuda": 2 ** 31}    # bytes


@dataclass(frozen=True)
class Part:
    """A computation of one block: run(*given) -> result. weights: what it reads beside `given`."""

    name: str
    run: Callable[..., Tensor]
    given: tuple[Tensor, ...]
    weights: tuple[nn.Module, ...] = ()
    times: int = 1

    def moved(self, result: Tensor) -> int:
        """Bytes, if everything is read once and written once."""
        read = sum(value.nbytes for layer in self.weights for value in layer.state_dict().values())
        return read + sum(part.nbytes for part in self.given) + result.nbytes


def nine_products(conv: nn.Conv2d, x_BHWC: Tensor) -> Tensor:
    """The depth-wise 3x3 convolution as a sum of shifted products, which a compiler makes one pass of."""
    height, width = x_BHWC.shape[1:3]
    padded = F.pad(x_BHWC, (0, 0, 1, 1, 1, 1))
    shifted = [padded[:, row:row + height, column:column + width] * conv.weight[:, 0, row, column]
               for row in range(3) for column in range(3)]
    return sum(shifted) + conv.bias


def gated(wide_BHWC: Tensor) -> Tensor:
    """The gate of MixFFN."""
    value, gate = wide_BHWC.chunk(2, dim=-1)
    return value * F.silu(gate)


def parts(ours: Ours, job: Job, inputs: Inputs) -> list[Part]:
    """Of one block, for the case's rows, domains and tokens."""
    block, config, setting = ours.network.blocks[1], job.setting.size.config, job.setting
    B, D, C, H = job.batch, len(job.roles.active), config.hidden_size, config.mlp_hidden
    side = job.pixels // setting.size.autoencoder.factor // config.patch_size
    N, K, text_length = side * side, config.linear_head_dim, int(inputs.lengths_B.max())

    def random(*shape):
        return torch.randn(shape, device=setting.device, dtype=setting.dtype)

    x_BDNC, vector = random(B, D, N, C), random(B, D, 1, C)
    heads = tuple(random(B, C // K, D * N, K).relu() for _ in range(3))
    q = random(B, config.num_heads, D * N, C // config.num_heads)
    text = tuple(random(B, config.num_heads, text_length, C // config.num_heads) for _ in range(2))
    wide_BHWC, picture_BHWC = random(B * D, side, side, 2 * H), random(B * D, side, side, C)
    attn, ffn = block.attn, block.mlp
    depthwise = ffn.depth_conv.conv

    return [
        Part("normalise, modulate", lambda x, shift: modulate(block.norm1(x), shift, shift), (x_BDNC, vector), times=2),
        Part("qkv", partial(linear, attn.qkv), (x_BDNC,), (attn.qkv,)),
        Part("linear attention", linear_attention, heads),
        Part("projections C to C", partial(linear, attn.proj), (x_BDNC,), (attn.proj,), times=3),
        Part("text attention", F.scaled_dot_product_attention, (q, *text)),
        Part("gate, add", torch.addcmul, (x_BDNC, vector, x_BDNC.clone()), times=2),
        Part("MixFFN in, SiLU", partial(pointwise, ffn.inverted_conv.conv, silu=True), (picture_BHWC,),
             (ffn.inverted_conv,)),
        Part("depth-wise 3x3", lambda x: depthwise(x.permute(0, 3, 1, 2)), (wide_BHWC,), (depthwise,)),
        Part("MixFFN gate", gated, (wide_BHWC,)),
        Part("MixFFN out", partial(pointwise, ffn.point_conv.conv), (random(B * D, side, side, H),),
             (ffn.point_conv,)),
    ]


def variants(plain: list[Part]) -> list[Part]:
    """The same parts, compiled, and others that only a compiler makes fast."""
    depthwise = next(part for part in plain if part.name == "depth-wise 3x3")
    conv, = depthwise.weights
    extra = [replace(depthwise, name="depth-wise 3x3 as nine products", run=partial(nine_products, conv)),
             replace(depthwise, name="depth-wise 3x3 as nine products, with the gate",
                     run=lambda x: gated(nine_products(conv, x)))]
    return [replace(part, name=f"{part.name}, compiled", run=torch.compile(part.run, dynamic=False))
            for part in (*plain, *extra)]


@torch.no_grad()
def measured(job: Job, options) -> str:
    ours = Ours(job.setting, with_autoencoder=False)
    device, depth = job.setting.device, job.setting.size.config.depth
    inputs = Inputs.of(job, ours.network.y_embedder.y_embedding)
    plain = parts(ours, job, inputs)
    compiled = variants(plain) if options.compiled else []
    whole = partial(ours.forward, job, inputs)
    product, product_flops = timing.matrix_product(job.setting, timing.PEAK_SIDE[device.type])
    block = torch.empty(COPIED[device.type] // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(block)
    limits = {"product": product, "copy": lambda: target.copy_(block), "whole": whole}
    runs = limits | {part.name: partial(part.run, *part.given) for part in (*plain, *compiled)}
    for run in runs.values():
        run()
    times = timing.interleaved(runs, options.rounds, device)
    peak, speed = product_flops / times["product"].median, 2 * block.nbytes / times["copy"].median
    total = depth * sum(times[part.name].median * part.times for part in plain)
    rows = []
    for part in (*plain, *compiled):
        count = depth * part.times
        seconds = times[part.name].median * count
        result, flops = (runs[part.name](), 0) if part in compiled else timing.operations(runs[part.name])
        flops, moved = flops * count, part.moved(result) * count
        rows.append([part.name, str(count), f"{seconds * 1e3:.1f}", f"{seconds / total:.0%}",
                     f"{flops / 1e9:.1f}" if flops else "", f"{flops / seconds / peak:.0%}" if flops else "",
                     f"{moved / 1e9:.2f}", f"{moved / seconds / speed:.0%}"])
    evaluation, flops = times["whole"].median, timing.operations_of_ours(job)
    rows += [["sum of the parts", "", f"{total * 1e3:.1f}", "100%", "", "", "", ""],
             ["one evaluation", "", f"{evaluation * 1e3:.1f}", f"{evaluation / total:.0%}", f"{flops / 1e9:.1f}",
              f"{flops / evaluation / peak:.0%}", "", ""]]
    return (f"{job.name}; matrix product {peak / 1e9:.0f} GFLOP/s, copy {speed / 1e9:.0f} GB/s\n\n"
            + table(COLUMNS, rows))


def parse(arguments: list[str]):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting(parser)
    parser.add_argument("--task", choices=TASKS, default="joint")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pixels", type=int, help="side of the pictures; default by model")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each part")
    parser.add_argument("--compiled", action="store_true", help="each part by torch.compile as well")
    parser.add_argument("--output", type=Path, metavar="FILE.md")
    options = parser.parse_args(arguments)
    options.arguments = arguments
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(options.threads)
    size = SIZES[options.size]
    job, = jobs(Setting(size, torch.device(options.device), DTYPES[options.dtype]), ["forward"], [options.task],
                [options.batch], [options.pixels or size.pixels], text_tokens=options.text_tokens, steps=None)
    text = "\n".join([*heading("benchmarks/parts.py", options, options.dtype), measured(job, options), ""])
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
