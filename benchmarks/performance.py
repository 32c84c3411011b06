"""Speed of the model core, beside the original and beside the dense computation of the tests (docs/performance.md).

    python benchmarks/performance.py --size cpu --stages forward --tasks joint perceive1 [--reference DIR]
    python benchmarks/performance.py --size 1600M --device cuda --dtypes bfloat16 --batches 1 4 --output FILE.md
    python benchmarks/performance.py --quick

All have the same random weights and inputs, take turns in one run, and must agree: a row that does not is marked, and
the exit status is 1. --reference is a checkout of the original's public repository; nothing of it is part of this one.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import timing  # noqa: E402
from benchmarks.cases import (DTYPES, SIZES, STAGES, TASKS, Inputs, Job, Setting, jobs,  # noqa: E402
                              relative_difference)
from benchmarks.contenders import Compiled, Dense, Ours  # noqa: E402

OURS, COMPILED, ORIGINAL, DENSE, PEAK = "ours", "ours, compiled", "original", "dense", "matrix product"
COLUMNS = ("case", "contender", "seconds", "speed", "GFLOP", "GFLOP/s", "of peak", "peak memory, MB", "difference")


def contender(name: str, setting: Setting, options, *, with_autoencoder: bool):
    if name == ORIGINAL:
        from benchmarks.reference import Reference    # needs packages that the others do not
        return Reference(setting, options.reference, with_autoencoder=with_autoencoder)
    return {OURS: Ours, COMPILED: Compiled, DENSE: Dense}[name](setting, with_autoencoder=with_autoencoder)


def compare(job: Job, contenders: dict, options) -> tuple[list[list[str]], bool]:
    """Rows of one case, and whether all results agree with those of the last contender (original before dense)."""
    inputs = Inputs.of(job, contenders[OURS].network.y_embedder.y_embedding)
    runs = {name: partial(getattr(made, job.stage), job, inputs) for name, made in contenders.items()}
    standard = ORIGINAL if ORIGINAL in runs else list(runs)[-1]
    flops, results, counted = {}, {}, timing.operations_of_ours(job)
    torch.compiler.reset()    # or it would give up compiling after a few cases
    for name, run in runs.items():    # this also warms up
        results[name], flops[name] = timing.operations(run) if name in (ORIGINAL, DENSE) else (run(), counted)
    differences = {name: relative_difference(result, results[standard]) for name, result in results.items()}
    del results
    product, product_flops = timing.matrix_product(job.setting, options.peak_side)
    times = timing.interleaved({PEAK: product, **runs}, options.rounds, job.setting.device)
    peak, rows = product_flops / times[PEAK].median, []
    for name, run in runs.items():
        speed = flops[name] / times[name].median
        right = differences[name] <= job.tolerance    # False for NaN
        rows.append([job.name, name, str(times[name]), f"{times[standard].median / times[name].median:.2f}",
                     f"{flops[name] / 1e9:.1f}", f"{speed / 1e9:.1f}", f"{speed / peak:.0%}",
                     memory(job, name, contenders[name], run, options),
                     ("" if right else "WRONG ") + (f"{differences[name]:.1e}" if name != standard else "")])
    rows.append([job.name, PEAK, str(times[PEAK]), "", f"{product_flops / 1e9:.1f}", f"{peak / 1e9:.1f}", "100%", "",
                 ""])
    return rows, all(difference <= job.tolerance for difference in differences.values())


def memory(job: Job, name: str, made, run, options) -> str:
    """In 10^6 bytes: of tensors on a GPU, else of a process that runs nothing else."""
    if job.setting.device.type == "cuda":
        return f"{timing.gpu_peak(run, made, job) / 1e6:.0f}"
    if options.no_memory:
        return ""
    dtype = next(text for text, value in DTYPES.items() if value == job.setting.dtype)
    command = [sys.executable, __file__, "--only", name, "--size", options.size, "--dtypes", dtype, "--stages",
               job.stage, "--tasks", job.task, "--batches", str(job.batch), "--pixels", str(job.pixels), "--steps", "2",
               "--text-tokens", str(job.text_tokens), "--threads", str(options.threads)]
    command += ["--reference", str(options.reference)] if options.reference else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"measuring the memory of {name} in {job.name} failed:\n{done.stderr}")
    return done.stdout.split()[-1]


def run_once(options, setting: Setting, job: Job) -> None:
    """What `memory` starts. The weights that the inputs need are those of the contender itself."""
    made = contender(options.only, setting, options, with_autoencoder=job.stage == "whole")
    getattr(made, job.stage)(job, Inputs.of(job, made.network.y_embedder.y_embedding))
    print(f"{timing.process_peak() / 1e6:.0f}")


def profile(job: Job, ours: Ours) -> str:
    """Where the time of one of our runs goes, by operator."""
    inputs = Inputs.of(job, ours.network.y_embedder.y_embedding)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if job.setting.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    run = partial(getattr(ours, job.stage), job, inputs)
    run()
    with torch.profiler.profile(activities=activities, record_shapes=True) as found:
        run()
        timing.synchronise(job.setting.device)
    key = f"self_{job.setting.device.type}_time_total"
    return found.key_averages(group_by_input_shape=True).table(sort_by=key, row_limit=30, max_shapes_column_width=60)


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def heading(script: str, options, dtype: str) -> list[str]:
    """What was run on what machine. options: of the script, with size, device, rounds, and its arguments."""
    command = shlex.join(["python", script, *options.arguments])
    return [f"`{command}`", "",
            f"{options.size} model, {dtype}; {machine(torch.device(options.device))}; torch {torch.__version__}, "
            f"Python {platform.python_version()}; {time.strftime('%Y-%m-%d')}; load average at the start "
            f"{os.getloadavg()[0]:.1f}; {options.rounds} rounds", ""]


def table(rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [COLUMNS, ["---"] * len(COLUMNS), *rows]]


def parse(arguments: list[str]):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu", help="model")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--pixels", nargs="+", type=int, help="sides of the pictures; default by model")
    parser.add_argument("--steps", type=int, help="of sampling; default 20, for perception 10")
    parser.add_argument("--text-tokens", type=int, default=60, help="valid ones of the first caption")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="checkout of the original")
    parser.add_argument("--dense", action=argparse.BooleanOptionalAction,
                        help="the dense computation as well; default where there is no --reference")
    parser.add_argument("--compile", action="store_true", help="ours compiled as well")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak-side", type=int, help="of the matrices of the peak; default 2048, on a GPU 8192")
    parser.add_argument("--no-memory", action="store_true", help="saves a process per row on the CPU")
    parser.add_argument("--output", type=Path, metavar="FILE.md")
    parser.add_argument("--profile", action="store_true", help="operators of our runs instead of the table")
    parser.add_argument("--quick", action="store_true", help="everything at a tiny size, for equality only: seconds")
    parser.add_argument("--only", choices=(OURS, COMPILED, ORIGINAL, DENSE), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.arguments = arguments
    if options.quick:
        options.size, options.batches, options.dtypes = "tiny", [2], list(DTYPES)
        options.tasks, options.pixels = ["control", "perceive1"], [64]
        options.rounds, options.steps, options.no_memory, options.peak_side = 1, 2, True, 64
    side = SIZES[options.size].autoencoder.factor
    options.pixels = options.pixels or [SIZES[options.size].pixels]
    if any(pixels % side for pixels in options.pixels):
        parser.error(f"--pixels must be multiples of {side}")
    options.peak_side = options.peak_side or timing.PEAK_SIDE[torch.device(options.device).type]
    options.dense = options.reference is None if options.dense is None else options.dense
    return options


def measure(options, setting: Setting) -> tuple[list[list[str]], bool]:
    """Rows of all cases in one number type, and whether all agree."""
    asked = {OURS: True, COMPILED: options.compile, ORIGINAL: options.reference is not None, DENSE: options.dense}
    names = [name for name, wanted in asked.items() if wanted]
    wanted = jobs(setting, options.stages, options.tasks, options.batches, options.pixels,
                  text_tokens=options.text_tokens, steps=options.steps)
    if options.only:
        run_once(options, setting, *wanted)
        return [], True
    contenders = {name: contender(name, setting, options, with_autoencoder="whole" in options.stages)
                  for name in names[:1 if options.profile else None]}
    rows, right = [], True
    for job in wanted:
        if options.profile:
            print(f"{job.name}\n{profile(job, contenders[OURS])}")
            continue
        found, agree = compare(job, contenders, options)
        rows, right = rows + found, right and agree
        print("\n".join(" ".join(cells) for cells in found), flush=True)
    return rows, right


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    torch.set_num_threads(options.threads)
    text, all_right = [], True
    for dtype in options.dtypes:
        start = heading("benchmarks/performance.py", options, dtype)
        rows, right = measure(options, Setting(SIZES[options.size], torch.device(options.device), DTYPES[dtype]))
        text += [*start, *table(rows), ""]
        all_right &= right
    if not (options.only or options.profile):
        print("\n" + "\n".join(text) + ("" if all_right else "Rows marked WRONG differ by more than the tolerance."))
        if options.output:
            options.output.write_text("\n".join(text), encoding="utf-8")
    return 0 if all_right else 1


if __name__ == "__main__":
    sys.exit(main())
