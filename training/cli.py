"""python -m training bundle|cache|train|evaluate|export|check-data CONFIG.toml [section.key=value ...]
python -m training pack FOLDER_SET OUT_DIR
python -m training annotate FOLDER
python -m training plot RUN [RUN2 ...]

bundle makes everything that the tiny model consists of; cache, train and export are its later steps alone. check-data
reads the data sets before a run; pack writes one as tar shards. bundle, cache, train and evaluate also run as several
processes:
python -m torch.distributed.run --nproc-per-node N -m training ...
"""

import argparse
import sys
from pathlib import Path

from . import annotate, card, check_data, dual_bundle, pack, plot
from .bundle import make_bundle
from .config import TrainConfig
from .config_file import load_config
from .faults import exit_code, tell_end
from .parallel import Processes
from .run import evaluate, export, prepare, train


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    with_config(commands, "train", on_processes(train), "train, from the newest checkpoint if there is one")
    with_config(commands, "cache", on_processes(prepare), "encode the data that is not yet in the cache")
    with_config(commands, "evaluate", on_processes(evaluate), "measure the newest checkpoint on the samples kept apart")
    command = with_config(commands, "export", write_export, "write the newest checkpoint as a file for ComfyUI")
    command.add_argument("--output", type=Path, help="the file to write")
    command.add_argument("--merged", action="store_true", help="the whole model, LoRA or DoRA merged into it")
    command.add_argument("--raw", action="store_true", help="the last weights and not the averaged ones")
    command.add_argument("--upload", metavar="OWNER/NAME", help="put it into a repository of the hub, with a card")
    command.add_argument("--private", action="store_true", help="of a repository that is new")
    command = with_config(commands, "bundle", write_bundle, "make everything that the tiny model consists of")
    command.add_argument("--output", type=Path, help="the folder to write")
    command = with_config(commands, "check-data", check_data.main, "look for missing, damaged and odd files; exit code "
                          "1 if training would skip or stop on any")
    check_data.options(command)
    pack.add_command(commands)
    annotate.add_command(commands)
    plot.add_command(commands)
    options, late = parser.parse_known_args(arguments)
    if any(item.startswith("-") or "=" not in item for item in late) or (late and "overrides" not in options):
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    if late:    # those after an option
        options.overrides += late
    return options


def with_config(commands, name: str, run, does: str) -> argparse.ArgumentParser:
    """A command for what a configuration describes; run(options) executes it."""
    command = commands.add_parser(name, help=does, description=does)
    command.add_argument("config", help="a TOML file, such as training/configs/tiny.toml")
    command.add_argument("overrides", nargs="*", help="section.key=value, as in TOML")
    command.set_defaults(run=lambda options: run(load_config(options.config, options.overrides), options))
    return command


def on_processes(work):
    """For commands that several processes share."""
    def run(config: TrainConfig, options: argparse.Namespace) -> None:
        processes = Processes.start(config.speed.device)
        try:
            work(config, processes)
        except Exception as error:
            code = exit_code(error)
            if code is None:
                raise
            sys.exit(tell_end(error, code))
        finally:
            processes.close()
    return run


def write_export(config: TrainConfig, options: argparse.Namespace) -> None:
    target = options.output or Path(config.output) / f"{config.mode}.safetensors"
    step = export(config, target, merged=options.merged, raw=options.raw)
    if options.upload:
        print(card.upload(options.upload, target, card.card(config, target.name, step, options.merged),
                          private=options.private))


def write_bundle(config: TrainConfig, options: argparse.Namespace) -> None:
    makers = {"jodi": make_bundle, "dual_diffusion": dual_bundle.make_bundle}
    if config.family not in makers:
        raise ValueError(f"bundles are made of {' and '.join(makers)}; this is {config.family}: train and export it")
    folder, make = options.output or Path(config.output) / "bundle", makers[config.family]
    on_processes(lambda config, processes: make(config, folder, processes))(config, options)


def main(arguments: list[str] | None = None) -> int | None:
    """The exit code of the program; None is 0."""
    options = parse(arguments)
    return options.run(options)
