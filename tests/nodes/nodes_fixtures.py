"""Helpers that several test files of this folder import."""

import json
import pathlib

import torch
from safetensors.torch import load_file

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "jodi"


def golden(name: str) -> dict:
    """What was recorded from the original: a JSON file or a file of tensors."""
    return json.loads((GOLDEN / name).read_text()) if name.endswith(".json") else load_file(GOLDEN / name)


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute reference value."""
    return float((value - reference).abs().max() / reference.abs().max())
