"""What a training changed: the same prompts and noise with the tiny model and with a model that was trained from it.

    python benchmarks/training_pictures.py TRAINED.safetensors --output docs/images/trained_lora.png
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from jodi_core import JodiPipeline  # noqa: E402
from jodi_core.pictures import contact_sheet  # noqa: E402

PROMPTS = {"a house": "a red house on the left, on green grass, a clear blue sky, mountains behind",
           "a person": "a person in a blue shirt waving in the middle, on yellow sand, a sunset sky",
           "a car": "an orange car on the right, a pine tree on the left, a road, on green grass",
           "a dog": "a brown dog in the middle, a lake, on white snow, a grey overcast sky",
           "a bench": "a wooden bench on the left, a leafy tree on the right, on green grass, a clear blue sky"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", help="a transformer file")
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write: above before, below after")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    rows = []
    for ref in ("tiny", options.trained):
        pipeline = JodiPipeline.from_pretrained(ref, autoencoder="tiny", text_encoder="tiny")
        rows.append(pipeline(list(PROMPTS.values()), seed=options.seed, guidance=4.5).pictures["image"])
    contact_sheet(dict(zip(PROMPTS, torch.stack(rows, 1)))).save(options.output)


if __name__ == "__main__":
    main()
