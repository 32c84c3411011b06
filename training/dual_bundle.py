"""The tiny Dual Diffusion from nothing: text side, encoded scenes, training, and a folder in the published layout.

Every part that exists is kept, so a killed run goes on where it was. The autoencoder is that of the tiny Jodi, and no
part of the folder.
"""

import json
import shutil
from pathlib import Path

from . import dual_words
from .config import TrainConfig
from .dual_model import starting_config
from .parallel import Processes
from .run import export, prepare, train

SHIFT = 3.0    # of the noise levels of pictures


def make_bundle(config: TrainConfig, target: Path, processes: Processes) -> None:
    """ValueError for a run that does not train its text encoder."""
    if config.mode != "text_encoder":
        raise ValueError(f'a bundle holds the text encoder that was trained with the transformer, but mode is '
                         f'"{config.mode}": use "text_encoder", or export the transformer alone')
    if processes.rank == 0 and not Path(config.start.text_encoder).exists():
        dual_words.main(["--output", config.start.text_encoder])
    processes.wait()
    prepare(config, processes)
    train(config, processes)
    if processes.rank == 0:
        write_folder(config, target)


def write_folder(config: TrainConfig, target: Path) -> None:
    """`transformer`, `text_encoder`, `tokenizer` and `scheduler` of the newest checkpoint."""
    places = {name: target / name for name in ("transformer", "text_encoder", "scheduler")}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    weights = places["transformer"] / "diffusion_pytorch_model.safetensors"
    export(config, weights)
    weights.with_name("text_encoder.safetensors").replace(places["text_encoder"] / "model.safetensors")
    settings = {"_class_name": "SD3JointModelFlexible"} | starting_config(config).network.to_dict()
    write_json(places["transformer"] / "config.json", settings)
    write_json(places["scheduler"] / "scheduler_config.json", {"shift": SHIFT})
    shutil.copytree(Path(config.start.text_encoder) / "tokenizer", target / "tokenizer", dirs_exist_ok=True)


def write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
