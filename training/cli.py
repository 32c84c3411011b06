"""python -m training bundle|cache|train|export CONFIG.toml [section.key=value ...]

bundle makes everything that the tiny model consists of; cache, train and export are its later steps alone. All but
export also run as several processes: python -m torch.distributed.run --nproc-per-node N -m training ...
"""

import argparse
import os
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from .bundle import make_bundle
from .config import load_config
from .loop import export, prepare_data, train


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("bundle", "cache", "train", "export"))
    parser.add_argument("config", help="a TOML file, such as training/configs/tiny.toml")
    parser.add_argument("overrides", nargs="*", help="section.key=value, as in TOML")
    parser.add_argument("--output", type=Path, help="bundle: the folder, export: the file to write")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    config = load_config(options.config, options.overrides)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:    # others wait while one makes the autoencoder
        dist.init_process_group("gloo", timeout=timedelta(hours=4))
    try:
        if options.command == "export":
            export(config, options.output or Path(config.output) / "transformer.safetensors")
        elif options.command == "cache":
            prepare_data(config, rank, world)
        elif options.command == "train":
            train(config, rank, world)
        else:
            make_bundle(config, options.output or Path(config.output) / "bundle", rank, world)
    finally:
        if world > 1:
            dist.destroy_process_group()
