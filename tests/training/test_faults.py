"""What goes wrong in a run, made to happen: it is named, counted, and skipped or the end of the run, as configured."""

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import torch

from training import batches, checkpoint, cli, faults, run
from training.caches import Store
from training.config import FaultsConfig, SaveConfig, SpeedConfig
from training.faults import DiskFull, Faults, Unreadable, WorkerDied
from training.losses import JointLoss
from training.order import BatchOrder
from training.parallel import Processes
from training.watch import SPEED

from toy_run import SpoiltSource, ToySource, stored, toy_config, use_toy_parts

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.filterwarnings("ignore:Mismatch dtype"),
              pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
PROGRAM = Path(__file__).parent / "toy_run.py"
SKIP = FaultsConfig(on_nan="skip")
WORKERS = SpeedConfig(device="cpu", precision="float32", workers=1)


@pytest.fixture
def train(monkeypatch):
    """train(folder, source, **changes of the configuration): a run, from its last checkpoint if there is one."""
    def start(folder, source=None, **changes):
        run.train(toy_config(folder, **changes), Processes())
    use_toy_parts(monkeypatch.setattr)

    def with_source(folder, source=None, **changes):
        monkeypatch.setattr(run, "open_source", lambda *ignored: source or ToySource())
        start(folder, **changes)
    return with_source


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run without faults."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        use_toy_parts(patch.setattr)
        run.train(toy_config(folder), Processes())
    return folder


def sample_of(step: int, place: int = 0) -> int:
    return BatchOrder(ToySource.bins_N, 4, 6, 0).samples(step)[place]


def noted(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / faults.NAME).read_text().splitlines()]


def log_of(folder: Path) -> dict[int, dict]:
    found = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {line["step"]: {key: value for key, value in line.items() if key not in SPEED} for line in found}


def differing(one: Path, other: Path) -> set[str]:
    """Names of all tensors of the newest checkpoints, weights, optimiser and averages, that are not the same."""
    first, second = stored(one), stored(other)
    assert first.keys() == second.keys() and len(first) > 60
    return {name for name, value in first.items() if torch.is_tensor(value) and not torch.equal(value, second[name])}


# ---- gradients that are no number -------------------------------------------------------------------------------

def test_a_step_is_left_out(tmp_path, train):
    """Weights, optimiser and averages stay; the samples of the step are named; the run goes on."""
    bad = sample_of(3)
    source = SpoiltSource(bad, torch.nan)
    train(tmp_path / "before", source, steps=3, faults=SKIP, save=SaveConfig(every=1))
    train(tmp_path / "after", source, steps=4, faults=SKIP, save=SaveConfig(every=1))
    assert not differing(tmp_path / "before", tmp_path / "after")
    train(tmp_path / "after", source, faults=SKIP)
    line, = noted(tmp_path / "after")
    assert line["step"] == 3 and f"no number is the loss of sample {bad}" in line["message"]
    log = log_of(tmp_path / "after")
    assert [log[step]["steps_left_out"] for step in range(1, 7)] == [0, 0, 0, 1, 0, 0]
    assert "loss" not in log[4] and log[5]["loss"] > 0
    assert differing(tmp_path / "before", tmp_path / "after")


def test_a_step_left_out_is_left_out_again(tmp_path, train):
    source = SpoiltSource(sample_of(3), torch.nan)
    train(tmp_path / "whole", source, faults=SKIP)
    train(tmp_path / "parts", source, steps=4, faults=SKIP, save=SaveConfig(every=3))
    checkpoint.shutil.rmtree(tmp_path / "parts" / "step_0000004")
    train(tmp_path / "parts", source, faults=SKIP)
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole") and len(noted(tmp_path / "parts")) == 1
    assert not differing(tmp_path / "whole", tmp_path / "parts")


def test_it_ends_the_run_unless_configured(tmp_path, train):
    with pytest.raises(FloatingPointError, match=rf"step 2: the gradient is nan; no number is the loss of sample "
                                                 rf"{sample_of(2, 3)}; faults.on_nan"):
        train(tmp_path, SpoiltSource(sample_of(2, 3), torch.nan))
    assert [step for step, _ in checkpoint.checkpoints(tmp_path)] == [2]
    assert all(value.isfinite().all() for value in stored(tmp_path).values() if torch.is_tensor(value))


