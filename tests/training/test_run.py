"""Runs: configuration, log, checkpoints, kills at any point, several processes, the exported file."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jodi_core.weights import load_transformer
from training import bundle, checkpoint, cli, run
from training.config import OptimConfig, SaveConfig
from training.config_file import build, load_config, to_dict
from training.losses import JointLoss
from training.model import make_model
from training.parallel import Processes

from toy_run import MODEL, FakeText, lines, toy_config, use_toy_parts

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.filterwarnings("ignore:Mismatch dtype"),
              pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).parent / "toy_run.py"


@pytest.fixture(autouse=True)
def toy_parts(monkeypatch):
    use_toy_parts(monkeypatch.setattr)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run of one process."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        use_toy_parts(patch.setattr)
        run.train(toy_config(folder), Processes())
    return folder


def program(folder: Path, *options: str, processes: int = 1, dies: bool = False) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([sys.executable, *(launcher if processes > 1 else []), str(PROGRAM), str(folder), *options],
                          capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode != 0) == dies, done.stderr[-3000:]


def weights(folder: Path, averaged: bool = True) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint."""
    model = make_model(toy_config(folder), FakeText())
    run.load_weights(toy_config(folder), model, averaged)
    return {name: value.detach() for name, value in model.named_parameters()}


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first) and len(first) > 20


# ---- configuration ----------------------------------------------------------------------------------------------

def test_the_committed_configuration_loads():
    config = load_config(ROOT / "training" / "configs" / "tiny.toml", ["steps=7", "optim.muon_lr=1", 'output="x"'])
    assert (config.steps, config.optim.muon_lr, config.output) == (7, 1.0, "x")
    assert set(config.toy.sizes()) == set(config.model.bins.values()), "pictures are trained at the sizes offered"


@pytest.mark.parametrize("text, message", [
    ("step = 3", r"unknown key step: did you mean steps\?"),
    ("[optim]\nmuon_rate = 1", "unknown key optim.muon_rate"),
    ("[model]\nhiden_size = 64", r"unknown key model.hiden_size: did you mean model.hidden_size\?"),
    ("[model]\nhidden_size = 70", "hidden_size 70 is not divisible"),
    ("model = 3", "model is a section"),
    ("steps = 'many'", "steps = 'many' is not int"),
    ("tasks = ['joint', 'percieve']", "did you mean perceive"),
    ("[optim]\nname = 'adam'", r"optim.name = 'adam': use one of adamw, .*; did you mean adamw\?"),
    ("[start]\nown_place = true", 'start.kind is "jodi"'),
    ("[speed]\nshard = true", "speed.shard needs in_turn = true"),
    ("in_turn = true\n[speed]\nshard = true\n[optim]\nname = 'muon'", "needs whole matrices"),
    ("steps = = 3", "run.toml: Invalid value"),
])
def test_a_configuration_with_errors_is_refused_when_read(tmp_path, text, message):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / "run.toml")


@pytest.mark.parametrize("override, message", [("steps", "not key=value"), ("output=runs/x", "needs quotes")])
def test_overrides_that_cannot_be_read(tmp_path, override, message):
    (tmp_path / "run.toml").write_text("")
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path / "run.toml", [override])


# ---- one process ------------------------------------------------------------------------------------------------

def test_the_log_tells_losses_and_speed(whole):
    found = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
    assert all(line["loss"] > 0 and line["norm"] > 0 and line["samples_per_s"] > 0 for line in found)


def test_a_checkpoint_says_what_made_it(whole):
    (_, folder), = checkpoint.checkpoints(whole)[-1:]
    told = json.loads((folder / "run.json").read_text())
    assert told["step"] == 6 and told["world"] == 1
    assert to_dict(build(type(toy_config(whole)), json.loads(json.dumps(told["config"])))) == to_dict(toy_config(whole))


def test_only_the_newest_and_the_wanted_checkpoints_are_kept(whole, tmp_path):
    assert [step for step, _ in checkpoint.checkpoints(whole)] == [4, 6]
    run.train(toy_config(tmp_path, save=SaveConfig(every=1, keep=1, keep_every=4)), Processes())
    assert [step for step, _ in checkpoint.checkpoints(tmp_path)] == [4, 6]


