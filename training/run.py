"""From a configuration to a run: data, model, optimisers, the newest checkpoint; then the loop. And what comes out."""

from pathlib import Path

import torch

from jodi_core.weights import load_autoencoder, load_text, write_model

from . import checkpoint, loop
from .config import TrainConfig
from .data import MicroBatches, Source
from .ema import Ema
from .losses import JointLoss
from .model import domain_weights, make_model
from .optim import make_optimizers, peak_rates
from .order import BatchOrder
from .parallel import Processes
from .toy import ToyScenes, build_cache
from .watch import Watcher


def prepare(config: TrainConfig, processes: Processes) -> None:
    """Encode what is not yet in the cache; the processes share the work."""
    build_cache(config.toy, config.model.domains,
                load_autoencoder(config.start.autoencoder, dtype=torch.float32),
                load_text(config.start.text_encoder, dtype=torch.float32), processes.rank, processes.world)
    processes.wait()


def train(config: TrainConfig, processes: Processes) -> None:
    Path(config.output).mkdir(parents=True, exist_ok=True)
    source = ToyScenes(config.toy)
    run, model_config = start(config, source, processes)
    order = BatchOrder(source.bins_N, config.batch, config.steps, config.seed)
    data = MicroBatches(source, order, config, model_config, processes)
    data.accumulation    # refuses a batch that cannot be shared out
    loop.train(config, run, data, processes, Watcher(config, processes))


def start(config: TrainConfig, source: Source, processes: Processes):
    """(run, configuration of the model), at the step of the newest valid checkpoint or at 0."""
    model = make_model(config, source, load_text(config.start.text_encoder, dtype=torch.float32)).train()
    loss = JointLoss(model, config.loss, domain_weights(config, source, model.config.num_domains))
    spread = processes.spread(loss.to(processes.device), config.speed)
    run = loop.Run(spread, make_optimizers(model, config.optim, peak_rates(config)[-1]),
                   Ema(model, config.ema) if config.ema else None)
    folder = checkpoint.newest_valid(Path(config.output)) if config.save.resume else None
    if folder:
        run.restore(folder, processes.world)
    return run, model.config


def export(config: TrainConfig, target: Path) -> None:
    """Write the newest checkpoint's weights, averaged if the run averages, as a transformer file in float16."""
    run, model_config = start(config, ToyScenes(config.toy), Processes())
    if not run.step:
        raise FileNotFoundError(f"no checkpoint in {config.output}")
    if run.ema:
        run.ema.copy_to(run.model)
    write_model(target, "transformer", model_config, {k: v.half() for k, v in run.model.state_dict().items()},
                overwrite=True)
    print(f"{target}: step {run.step}")