def test_an_infinite_loss_counts_though_its_gradient_is_a_number(tmp_path, train):
    with pytest.raises(FloatingPointError, match="step 2: the gradient is nan; no number is the loss of"):
        train(tmp_path, SpoiltSource(sample_of(2), 1e20))


def test_too_many_in_a_row_end_the_run_wherever_it_was_resumed(tmp_path, train):
    source = SpoiltSource(0, 0.0)
    source.item = lambda index, generator: replace(
        ToySource().item(index, generator), latents_CLHW=torch.full((4, 3, 2 if index >= 40 else 4, 4), torch.inf))
    few = FaultsConfig(on_nan="skip", nan_in_row=2)
    train(tmp_path, source, steps=2, faults=few)
    with pytest.raises(FloatingPointError, match="step 2: .* number 3 one after the other, more than faults"):
        train(tmp_path, source, faults=few)


@pytest.mark.parametrize("form", [
    pytest.param((), marks=pytest.mark.long, id="copies"), pytest.param(("shard",), id="shards")])
def test_all_processes_leave_the_step_out(tmp_path, train, form):
    """Process 1 alone has the bad sample."""
    bad = sample_of(3, 2)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([sys.executable, *launcher, PROGRAM, tmp_path / "two", f"nan={bad}", *form],
                          capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    train(tmp_path / "one", SpoiltSource(bad, torch.nan), faults=SKIP)
    one, two = stored(tmp_path / "one"), stored(tmp_path / "two")
    for name, value in one.items():
        if torch.is_tensor(value):
            torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)
    told = {line["message"][:19]: line["message"] for line in noted(tmp_path / "two")}
    assert told.keys() == {"step 3, process 0: ", "step 3, process 1: "}
    assert f"no number is the loss of sample {bad}" in told["step 3, process 1: "]
    assert log_of(tmp_path / "two")[4]["steps_left_out"] == 1


# ---- workers ----------------------------------------------------------------------------------------------------

