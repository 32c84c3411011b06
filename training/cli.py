"""python -m training bundle|cache|train|export CONFIG.toml [section.key=value ...]

bundle makes everything that the tiny model consists of; cache, train and export are its later steps alone. All but
export also run as several processes: python -m torch.distributed.run --nproc-per-node N -m training ...
"""

import argparse
from pathlib import Path

from .bundle import make_bundle
from .config import load_config
from .parallel import Processes
from .run import export, prepare, train


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("bundle", "cache", "train", "export"))
    parser.add_argument("config", help="a TOML file, such as training/configs/tiny.toml")
    parser.add_argument("overrides", nargs="*", help="section.key=value, as in TOML")
    parser.add_argument("--output", type=Path, help="bundle: the folder, export: the file to write")
    parser.add_argument("--merged", action="store_true", help="export: the whole model, LoRA or DoRA merged into it")
    parser.add_argument("--raw", action="store_true", help="export: the last weights and not the averaged ones")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    config = load_config(options.config, options.overrides)
    if options.command == "export":
        return export(config, options.output or Path(config.output) / f"{config.mode}.safetensors",
                      merged=options.merged, raw=options.raw)
    processes = Processes.start(config.speed.device)
    try:
        if options.command == "cache":
            prepare(config, processes)
        elif options.command == "train":
            train(config, processes)
        else:
            make_bundle(config, options.output or Path(config.output) / "bundle", processes)
    finally:
        processes.close()
