"""python -m training cache|train|export CONFIG.toml [key=value ...]; `train` also under torchrun."""

import argparse
import os
from pathlib import Path

import torch.distributed as dist

from .config import load_config
from .loop import export, prepare_data, train


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("command", choices=("cache", "train", "export"))
    parser.add_argument("config", help="a TOML file, such as training/configs/tiny.toml")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--output", type=Path, help="export: the file to write")
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.overrides)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if options.command == "export":
        export(config, options.output or Path(config.output) / "transformer.safetensors")
    elif options.command == "cache":
        prepare_data(config, rank, world)
    else:
        if world > 1:
            dist.init_process_group("gloo")
        try:
            train(config, rank, world)
        finally:
            if world > 1:
                dist.destroy_process_group()