@dataclass
class DeadlySource(SpoiltSource):
    """A worker that reads the sample is killed, once or always; as by a system without memory."""

    folder: Path
    times: int = 1

    def item(self, index, generator):
        if index == self.index and len(list(self.folder.glob("killed*"))) < self.times:
            (self.folder / f"killed{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return ToySource.item(self, index, generator)


@pytest.fixture
def impatient(monkeypatch):
    """Torch looks after its workers every 5 s while it waits for them."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


def test_a_dead_worker_is_replaced_and_nothing_changes(tmp_path, train, whole, impatient):
    bad = sample_of(3, 2)
    train(tmp_path, DeadlySource(bad, 0.0, tmp_path), speed=WORKERS)
    assert log_of(tmp_path) == log_of(whole) and not differing(tmp_path, whole)
    line, = noted(tmp_path)
    assert line["kind"] == "worker" and 2 <= line["step"] <= 3    # it reads ahead
    assert "; awaited for step" in line["message"]
    last = (tmp_path / "log.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["faults"] == 1


def test_workers_that_always_die_end_the_run(tmp_path, train, impatient):
    with pytest.raises(WorkerDied, match=rf"died 2 times while step 3 awaited .*sample {sample_of(3, 2)}"):
        train(tmp_path, DeadlySource(sample_of(3, 2), 0.0, tmp_path, times=99), speed=WORKERS,
              faults=FaultsConfig(restarts=1))
    assert checkpoint.newest_valid(tmp_path).name == "step_0000002"


@pytest.mark.parametrize("error, death", [
    (ConnectionRefusedError(111, "Connection refused"), True), (EOFError(), True),
    (RuntimeError("DataLoader worker (pid(s) 3) exited unexpectedly"), True), (RuntimeError("a mistake"), False),
    (ConnectionError("Caught ConnectionError in DataLoader worker process 0.\nOriginal Traceback"), False)])
def test_how_a_death_shows(error, death):
    """By chance: the batch of a worker that was just killed cannot be fetched. What a worker passes on is none."""
    assert batches.tells_of_death(error) == death


def test_workers_that_could_not_send_their_batches_are_refused(tmp_path, train, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 30)))
    with pytest.raises(ValueError, match="set the environment variable TMPDIR"):
        train(tmp_path, speed=WORKERS)


def test_an_interrupt_of_the_terminal_leaves_the_workers_alone(tmp_path, train, monkeypatch):
    after_step = run.Watcher.after_step

    def interrupt(watcher, state, *rest):
        after_step(watcher, state, *rest)
        if state.step == 2:
            for process in (*psutil.Process().children(), psutil.Process()):
                process.send_signal(signal.SIGINT)
    monkeypatch.setattr(run.Watcher, "after_step", interrupt)
    train(tmp_path, speed=WORKERS, save=SaveConfig(every=100))
    assert [step for step, _ in checkpoint.checkpoints(tmp_path)] == [3] and not (tmp_path / faults.NAME).exists()


# ---- memory -----------------------------------------------------------------------------------------------------

def test_without_memory_it_is_said_what_needs_less(tmp_path, train, monkeypatch):
    forward, calls = JointLoss.forward, iter(range(100))

    def exhausted(*arguments):
        if next(calls) == 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(*arguments)
    monkeypatch.setattr(JointLoss, "forward", exhausted)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train(tmp_path)
    size = "32x32" if sample_of(3) < 40 else "32x16"
    assert f"step 3: out of memory with pictures of {size} and micro_batch 2, at a peak of" in str(caught.value)
    assert "micro_batch = 1 (a step keeps its 4 samples)" in str(caught.value) and "adamw_8bit" in str(caught.value)
    assert checkpoint.newest_valid(tmp_path).name == "step_0000002"


# ---- disks ------------------------------------------------------------------------------------------------------

@contextmanager
def files_end_at(size: int):
    """No file can grow beyond: as on a full disk, whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(tmp_path, train, whole):
    train(tmp_path, steps=3)
    with files_end_at(100_000), pytest.raises(DiskFull, match=r"needs 1\.0 MB, but .* has .* MB left and a quota"):
        train(tmp_path)
    assert not list(tmp_path.glob(".writing_*"))
    assert checkpoint.newest_valid(tmp_path).name == "step_0000003"
    train(tmp_path)
    assert log_of(tmp_path) == log_of(whole) and not differing(tmp_path, whole)


def test_a_disk_that_fills_up_while_something_is_encoded(tmp_path):
    store, values = Store(tmp_path), torch.arange(10_000).view(100, 100)
    with files_end_at(300_000), pytest.raises(DiskFull, match="while 0.02 MB were stored, .* MB are left: make room"):
        for number in range(100):
            store.put({f"key{number}": values})
    assert 3 < number < 20 and not Store(tmp_path).has(f"key{number}")
    assert torch.equal(Store(tmp_path).get(f"key{number - 1}"), values.half())
    store.put({f"key{number}": values})
    assert Store(tmp_path).has(f"key{number}")


# ---- how it ends ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("error, code", [
    (FloatingPointError("it is nan"), 3), (torch.OutOfMemoryError("it is nan"), 4), (DiskFull("it is nan"), 5),
    (OSError(28, "No space left on device"), 5), (Unreadable("Caught in worker 0\nTraceback\nit is nan\n"), 6),
    (WorkerDied("it is nan"), 7)], ids=lambda value: type(value).__name__)
def test_exit_codes_and_the_last_line(tmp_path, monkeypatch, capsys, error, code):
    def fail(*arguments):
        raise error
    monkeypatch.setattr(cli, "train", fail)
    (tmp_path / "run.toml").write_text('[speed]\ndevice = "cpu"')
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", str(tmp_path / "run.toml")])
    assert stopped.value.code == code
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith(f"stopped, exit code {code}: ") and told.endswith(("it is nan", "No space left on device"))


def test_other_errors_are_not_faults(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "train", lambda *arguments: {}["a mistake"])
    (tmp_path / "run.toml").write_text('[speed]\ndevice = "cpu"')
    with pytest.raises(KeyError):
        cli.main(["train", str(tmp_path / "run.toml")])


def test_a_fault_is_noted_once_by_all_processes(tmp_path, capsys):
    one, two = Faults(tmp_path), Faults(tmp_path)
    for notes in (one, two, one, Faults(tmp_path)):
        notes.note("skipped", "a.png is missing", sample="line 3")
    two.note("skipped", "b.png is missing", sample="line 4")
    assert one.total() == two.total() == 2 and capsys.readouterr().out.count("a.png") == 1
    (tmp_path / faults.NAME).open("a").write('{"kind": "skip')    # a disk that is full
    assert one.total() == 2
    two.note("skipped", "c.png is missing")
    assert Faults(tmp_path).total() >= 2