def test_training_lowers_the_loss(tmp_path):
    run.train(toy_config(tmp_path, steps=40), Processes())
    losses = [line["loss"] for line in lines(tmp_path).values()]
    assert sum(losses[-9:]) < 0.8 * sum(losses[:9])


def test_a_gradient_that_is_not_a_number_stops_the_run_before_it_is_saved(tmp_path, monkeypatch):
    errors = JointLoss.errors
    calls = iter(range(1000))
    monkeypatch.setattr(JointLoss, "errors", lambda *a: errors(*a) * (torch.nan if next(calls) == 5 else 1))
    with pytest.raises(FloatingPointError, match="step 2: the gradient is nan"):
        run.train(toy_config(tmp_path), Processes())
    assert [step for step, _ in checkpoint.checkpoints(tmp_path)] == [2]
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_a_finished_run_is_not_run_again(whole, monkeypatch):
    monkeypatch.setattr(JointLoss, "forward", lambda *a: pytest.fail("a step was taken"))
    run.train(toy_config(whole), Processes())


def test_the_rate_of_the_configuration_holds_after_resuming(tmp_path):
    run.train(toy_config(tmp_path, steps=2), Processes())
    before = weights(tmp_path, averaged=False)
    run.train(toy_config(tmp_path, steps=4, optim=OptimConfig(lr=0.0)), Processes())
    after = weights(tmp_path, averaged=False)
    assert all(torch.equal(after[name], before[name]) for name in before)


# ---- asked to stop ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("file, last", [("save", 6), ("save_quit", 3)])
def test_files_ask_for_a_checkpoint(tmp_path, monkeypatch, file, last):
    after_step = run.Watcher.after_step

    def touch(watcher, state, *rest):
        after_step(watcher, state, *rest)
        if state.step == 2:
            (tmp_path / file).touch()
    monkeypatch.setattr(run.Watcher, "after_step", touch)
    run.train(toy_config(tmp_path, save=SaveConfig(every=100, keep=9)), Processes())
    assert [step for step, _ in checkpoint.checkpoints(tmp_path)] == sorted({3, last})
    assert not (tmp_path / file).exists()


def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path, monkeypatch):
    import signal
    after_step = run.Watcher.after_step

    def interrupt(watcher, state, *rest):
        after_step(watcher, state, *rest)
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(run.Watcher, "after_step", interrupt)
    run.train(toy_config(tmp_path, save=SaveConfig(every=100)), Processes())
    (step, _), = checkpoint.checkpoints(tmp_path)
    assert step == 3 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# ---- killed -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kill", ["1", "3", "4:save", "6:save"])
def test_a_killed_run_ends_like_an_uninterrupted_one(whole, tmp_path, kill):
    program(tmp_path, f"kill={kill}", dies=True)
    assert bool(list(tmp_path.glob(".writing_*"))) == kill.endswith("save")
    program(tmp_path, "workers=1")
    assert lines(tmp_path) == lines(whole)
    assert_same_weights(tmp_path, whole)
    assert not list(tmp_path.glob(".writing_*"))


@pytest.mark.parametrize("damage", ["manifest.json", "state/__0_0.distcp", "truncate", "run.json"])
def test_a_damaged_checkpoint_is_skipped_aloud(whole, tmp_path, damage, capsys):
    shutil.copytree(whole, tmp_path / "run")
    newest = checkpoint.checkpoints(tmp_path / "run")[-1][1]
    if damage == "truncate":
        with open(newest / "state/__0_0.distcp", "r+b") as file:
            file.truncate(1000)
    elif damage == "run.json":
        (newest / damage).write_text("{}")
    else:
        (newest / damage).unlink()
    run.train(toy_config(tmp_path / "run"), Processes())
    assert f"skipping {newest}" in capsys.readouterr().out
    assert lines(tmp_path / "run") == lines(whole)
    assert_same_weights(tmp_path / "run", whole)


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, monkeypatch):
    usage = shutil.disk_usage
    calls = iter(range(100))
    monkeypatch.setattr(checkpoint.shutil, "disk_usage",
                        lambda path: usage(path)._replace(free=1000) if next(calls) else usage(path))
    with pytest.raises(checkpoint.DiskFull, match="has 0.0 MB left: make room"):
        run.train(toy_config(tmp_path), Processes())
    assert [step for step, _ in checkpoint.checkpoints(tmp_path)] == [2] and not list(tmp_path.glob(".writing_*"))
    assert checkpoint.newest_valid(tmp_path)


