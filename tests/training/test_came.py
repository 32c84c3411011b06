"""CAME against recorded steps of the original, and its 8-bit first moment."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.came import Came, compress, expand

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "jodi"
FACTS = json.loads((GOLDEN / "optimizer.json").read_text())
RECORDED = load_file(GOLDEN / "optimizer.safetensors")
NAMES = [key.partition(".")[2] for key in RECORDED if key.startswith("init.")]


def recorded_optimizer(kind: str) -> tuple[dict, Came]:
    params = {name: torch.nn.Parameter(RECORDED[f"init.{name}"].clone()) for name in NAMES}
    return params, Came(params.values(), FACTS["lr"], FACTS["betas"], clip=FACTS["clip_threshold"],
                        weight_decay=FACTS["weight_decay"], min_8bit=FACTS["min_8bit_size"],
                        block_rows=FACTS["block_size"] if kind == "came8bit" else 0)


def take_step(params: dict, optimizer: Came, number: int) -> None:
    for name, param in params.items():
        param.grad = RECORDED[f"grad{number}.{name}"].clone()
    optimizer.step()


@pytest.mark.parametrize("kind", FACTS["optimisers"])
def test_every_recorded_step(kind):
    params, optimizer = recorded_optimizer(kind)
    for number in range(FACTS["steps"]):
        take_step(params, optimizer, number)
        for name, param in params.items():
            wanted = RECORDED[f"{kind}.step{number}.{name}"]
            assert (param - wanted).abs().max() <= 2e-6 * wanted.abs().max(), (number, name)
    stored = {name: optimizer.state[param]["moment"].dtype for name, param in params.items()}
    small = kind == "came8bit"
    assert stored == {name: torch.uint8 if small and name in ("linear", "conv1x1") else torch.float32 for name in NAMES}


def test_the_two_kinds_differ():
    ends = []
    for kind in FACTS["optimisers"]:
        params, optimizer = recorded_optimizer(kind)
        for number in range(FACTS["steps"]):
            take_step(params, optimizer, number)
        ends.append(params["linear"].detach())
    assert not torch.equal(*ends), "the 8-bit case would prove nothing"
