"""Time to the next picture on a ComfyUI with this pack after each change that a user makes (docs/performance.md).

    python benchmarks/warm_host.py --server http://127.0.0.1:8188

Start the server anew before, so that the first row reads the files. The tiny model, 2 steps: what costs time here is
what is loaded or compiled.
"""

import argparse
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.approximations import TASKS, Way, prompt_of  # noqa: E402
from benchmarks.graphs import decoding  # noqa: E402
from benchmarks.report import table  # noqa: E402
from benchmarks.server import Server  # noqa: E402
from benchmarks.tiny_quality import FIRST_SEED, truth_of  # noqa: E402

SHORT, LONG = "a red house", "a red house on the left, a blue car on the right, under a clear blue sky, on green grass"
CUSTOM = {"size": "custom", "size.width": 192, "size.height": 96}
# what changes, task, prompt, seed, other inputs of the role switch
CHANGES = [("first picture", "joint", SHORT, 1, {}), ("seed", "joint", SHORT, 2, {}), ("prompt", "joint", LONG, 2, {}),
           ("prompt again", "joint", f"a dog, {SHORT}", 2, {}), ("size", "joint", SHORT, 3, CUSTOM),
           ("roles: control", "control", SHORT, 3, {}), ("roles: perception", "perception", "", 3, {}),
           ("back to the first roles", "joint", LONG, 4, {}), ("back to perception", "perception", "", 4, {})]
COMPILED = (("TorchCompileModel", {"backend": "inductor"}),)
WAYS = {"seconds": Way(0.1), "with TorchCompileModel": Way(0.1, patches=COMPILED)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="URL", help="a running ComfyUI that has this pack")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="the second one takes minutes")
    options = parser.parse_args(arguments)
    server, rows = Server(options.server), {change[0]: [] for change in CHANGES}
    truth = truth_of([FIRST_SEED])
    files = {name: server.upload(f"warm_{name}.png", truth[name][0]) for name in ("image", "depth", "albedo")}
    for way in map(WAYS.get, options.ways):
        for name, task, text, seed, switch in CHANGES:
            prompt = prompt_of(way, TASKS[task], text, seed, files, **switch) | decoding(TASKS[task])
            rows[name].append(f"{server.run(prompt)[1]:.2f}")
            print(name, rows[name][-1], file=sys.stderr, flush=True)
    print(table(["change", *options.ways], [[name, *cells] for name, cells in rows.items()]))


if __name__ == "__main__":
    main()