# ---- several processes ------------------------------------------------------------------------------------------

@pytest.fixture(scope="module", params=[(), ("shard",)], ids=["copies", "shards"])
def pair(request, tmp_path_factory):
    """(folder of an uninterrupted run of two processes, its options)."""
    folder = tmp_path_factory.mktemp("pair")
    program(folder, *request.param, processes=2)
    return folder, request.param


def test_two_processes_train_like_one(pair, whole):
    one, two = weights(whole), weights(pair[0])
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4)
    for step, line in lines(whole).items():
        assert lines(pair[0])[step] == pytest.approx(line, rel=1e-3), "the log is of all processes"


def test_two_killed_processes_end_like_uninterrupted_ones(pair, tmp_path):
    program(tmp_path, *pair[1], "kill=3", processes=2, dies=True)
    program(tmp_path, *pair[1], processes=2)
    assert lines(tmp_path) == lines(pair[0])
    assert_same_weights(tmp_path, pair[0])


def test_a_checkpoint_of_two_goes_on_with_one(pair, tmp_path, whole):
    shutil.copytree(pair[0], tmp_path / "run")
    shutil.rmtree(checkpoint.checkpoints(tmp_path / "run")[-1][1])
    run.train(toy_config(tmp_path / "run"), Processes())
    one, mixed = weights(whole), weights(tmp_path / "run")
    for name in one:
        torch.testing.assert_close(mixed[name], one[name], atol=1e-5, rtol=1e-4)


# ---- what comes out ---------------------------------------------------------------------------------------------

def test_the_export_is_a_transformer_file_with_the_averaged_weights(whole, tmp_path):
    run.export(toy_config(whole), tmp_path / "transformer.safetensors")
    model = load_transformer(tmp_path / "transformer.safetensors", device="cpu", dtype=torch.float32)
    assert model.config == MODEL
    averaged = weights(whole)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, averaged[name].half().float(), rtol=0, atol=0)
    torch.testing.assert_close(model.y_embedder.y_embedding, FakeText().encode_negative([""], 6)[0], rtol=0, atol=1e-3)


def test_nothing_to_export(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run.export(toy_config(tmp_path), tmp_path / "transformer.safetensors")


def test_the_command_line(tmp_path, monkeypatch):
    calls = []
    for name in ("train", "export", "prepare", "make_bundle"):
        monkeypatch.setattr(cli, name, lambda *arguments, name=name, **options:
                            calls.append((name, *arguments[1:], *options.values())))
    (tmp_path / "run.toml").write_text('output = "there"\n[speed]\ndevice = "cpu"')
    for command in (["train"], ["export"], ["export", "--output", "x", "--merged"], ["cache"], ["bundle"]):
        cli.main([command[0], str(tmp_path / "run.toml"), "steps=2", *command[1:]])
    one = Processes()
    assert calls == [("train", one), ("export", Path("there/full.safetensors"), False, False),
                     ("export", Path("x"), True, False),
                     ("prepare", one), ("make_bundle", Path("there/bundle"), one)]


def test_a_bundle_makes_what_is_missing_and_keeps_what_exists(tmp_path, monkeypatch):
    config = toy_config(tmp_path, steps=2)
    start = replace(config.start, **{name: str(tmp_path / f"{name}.safetensors")
                                     for name in ("autoencoder", "text_encoder")})
    Path(start.text_encoder).write_text("made before")
    monkeypatch.setattr(bundle.autoencoder, "main", lambda arguments: Path(arguments[1]).write_text("made now"))
    monkeypatch.setattr(bundle.text_encoder, "main", lambda arguments: pytest.fail("it exists"))
    monkeypatch.setattr(bundle, "prepare", lambda *arguments: None)
    bundle.make_bundle(replace(config, start=start), tmp_path / "bundle", Processes())
    made = tmp_path / "bundle"
    assert (made / "autoencoder.safetensors").read_text() == "made now"
    assert (made / "text_encoder.safetensors").read_text() == "made before"
    assert load_transformer(made, device="cpu", dtype=torch.float32).config == config.model
