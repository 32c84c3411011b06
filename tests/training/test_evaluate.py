"""Evaluation: the same numbers on any number of processes, and no trace of it in what is trained."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from training import run
from training.config import (AdapterConfig, DataConfig, EvaluationConfig, OptimConfig, SetConfig, SpeedConfig,
                             StartConfig, TrainConfig, WatchConfig)
from training.loop import Run
from training.parallel import Processes
from training.tally import Tally, band
from training.world import write_dataset

from toy_run import evaluate_toys, toy_config, use_toy_parts

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.filterwarnings("ignore:Mismatch dtype"),
              pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
PROGRAM = Path(__file__).parent / "toy_run.py"


def lines(folder: Path) -> tuple[dict, dict]:
    """By step: what was trained, and what was evaluated."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    evaluated = {line["step"]: line for line in found if "eval/loss" in line}
    return {line["step"]: line["loss"] for line in found if "loss" in line}, evaluated


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The evaluated run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        use_toy_parts(patch.setattr)
        evaluate_toys(patch.setattr)
        run.train(toy_config(folder), Processes())
    return folder


def test_evaluation_changes_nothing_of_the_training(alone, tmp_path, monkeypatch):
    use_toy_parts(monkeypatch.setattr)
    run.train(toy_config(tmp_path), Processes())
    assert lines(tmp_path)[0] == lines(alone)[0] and len(lines(alone)[0]) == 6


def test_numbers_before_during_and_after(alone):
    evaluated = lines(alone)[1]
    assert list(evaluated) == [0, 2, 4, 6]
    assert evaluated[6]["eval/loss"] < evaluated[0]["eval/loss"]
    names = {"eval/joint", "eval/control", "eval/perceive",
             "eval/domain/image", "eval/domain/depth", "eval/domain/edge"}
    assert names < set(evaluated[0])
    tasks = [evaluated[4][f"eval/{task}"] for task in ("joint", "control", "perceive")]
    assert evaluated[4]["eval/loss"] == pytest.approx(sum(tasks) / 3, abs=1e-4)


@pytest.mark.parametrize("options", [(), ("shard",)])
def test_two_processes_find_the_same_numbers(alone, tmp_path, options):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([sys.executable, *launcher, str(PROGRAM), str(tmp_path), "evaluate", *options],
                          capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    both, one = lines(tmp_path)[1], lines(alone)[1]
    assert list(both) == list(one)
    for step in one:
        assert both[step] == pytest.approx(one[step], abs=2e-4), step


def test_averaged_weights_stand_in_for_a_while(tmp_path, monkeypatch):
    from training.evaluate import standing_in
    model = torch.nn.Linear(3, 2)
    ema = run.Ema(model, 0.9)
    trained = model.weight.detach().clone()
    ema.values["weight"].fill_(7.0)
    monkeypatch.setattr(Run, "model", property(lambda self: model))
    with standing_in(Run(None, [], ema)):
        assert (model.weight == 7).all()
    assert torch.equal(model.weight, trained)


def test_pictures_of_all_tasks_and_metrics(tmp_path):
    write_dataset(tmp_path / "scenes", 4, 900, 128)
    sets = (SetConfig(path=str(tmp_path / "scenes")),)
    run.train(TrainConfig(
        output=str(tmp_path / "run"), steps=1, batch=1, micro_batch=1, mode="lora", adapter=AdapterConfig(rank=2),
        start=StartConfig(weights="tiny", autoencoder="tiny", text_encoder="tiny"), optim=OptimConfig(warmup=1),
        data=DataConfig(sets=sets), evaluation=EvaluationConfig(every=9, sets=sets, samples=2, pictures=2, steps=3),
        speed=SpeedConfig(device="cpu", precision="float32"), watch=WatchConfig(every=1)), Processes())
    values = lines(tmp_path / "run")[1]
    assert list(values) == [0, 1]
    assert values[0]["eval/metric/segmentation_accuracy"] > 0.8 and values[0]["eval/metric/albedo_psnr"] > 15
    for task in ("joint", "control", "perceive"):
        with Image.open(tmp_path / "run" / "pictures" / "eval" / task / "step_0000001.png") as sheet:
            assert sheet.width > 8 * 128 and sheet.height > 4 * 128, "eight domains, two rows for each sample"


def test_bands_of_time():
    assert [band(time) for time in (0.0, 249.9, 250.0, 999.0, 1000.0)] == ["0-250", "0-250", "250-500", "750-1000",
                                                                           "750-1000"]


def test_means_are_of_samples_not_of_means():
    tally = Tally()
    for name, value, weight in (("a", 1.0, 3), ("a", torch.tensor(5.0), 1), ("b", 2.0, 1)):
        tally.add(name, value, weight)
    assert tally.means(Processes()) == {"a": 2.0, "b": 2.0} and tally.means(Processes()) == {}


def test_the_newest_checkpoint_is_evaluated_on_its_own(alone, tmp_path, monkeypatch, capsys):
    use_toy_parts(monkeypatch.setattr)
    evaluate_toys(monkeypatch.setattr)
    before = (alone / "log.jsonl").read_text()
    run.evaluate(toy_config(alone), Processes())
    told = dict(line.split() for line in capsys.readouterr().out.splitlines() if not line.startswith("step"))
    assert float(told["loss"]) == pytest.approx(lines(alone)[1][6]["eval/loss"], rel=1e-3)
    assert (alone / "log.jsonl").read_text() == before


def test_evaluation_without_data_is_refused(tmp_path, monkeypatch):
    use_toy_parts(monkeypatch.setattr)
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        run.evaluate(toy_config(tmp_path), Processes())
