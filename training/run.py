"""From a configuration to a run: data, model, optimisers, the newest checkpoint; then the loop. And what comes out."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.checkpoint import CheckpointException

from jodi_core.domains import JointConfig

from . import checkpoint, loop
from .boards import Files
from .config import SetConfig, TrainConfig
from .config_file import differences
from .data import MicroBatches
from .ema import Ema
from .encoders import Encoders
from .evaluate import Evaluator
from .families import FAMILY
from .filling import fill
from .model import domain_weights, save_memory_and_time, start_at_own_place
from .optim import make_optimizers
from .parallel import Processes
from .rounding import to_bfloat16
from .source import Source
from .watch import Watcher


def prepare(config: TrainConfig, processes: Processes) -> None:
    """Encode what is not yet in the cache; the processes share the work."""
    family = FAMILY[config.family]
    if config.toy.scenes:
        family.cache_toys(config, open_encoders(config, torch.device("cpu")), processes.rank, processes.world)
    elif config.data.cache:
        encoders = open_encoders(config, processes.device)
        for sets in filter(None, (config.data.sets, config.evaluation.sets)):
            source = pictures_of(config, sets, family.starting_config(config), encoders, processes)
            samples, faults = fill(source, processes.rank, processes.world)
            print(f"{config.data.cache}: {samples} samples, {len(faults)} faults", flush=True)
    processes.wait()


def train(config: TrainConfig, processes: Processes) -> None:
    Path(config.output).mkdir(parents=True, exist_ok=True)
    config.accumulation(processes.world)    # refuses a batch that cannot be shared out
    if not config.toy.scenes:
        prepare(config, processes)
    encoders = open_encoders(config, processes.device)
    model = FAMILY[config.family].make_model(config, encoders)
    source = open_source(config, model.config, encoders, processes)
    run = start(config, model, source, encoders, processes)
    order = FAMILY[config.family].make_order(config, source)
    data = MicroBatches(source, order, config, model.config, processes)
    evaluator = open_evaluator(config, model.config, encoders, processes)
    with Watcher(config, processes, run.step, run.pending) as watcher:
        loop.train(config, run, data, processes, watcher, evaluator)


def evaluate(config: TrainConfig, processes: Processes) -> None:
    """Print what the newest checkpoint reaches on [evaluation]; its contact sheets go to OUTPUT/pictures/evaluate."""
    encoders = open_encoders(config, processes.device)
    model = FAMILY[config.family].make_model(config, encoders)
    evaluator = open_evaluator(config, model.config, encoders, processes)
    if evaluator is None:
        raise ValueError("nothing to evaluate on: name data sets in [[evaluation.sets]] and set evaluation.every")
    run = start(config, model, evaluator.source, encoders, processes)
    values, pictures = evaluator.evaluate(run)
    if processes.rank == 0:
        print(f"step {run.step}")
        for name, value in values.items():
            print(f"{name:32} {value:.4g}")
        for name, sheet in pictures.items():
            Files(Path(config.output) / "pictures").picture(run.step, f"evaluate/{name}", sheet)


def open_evaluator(config: TrainConfig, model: JointConfig, encoders: Encoders,
                   processes: Processes) -> Evaluator | None:
    """None if the run is not evaluated."""
    if not config.evaluation.every:
        return None
    return Evaluator(config, pictures_of(config, config.evaluation.sets, model, encoders, processes), processes)


def open_encoders(config: TrainConfig, device: torch.device):
    own = FAMILY[config.family].encoders
    return own(config, device) if own else Encoders(config.start, device)


def open_source(config: TrainConfig, model_config: JointConfig, encoders: Encoders, processes: Processes) -> Source:
    if config.toy.scenes:
        return FAMILY[config.family].open_toys(config, encoders)
    return pictures_of(config, config.data.sets, model_config, encoders, processes)


def pictures_of(config: TrainConfig, sets: tuple[SetConfig, ...], model: JointConfig, encoders: Encoders,
                processes: Processes) -> Source:
    data = replace(config.data, sets=sets)
    return FAMILY[config.family].open_pictures(replace(config, data=data), model, encoders, processes.rank)


def start(config: TrainConfig, model: torch.nn.Module, source: Source, encoders: Encoders,
          processes: Processes) -> loop.Run:
    """A run at the step of the newest valid checkpoint, or at 0."""
    family = FAMILY[config.family]
    if config.start.own_place:
        start_at_own_place(model, source)
    weight_L = domain_weights(config, source, len(model.config.domains))
    family.choose_trained(model.train(), config)
    save_memory_and_time(family.blocks(model), config.speed)
    if config.speed.precision == "pure_bf16":
        to_bfloat16(model)
    loss = family.make_loss(model, config.loss, weight_L, encoders)
    spread = processes.spread(loss.to(processes.device), config.speed)
    run = loop.Run(spread, make_optimizers(model, config),
                   Ema(model, config.ema) if config.ema else None)
    folder = checkpoint.newest_valid(Path(config.output)) if config.save.resume else None
    if folder:
        go_on(run, folder, config, processes)
    return run


def go_on(run: loop.Run, folder: Path, config: TrainConfig, processes: Processes) -> None:
    """ValueError with what is set otherwise if the checkpoint holds other tensors than the run."""
    try:
        run.restore(folder, processes.world)
    except CheckpointException as error:
        before = json.loads((folder / "run.json").read_text())["config"]
        raise ValueError(f"the checkpoint {folder} does not fit the configuration: "
                         f"{'; '.join(differences(before, config)) or 'another version wrote it'}. Set back "
                         "what shapes the model or its optimiser, or use another output") from error


def export(config: TrainConfig, target: Path, *, merged: bool = False, raw: bool = False) -> int:
    """Write the newest checkpoint as a file that the family's loader, or the host's LoRA loader, opens; its step.

    In float16; in the modes lora and dora the changes alone, unless `merged`. Averaged weights if the run averages,
    unless `raw`.
    """
    family = FAMILY[config.family]
    model = family.make_model(config, open_encoders(config, torch.device("cpu")))
    family.choose_trained(model, config)
    averaged = bool(config.ema) and not raw
    step = load_weights(config, model, averaged)
    family.write(model, config, target, step, merged)
    print(f"{target}: step {step}")
    return step


def load_weights(config: TrainConfig, model: torch.nn.Module, averaged: bool) -> int:
    """Fill what is trained from the newest valid checkpoint; returns its step."""
    folder = checkpoint.newest_valid(Path(config.output))
    if folder is None:
        raise FileNotFoundError(f"no checkpoint in {config.output}")
    trained = {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}
    return checkpoint.load(folder, {"ema" if averaged else "model": trained})["step"]
