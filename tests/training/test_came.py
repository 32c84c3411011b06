"""CAME against recorded steps of the original, and its 8-bit first moment."""

import json
from copy import deepcopy
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


def test_eight_bit_moments_are_off_by_half_a_step_of_their_own_block():
    moment = torch.randn(25, 7, generator=torch.Generator().manual_seed(0))
    moment[10:20] *= 1000    # a loud block does not coarsen the others; the last one is short
    back = expand(compress(moment, 10), 10)
    for block, found in zip(moment.split(10), back.split(10)):
        step = (block.max() - block.min()) / 255
        assert (found - block).abs().max() <= 0.501 * step
        torch.testing.assert_close(torch.stack([found.min(), found.max()]), torch.stack([block.min(), block.max()]))


@pytest.mark.parametrize("value", [0.0, -0.7])
def test_a_block_of_one_value_is_kept_exactly(value):
    moment = torch.full((6, 3), value)
    stored = compress(moment, 4)
    assert torch.equal(expand(stored, 4), moment) and torch.equal(stored["moment_scale"], torch.zeros(2))


def test_a_frozen_row_stays_where_it_is():
    weight = torch.nn.Parameter(torch.ones(4, 6))
    optimizer = Came([weight], 1e-2)
    for seed in range(5):
        weight.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        weight.grad[1] = 0
        optimizer.step()
    assert (weight[1] == 1).all() and (weight[[0, 2, 3]] != 1).all()


def test_states_keep_their_types_in_another_optimiser():
    params, optimizer = recorded_optimizer("came8bit")
    take_step(params, optimizer, 0)
    others, second = recorded_optimizer("came8bit")
    for name, param in others.items():
        param.data.copy_(params[name])
    second.load_state_dict(deepcopy(optimizer.state_dict()))
    assert second.state[others["linear"]]["moment"].dtype == torch.uint8
    for number in (1, 2):
        take_step(params, optimizer, number)
        take_step(others, second, number)
    assert all(torch.equal(params[name], others[name]) for name in NAMES)
