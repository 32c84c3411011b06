#!/usr/bin/env python3
"""Sets everything up and shows or tests it; needs Python 3.10 or newer and pip's package index, nothing else.

    python run.py demo    a real ComfyUI runs the joint workflow on the tiny model and writes the pictures to output/
    python run.py test    the whole test suite, against that ComfyUI

Both make .venv/ and .comfyui/ beside this file once (about 2 GB; several more where pip's torch brings CUDA along).
"""

import argparse
import sys
from pathlib import Path

if sys.version_info < (3, 10):
    sys.exit("Python 3.10 or newer is needed; this is " + sys.version.split()[0])

from scripts import demo, environment

ROOT = Path(__file__).resolve().parent


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of the command, and what is left over for pytest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("demo", help="set up, run the joint workflow, write the pictures")
    show.add_argument("--open", action="store_true", help="leave ComfyUI running and open it in the browser")
    show.add_argument("--comfyui", type=Path, metavar="PATH", help="use this ComfyUI (the folder with main.py)")
    show.add_argument("--python", type=Path, help="the Python that runs it (default: the one found beside PATH)")
    show.add_argument("--seed", type=int, help="another seed than the workflow's")
    show.add_argument("--output", type=Path, default=ROOT / "output", help="where the pictures go")
    commands.add_parser("test", help="set up and run pytest; further arguments go to pytest", add_help=False)
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "test":
        parser.error("unknown arguments: " + " ".join(rest))
    return options, rest


def main(arguments: list[str]) -> int:
    options, rest = parse(arguments)
    try:
        if options.command == "test":
            return environment.run_tests(ROOT, rest)
        return demo.run(ROOT, options)
    except (environment.SetupError, demo.DemoError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
