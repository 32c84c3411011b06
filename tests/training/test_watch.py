"""What a run tells: the log, also over kills; TensorBoard, Weights & Biases, the bar."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from training import log, run
from training.boards import Boards, TensorBoard
from training.config import SaveConfig, WatchConfig
from training.parallel import Processes
from training.progress import Progress
from training.tally import Tally, band, means_of
from training.watch import SPEED, Watcher

from toy_run import toy_config, use_toy_parts

pytestmark = [pytest.mark.filterwarnings("ignore:Mismatch dtype"),
              pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]


@pytest.fixture(autouse=True)
def toy_parts(monkeypatch):
    use_toy_parts(monkeypatch.setattr)


def lines(folder: Path) -> list[dict]:
    """Without speed and memory."""
    return [{name: value for name, value in line.items() if name not in SPEED} for line in log.read(folder / log.NAME)]


# ---- the log ----------------------------------------------------------------------------------------------------

def test_a_line_has_losses_of_all_kinds_rates_and_costs(tmp_path):
    run.train(toy_config(tmp_path, watch=WatchConfig(every=4, tensorboard=False)), Processes())
    first, last = log.read(tmp_path / log.NAME)
    assert (first["step"], last["step"]) == (4, 6), "the last step has a line, whatever the interval is"
    assert {"loss", "joint", "control", "perceive", "domain/image", "domain/depth", "domain/edge", "norm", "lr",
            "skipped", "samples_per_s", "memory_gb"} <= set(first)
    assert {name for name in first if name.startswith("time/")} <= {f"time/{b}" for b in ("0-250", "250-500", "500-750",
                                                                                        "750-1000")}
    assert first["lr"] == pytest.approx(1e-2) and first["skipped"] == 0 and 0.05 < first["memory_gb"] < 50


@pytest.mark.parametrize("killed_after", [7, 10])
def test_lines_do_not_depend_on_where_a_run_was_killed(tmp_path, monkeypatch, killed_after):
    """Checkpoints within log intervals: what was summed up until then is in them."""
    def config(name):
        return toy_config(tmp_path / name, steps=12, save=SaveConfig(every=3),
                          watch=WatchConfig(every=4, tensorboard=False))

    run.train(config("whole"), Processes())
    after_step = Watcher.after_step

    def die(watcher, state, *rest):
        after_step(watcher, state, *rest)
        if state.step == killed_after:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(Watcher, "after_step", die)
        with pytest.raises(KeyboardInterrupt):
            run.train(config("killed"), Processes())
    run.train(config("killed"), Processes())
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole") and len(lines(tmp_path / "whole")) == 3


def test_what_comes_after_the_checkpoint_is_dropped(tmp_path):
    path = tmp_path / log.NAME
    log.cut(path, 3)    # nothing there yet
    for step in (1, 2, 3, 4, 5):
        log.append(path, {"step": step, "loss": step / 10})
    with open(path, "a") as file:
        file.write('{"step": 6, "lo')    # a kill within a line
    log.cut(path, 3)
    assert path.read_text() == "".join(json.dumps({"step": step, "loss": step / 10}) + "\n" for step in (1, 2, 3))


def test_a_log_that_is_damaged_inside_is_named(tmp_path):
    (tmp_path / log.NAME).write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="log.jsonl, line 2: not JSON"):
        log.read(tmp_path / log.NAME)


def test_an_evaluation_goes_to_the_log_and_its_pictures_to_files(tmp_path, capsys):
    with Watcher(toy_config(tmp_path), Processes()) as watcher:
        watcher.evaluated(500, {"loss": 0.123456789, "domain/edge": 1, "metric/depth_mae": 0.5},
                          {"joint": Image.new("RGB", (9, 5))})
    assert lines(tmp_path) == [{"step": 500, "eval/loss": 0.123457, "eval/domain/edge": 1.0,
                                "eval/metric/depth_mae": 0.5}]
    assert Image.open(tmp_path / "pictures" / "eval" / "joint" / "step_0000500.png").size == (9, 5)
    assert "step 500: loss 0.1235, metric/depth_mae 0.5" in capsys.readouterr().out


# ---- means ------------------------------------------------------------------------------------------------------

def test_means_by_task_domain_and_time():
    tally = Tally()
    for task, time, errors in (("joint", 100.0, {"image": 1.0, "depth": 3.0}), ("joint", 999.9, {"image": 5.0}),
                               ("perceive", 250.0, {"depth": 7.0})):
        tally.sample(SimpleNamespace(task=task, time=time),
                     {name: torch.tensor(value) for name, value in errors.items()})
    assert tally.means(Processes()) == {"joint": 3.5, "perceive": 7.0, "domain/image": 3.0, "domain/depth": 5.0,
                                        "time/0-250": 2.0, "time/750-1000": 5.0, "time/250-500": 7.0}
    assert tally.means(Processes()) == {}, "it begins anew"
    assert band(0) == "0-250" and band(1000) == "750-1000"


def test_steps_do_not_wait_for_the_values():
    """Tensors on "meta" have none: whoever reads one fails."""
    tally, value = Tally(), torch.empty((), device="meta")
    tally.add("loss", value, 4)
    tally.sample(SimpleNamespace(task="joint", time=3.0), {"image": value, "depth": value})
    with pytest.raises(RuntimeError, match="meta"):
        tally.means(Processes())


def test_means_are_of_all_samples_of_all_processes():
    """Not means of the processes' means; a process may have nothing of a kind."""
    tally = Tally()
    tally.add("loss", torch.tensor(1.0), 3)
    two = SimpleNamespace(gather=lambda own: [own, {"loss": (5.0, 1.0), "joint": (2.0, 4.0)}])
    assert means_of(tally.totals(two)) == {"loss": 2.0, "joint": 0.5}


