"""The tiny bundle from nothing: autoencoder, text encoder, encoded scenes, transformer, three files.

Every part that exists is kept, so a killed run goes on where it was.
"""

import shutil
from pathlib import Path

import torch.distributed as dist

from . import autoencoder, text_encoder
from .config import TrainConfig
from .loop import export, prepare_data, train


def make_bundle(config: TrainConfig, target: Path, rank: int = 0, world: int = 1) -> None:
    """Write autoencoder.safetensors, text_encoder.safetensors and transformer.safetensors into `target`."""
    data = config.data
    if rank == 0:
        if not Path(data.autoencoder).exists():
            autoencoder.main(["--output", data.autoencoder])
        if not Path(data.text_encoder).exists():
            text_encoder.main(["--output", data.text_encoder])
    wait_for_all(world)
    prepare_data(config, rank, world)
    wait_for_all(world)
    train(config, rank, world)
    if rank == 0:
        target.mkdir(parents=True, exist_ok=True)
        export(config, target / "transformer.safetensors")
        shutil.copyfile(data.autoencoder, target / "autoencoder.safetensors")
        shutil.copyfile(data.text_encoder, target / "text_encoder.safetensors")


def wait_for_all(world: int) -> None:
    if world > 1:
        dist.barrier()
