"""The tiny bundle from nothing: autoencoder, text encoder, encoded scenes, transformer, three files.

Every part that exists is kept, so a killed run goes on where it was.
"""

import shutil
from pathlib import Path

from . import autoencoder, text_encoder
from .config import TrainConfig
from .parallel import Processes
from .run import export, prepare, train


def make_bundle(config: TrainConfig, target: Path, processes: Processes) -> None:
    """Write autoencoder.safetensors, text_encoder.safetensors and transformer.safetensors into `target`."""
    start = config.start
    if processes.rank == 0:
        if not Path(start.autoencoder).exists():
            autoencoder.main(["--output", start.autoencoder])
        if not Path(start.text_encoder).exists():
            text_encoder.main(["--output", start.text_encoder])
    processes.wait()
    prepare(config, processes)
    train(config, processes)
    if processes.rank == 0:
        target.mkdir(parents=True, exist_ok=True)
        export(config, target / "transformer.safetensors")
        shutil.copyfile(start.autoencoder, target / "autoencoder.safetensors")
        shutil.copyfile(start.text_encoder, target / "text_encoder.safetensors")
