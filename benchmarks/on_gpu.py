"""Everything that only a GPU can tell, one table after the other (docs/performance.md).

    python benchmarks/on_gpu.py --reference ../Jodi-original --comfyui DIR --output FOLDER [--only NAME ...] [--list]

Each run is a process with a time limit, and writes NAME.md and NAME.log into the folder. One that fails, or for which
an original or a ComfyUI is missing, does not stop the others. Exit status 1 if any failed.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGE = "--size 1600M --device cuda"
SPEED = f"benchmarks/performance.py {LARGE} --rounds 3 --output TABLE"
BESIDE, ALONE, BF16 = "--reference ORIGINAL", "--no-dense", "--dtypes bfloat16"
# name -> arguments of Python. ORIGINAL, HOST and TABLE are put in. The most wanted come first.
RUNS = {
    "conformance": "-m jodi_core.conformance tests/golden/jodi --device cuda",
    "transformer": f"{SPEED} {BESIDE} {BF16} --compile --stages forward sample --tasks joint perceive1",
    "whole": f"{SPEED} {BESIDE} {BF16} --stages whole --tasks perceive1",
    "node_graph": f"benchmarks/node_graph.py {LARGE} --comfyui HOST --vram 0 8 5 --tasks joint perceive1 --rounds 2 "
                  "--output TABLE",
    "parts": f"benchmarks/parts.py {LARGE} --dtype bfloat16 --task joint --compiled --output TABLE",
    "throughput": f"{SPEED} {ALONE} {BF16} --stages whole --tasks perceive7 --batches 1 8 32",
    "linear": f"benchmarks/linear_cost.py {LARGE} --dtype bfloat16 --output TABLE",
    "more_tasks": f"{SPEED} {BESIDE} {BF16} --compile --stages forward --tasks control perceive3 perceive7 --batches "
                  "1 4",
    "pixels": f"{SPEED} {ALONE} {BF16} --compile --stages forward --tasks joint perceive1 --pixels 512 1536 2048",
    "float32": f"{SPEED} {BESIDE} --dtypes float32 --stages forward --tasks joint perceive1",
    "training": "benchmarks/train_throughput.py --size full --output TABLE",
}


def command(name: str, options) -> list[str] | None:
    """Arguments of Python, or None if what they need is not given."""
    places = {"ORIGINAL": options.reference, "HOST": options.comfyui, "TABLE": options.output / f"{name}.md"}
    words = RUNS[name].split()
    return None if any(places.get(word, word) is None for word in words) else \
        [str(places.get(word, word)) for word in words]


def run(name: str, arguments: list[str], options) -> bool:
    begun = time.monotonic()
    with open(options.output / f"{name}.log", "wb") as log:
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            status = process.wait(options.seconds)
        except subprocess.TimeoutExpired:
            status = f"stopped after {options.seconds:g} s"
            process.send_signal(signal.SIGINT)    # so that it stops its ComfyUI and removes its files
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
    print(f"{name}: {time.monotonic() - begun:.0f} s, " + ("done" if status == 0 else f"FAILED ({status})"), flush=True)
    return status == 0


def parse(arguments: list[str]):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, metavar="DIR", help="checkout of the original")
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="the folder with main.py")
    parser.add_argument("--output", type=Path, metavar="FOLDER", default=Path("on_gpu"))
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=540, help="limit of a run")
    parser.add_argument("--list", action="store_true", help="print the commands instead")
    options = parser.parse_args(arguments)
    for name in ("reference", "comfyui", "output"):    # commands run in the repository
        path = getattr(options, name)
        setattr(options, name, path and path.resolve())
    return options


def main(arguments: list[str] | None = None) -> int:
    options, well = parse(sys.argv[1:] if arguments is None else arguments), True
    if not options.list:
        options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        found = command(name, options)
        if found is None:
            print(f"{name}: left out, it needs " + ("--comfyui" if "HOST" in RUNS[name] else "--reference"))
        elif options.list:
            print(f"{name}: python {shlex.join(found)}")
        else:
            well &= run(name, found, options)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