# ---- boards -----------------------------------------------------------------------------------------------------

@pytest.fixture
def read_events():
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(folder: Path):
        found = accumulator.EventAccumulator(str(folder))
        found.Reload()
        return found
    return read


def test_tensorboard_shows_what_the_log_has(tmp_path, read_events):
    run.train(toy_config(tmp_path, steps=3, watch=WatchConfig(every=1)), Processes())
    events = read_events(tmp_path / "tensorboard")
    for name in ("loss", "norm", "lr", "domain/depth"):
        shown = {event.step: event.value for event in events.Scalars(name)}
        assert shown == pytest.approx({line["step"]: line[name] for line in lines(tmp_path) if name in line})


def test_tensorboard_forgets_steps_that_are_trained_again(tmp_path, read_events):
    before = TensorBoard(tmp_path, 0)
    for step in (1, 2, 3, 4, 5):
        before.scalars(step, {"loss": 1.0})    # never closed
    after = TensorBoard(tmp_path, 3)
    after.scalars(4, {"loss": 2.0})
    after.picture(4, "eval/joint", Image.new("L", (6, 4), 200))
    after.close()
    events = read_events(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    (picture,) = events.Images("eval/joint")
    decoded = Image.open(io.BytesIO(picture.encoded_image_string))
    assert decoded.size == (6, 4) and decoded.getpixel((2, 2)) == (200, 200, 200) and picture.step == 4


def test_without_tensorboard_a_run_goes_on_and_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run.train(toy_config(tmp_path, steps=2, watch=WatchConfig(every=1)), Processes())
    assert capsys.readouterr().out.count("pip install tensorboard") == 1 and len(lines(tmp_path)) == 2


def test_weights_and_biases_goes_on_in_the_same_run(tmp_path, monkeypatch):
    told = []

    class FakeRun:
        def log(self, values, step):
            told.append((step, values))

        def finish(self):
            told.append("finished")

    def init(**options):
        told.append(options)
        return FakeRun()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Image=lambda image: image.size))
    config = toy_config(tmp_path, watch=WatchConfig(tensorboard=False, wandb="jodi"))
    for step in (0, 3):
        boards = Boards.of_run(config, step)
        boards.scalars(step + 1, {"loss": 0.5})
        boards.picture(step + 1, "eval/joint", Image.new("RGB", (3, 2)))
        boards.close()
    first, second = told[0], told[4]
    assert first["id"] == second["id"] and first["resume"] == "allow" and first["project"] == "jodi"
    assert first["config"]["optim"]["name"] == "adamw" and first["dir"] == str(tmp_path)
    assert told[1:4] == [(1, {"loss": 0.5}), (1, {"eval/joint": (3, 2)}), "finished"]


def test_weights_and_biases_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match='watch.wandb = "jodi" needs the package wandb: pip install wandb'):
        Boards.of_run(toy_config(tmp_path, watch=WatchConfig(wandb="jodi")), 0)


def test_only_process_0_writes(tmp_path):
    with Watcher(toy_config(tmp_path, watch=WatchConfig()), replace(Processes(), rank=1)) as watcher:
        watcher.evaluated(1, {"loss": 1.0}, {"joint": Image.new("RGB", (2, 2))})
    assert not list(tmp_path.iterdir())


# ---- the screen -------------------------------------------------------------------------------------------------

VALUES = {"loss": 0.21654, "samples_per_s": 40.18, "memory_gb": 1.234}


def test_a_line_per_interval_where_there_is_no_terminal(capsys):
    progress = Progress(100, 300)
    progress.started -= 50
    progress.show(150, VALUES)
    assert capsys.readouterr().out == "step 150/300: loss 0.2165, 40.2 samples/s, 1.23 GB, 0:02:30 left\n"


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    progress = Progress(100, 300)
    progress.advance()
    progress.show(101, VALUES)
    progress.close()
    assert "34% |" in screen.getvalue() and "101/300" in screen.getvalue()
    assert "loss 0.2165, 40.2 samples/s, 1.23 GB" in screen.getvalue()
    assert not capsys.readouterr().out, "the bar is enough"
