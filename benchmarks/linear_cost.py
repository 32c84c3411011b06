"""Cost of one evaluation against pixels and against active domains, with the line that fits best (docs/performance.md).

    python benchmarks/linear_cost.py --pixels 512 1024 2048 4096 --task perceive1 --rounds 3 --output FILE.md
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import timing  # noqa: E402
from benchmarks.cases import DTYPES, GROWING, SIZES, TASKS, Inputs, Job, Setting, add_setting, jobs  # noqa: E402
from benchmarks.contenders import Ours  # noqa: E402
from benchmarks.performance import heading  # noqa: E402
from benchmarks.report import table  # noqa: E402


def line(x_P: Tensor, y_P: Tensor) -> tuple[float, float, float, float]:
    """The line of least squares through points: slope, intercept, R^2, and the largest distance of a point from it as
    a share of the point's own value. x and y are float64."""
    slope, intercept = torch.linalg.lstsq(torch.stack([x_P, torch.ones_like(x_P)], dim=1), y_P).solution.tolist()
    error_P = y_P - (slope * x_P + intercept)
    spread = (y_P - y_P.mean()).square().sum()
    return slope, intercept, (1 - error_P.square().sum() / spread).item(), (error_P / y_P).abs().max().item()


def measured(named: dict[float, Job], rounds: int) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of points, then rows of the two lines through them. named: place on the axis -> case."""
    ours = Ours(next(iter(named.values())).setting, with_autoencoder=False)
    inputs = {x: Inputs.of(job, ours.network.y_embedder.y_embedding) for x, job in named.items()}
    runs = {x: partial(ours.forward, job, inputs[x]) for x, job in named.items()}
    for run in runs.values():
        run()
    times = timing.interleaved(runs, rounds, ours.setting.device)
    x_P = torch.tensor(list(named), dtype=torch.float64)
    values = {"seconds": [times[x].median for x in named],
              "GFLOP": [timing.operations_of_ours(job) / 1e9 for job in named.values()]}
    points = [[job.name, f"{x:g}", str(times[x]), f"{flops:.1f}", f"{flops / times[x].median:.0f}"]
              for (x, job), flops in zip(named.items(), values["GFLOP"])]
    lines = []
    for name, numbers in values.items():
        slope, intercept, r2, worst = line(x_P, torch.tensor(numbers, dtype=torch.float64))
        lines.append([name, f"{slope:.4g}", f"{intercept:.3g}", f"{r2:.5f}", f"{worst:.1%}"])
    return points, lines


def chapter(axis: str, named: dict[float, Job], rounds: int) -> str:
    points, lines = measured(named, rounds)
    found = table(["case", axis, "seconds", "GFLOP", "GFLOP/s"], points) + "\n\n" + table(
        [f"line over {axis}", "slope", "at 0", "R^2", "worst deviation of a point"], lines)
    print(f"\n{found}\n", flush=True)
    return found


def parse(arguments: list[str]):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting(parser)
    parser.add_argument("--task", choices=TASKS, default="perceive1", help="of the chapter on pixels")
    parser.add_argument("--pixels", nargs="+", type=int, default=[512, 1024, 2048, 4096], help="sides of pictures")
    parser.add_argument("--domains-pixels", type=int, default=1024, help="side, in the chapter on domains")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each point")
    parser.add_argument("--output", type=Path, metavar="FILE.md")
    options = parser.parse_args(arguments)
    options.arguments = arguments
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(options.threads)
    setting = Setting(SIZES[options.size], torch.device(options.device), DTYPES[options.dtype])
    start = heading("benchmarks/linear_cost.py", options, options.dtype)

    def cases(task, sides):
        return jobs(setting, ["forward"], [task], [1], sides, text_tokens=options.text_tokens, steps=None)

    by_pixels = {job.pixels ** 2 / 1e6: job for job in cases(options.task, options.pixels)}
    by_domains = {len(job.roles.active): job for task in GROWING for job in cases(task, [options.domains_pixels])}
    text = "\n".join([*start, chapter("megapixels", by_pixels, options.rounds), "",
                      chapter("active domains", by_domains, options.rounds), ""])
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
