"""Runs with every optimiser and with bfloat16 weights: what resumes is bit for bit what was not interrupted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import run
from training.config import SpeedConfig
from training.parallel import Processes

from toy_run import OPTIMIZERS, stored, toy_config, use_toy_parts

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.filterwarnings("ignore:Mismatch dtype"),
              pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
PROGRAM = Path(__file__).parent / "toy_run.py"


@pytest.fixture(autouse=True)
def toy_parts(monkeypatch):
    use_toy_parts(monkeypatch.setattr)


def assert_same(one: dict, other: dict) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        same = torch.equal(value, other[name]) and value.dtype == other[name].dtype \
            if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


def assert_resumes(folder: Path, **changes) -> dict:
    run.train(toy_config(folder / "whole", **changes), Processes())
    run.train(toy_config(folder / "parts", **(changes | {"steps": 3})), Processes())
    run.train(toy_config(folder / "parts", **changes), Processes())
    whole = stored(folder / "whole")
    assert_same(whole, stored(folder / "parts"))
    return whole


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_resumes_exactly(tmp_path, name):
    whole = assert_resumes(tmp_path, optim=OPTIMIZERS[name])
    small = [key for key, value in whole.items() if isinstance(value, torch.Tensor) and value.dtype == torch.uint8]
    assert bool(small) == name.endswith("8bit"), "8-bit states are stored in 8 bits"
    assert all(value.isfinite().all() for value in whole.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "prodigy"])
def test_bfloat16_weights_resume_exactly(tmp_path, name, rounding):
    speed = SpeedConfig(device="cpu", precision="pure_bf16", rounding=rounding)
    whole = assert_resumes(tmp_path, optim=OPTIMIZERS[name], speed=speed)
    types = {key.partition(".")[0]: set() for key in whole}
    for key, value in whole.items():
        if isinstance(value, torch.Tensor) and not key.endswith(".rest"):
            types[key.partition(".")[0]].add(value.dtype)
    assert types["model"] == {torch.bfloat16} and types["ema"] == {torch.float32}
    assert torch.bfloat16 not in types["optimizers"], "averages of small steps need float32"
    run.export(toy_config(tmp_path / "whole", optim=OPTIMIZERS[name], speed=speed), tmp_path / "model.safetensors")


def losses(folder: Path, **changes) -> tuple[float, float]:
    """Means of the first and the last steps of a run."""
    run.train(toy_config(folder, steps=60, **changes), Processes())
    found = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    return sum(found[:9]) / 9, sum(found[-9:]) / 9


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_lowers_the_loss(tmp_path, name):
    first, last = losses(tmp_path, optim=OPTIMIZERS[name])
    assert last < 0.65 * first


def test_bfloat16_weights_learn_like_float32_ones(tmp_path):
    _, exact = losses(tmp_path / "exact")
    for rounding in ("stochastic", "kahan"):
        speed = SpeedConfig(device="cpu", precision="pure_bf16", rounding=rounding)
        assert losses(tmp_path / rounding, speed=speed)[1] == pytest.approx(exact, rel=0.3)


def program(folder: Path, *options: str, dies: bool = False) -> None:
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           str(PROGRAM), str(folder), *options],
                          capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode != 0) == dies, done.stderr[-3000:]


@pytest.mark.parametrize("options", [("optim=came_8bit",), ("optim=came_8bit", "precision=pure_bf16"),
                                     ("optim=came", "shard")], ids=" ".join)
def test_two_killed_processes_end_like_uninterrupted_ones(tmp_path, options):
    program(tmp_path / "whole", *options)
    program(tmp_path / "parts", *options, "kill=3", dies=True)
    program(tmp_path / "parts", *options)
    whole = stored(tmp_path / "whole")
    assert_same(whole, stored(tmp_path / "parts"))
    types = {value.dtype for value in whole.values() if isinstance(value, torch.Tensor)}
    assert (torch.uint8 in types) == ("optim=came_8bit" in options)
    if "shard" in options:
        run.train(toy_config(tmp_path / "one", optim=OPTIMIZERS["came"]), Processes())
        assert_near(stored(tmp_path / "one"), whole)


def assert_near(one: dict, other: dict) -> None:
    for name, value in one.items():
        # A bias of all keys changes nothing: its gradients are rounding errors, and CAME's steps do not grow with them.
        if isinstance(value, torch.Tensor) and "kv_linear.bias" not in name:
            assert (value - other[name]).abs().max() <= 1e-3 * value.abs().max(), name


@pytest.mark.parametrize("changes, message", [({"optim": OPTIMIZERS["came"]}, "optim.name was 'adamw' and is 'came'"),
                                              ({"ema": 0.5}, r"ema was 0.0 and is 0.5")])
def test_a_checkpoint_that_does_not_fit_names_what_has_changed(tmp_path, changes, message):
    run.train(toy_config(tmp_path, steps=2, ema=0.0), Processes())
    with pytest.raises(ValueError, match=f"step_0000002 does not fit .*{message}.*or use another output"):
        run.train(toy_config(tmp_path, **({"ema": 0.0} | changes)), Processes())


def test_whole_and_bfloat16_weights_can_take_turns(tmp_path):
    for steps, precision in ((2, "bf16"), (4, "pure_bf16"), (6, "float32")):
        run.train(toy_config(tmp_path, steps=steps, speed=SpeedConfig(device="cpu", precision=precision)), Processes())
    assert {value.dtype for name, value in stored(tmp_path).items() if name.startswith("model.")} == {torch.float32}
