"""Runs and their configuration: resuming after a kill, several processes, the log, the exported file."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jodi_core.weights import load_transformer
from training import bundle, cli, loop, state
from training.config import load_config

sys.path.insert(0, str(Path(__file__).parent))    # for the modules beside the tests

from toy_run import FakeText, toy_config  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_text_encoder(monkeypatch):
    monkeypatch.setattr(loop, "load_text", lambda *arguments, **keywords: FakeText())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(configuration, log lines) of a finished run."""
    config = toy_config(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "load_text", lambda *arguments, **keywords: FakeText())
        loop.train(config)
    return config, [json.loads(line) for line in open(Path(config.output) / "log.jsonl")]


def last_checkpoint(config) -> dict:
    """Everything in the newest checkpoint, tensor by tensor."""
    folder = state.checkpoints(Path(config.output))[-1]
    found = {f"{part} {name}": value for part in ("model", "ema")
             for name, value in load_file(folder / f"{part}.safetensors").items()}
    for number, optimizer in enumerate(torch.load(folder / "optimizers.pt", weights_only=True)):
        for parameter, values in optimizer["state"].items():
            found |= {f"optimizer {number} {parameter} {name}": value for name, value in values.items()}
    return found


def assert_same(found, expected):
    assert set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def failing(function, call):
    """The function, but its call number `call` raises as a kill would."""
    calls = iter(range(1, 1000))

    def wrapped(*arguments, **keywords):
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments, **keywords)
    return wrapped


# ---- configuration ----------------------------------------------------------------------------------------------

def test_the_committed_configuration_loads():
    config = load_config(ROOT / "training" / "configs" / "tiny.toml", ["steps=7", "optim.muon_lr=1e-3", 'output="x"'])
    assert (config.steps, config.optim.muon_lr, config.output) == (7, 1e-3, "x")
    assert set(config.data.sizes()) == set(config.model.bins.values()), "pictures are trained at the sizes offered"


@pytest.mark.parametrize("text, message", [
    ("step = 3", r"unknown key step: did you mean steps\?"),
    ("[optim]\nmuon_rate = 1", "unknown key optim.muon_rate"),
    ("[model]\nhiden_size = 64", r"unknown key model.hiden_size: did you mean hidden_size\?"),
    ("[model]\nhidden_size = 70", "hidden_size 70 is not divisible"),
    ("data = 3", "data is a section"),
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

def test_the_log_tells_losses_speed_and_the_probe(uninterrupted):
    config, lines = uninterrupted
    steps = [line for line in lines if "norm" in line]
    assert [line["step"] for line in steps] == [2, 4, 6]
    assert all(line[task] > 0 for line in steps for task in config.tasks) and steps[0]["samples_per_s"] > 0
    probe, = (line["probe"] for line in lines if "probe" in line)
    assert len(probe["true"]) == len(probe["shuffled"]) == 2 and probe["true"] != probe["shuffled"]


def test_only_the_newest_checkpoints_are_kept(uninterrupted):
    config, _ = uninterrupted
    assert [folder.name for folder in state.checkpoints(Path(config.output))] == ["step_0000004", "step_0000006"]


@pytest.mark.parametrize("target, call", [
    ("task_loss", 1 + 3 * 3),        # in step 3, one after a checkpoint
    ("task_loss", 2),                # before the first checkpoint
    ("save", 3),                     # after the last step, before its checkpoint
])
def test_a_killed_run_ends_like_an_uninterrupted_one(uninterrupted, tmp_path, monkeypatch, target, call):
    config = toy_config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loop, target, failing(getattr(loop, target), call))
        with pytest.raises(KeyboardInterrupt):
            loop.train(config)
    loop.train(config)
    assert_same(last_checkpoint(config), last_checkpoint(uninterrupted[0]))


@pytest.mark.parametrize("call", [1, 2])
def test_a_kill_while_saving_leaves_the_checkpoint_before(uninterrupted, tmp_path, monkeypatch, call):
    config = toy_config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", failing(torch.save, call))
        with pytest.raises(KeyboardInterrupt):
            loop.train(config)
    output = Path(config.output)
    assert list(output.glob(".writing_*")), "the kill came in the middle of writing"
    assert len(state.checkpoints(output)) == call - 1
    loop.train(config)
    assert_same(last_checkpoint(config), last_checkpoint(uninterrupted[0]))
    assert not list(output.glob(".writing_*"))


def test_a_finished_run_is_not_run_again(uninterrupted, monkeypatch):
    monkeypatch.setattr(loop, "task_loss", failing(loop.task_loss, 1))
    loop.train(uninterrupted[0])


def test_the_rate_of_the_configuration_holds_after_resuming(tmp_path):
    config = toy_config(tmp_path, steps=2)
    loop.train(config)
    before = last_checkpoint(config)
    still = replace(config, steps=4, optim=replace(config.optim, muon_lr=0.0, adamw_lr=0.0))
    loop.train(still)
    after = last_checkpoint(still)
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("model "))


def test_a_gradient_that_is_not_a_number_stops_the_run_before_it_is_saved(tmp_path, monkeypatch):
    config = toy_config(tmp_path)
    losses = iter(range(100))
    task_loss = loop.task_loss
    monkeypatch.setattr(loop, "task_loss", lambda *a: task_loss(*a) * (torch.nan if next(losses) == 8 else 1))
    with pytest.raises(FloatingPointError, match="step 2: the gradient is nan"):
        loop.train(config)
    assert all(value.isfinite().all() for value in last_checkpoint(config).values())


def test_training_lowers_the_loss(tmp_path):
    config = toy_config(tmp_path, steps=30, log_every=10, save_every=100, probe_every=100)
    loop.train(config)
    first, *_, last = (json.loads(line) for line in open(Path(config.output) / "log.jsonl"))
    assert last["perceive"] < 0.9 * first["perceive"] and last["joint"] < 0.9 * first["joint"]


def test_the_export_is_a_transformer_file_with_the_averaged_weights(uninterrupted, tmp_path):
    config, _ = uninterrupted
    loop.export(config, tmp_path / "transformer.safetensors")
    model = load_transformer(tmp_path / "transformer.safetensors", device="cpu", dtype=torch.float32)
    assert model.config == config.model
    averaged = {name.removeprefix("ema "): value for name, value in last_checkpoint(config).items()
                if name.startswith("ema ")}
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, averaged[name].half().float(), rtol=0, atol=0)
    torch.testing.assert_close(model.y_embedder.y_embedding, FakeText().encode_negative([""], 6)[0], rtol=0, atol=1e-3)


def test_nothing_to_export(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        loop.export(toy_config(tmp_path), tmp_path / "transformer.safetensors")


def test_the_command_line(tmp_path, monkeypatch):
    calls = []
    for name in ("train", "export", "prepare_data", "make_bundle"):
        monkeypatch.setattr(cli, name, lambda *arguments, name=name: calls.append((name, *arguments[1:])))
    (tmp_path / "run.toml").write_text('output = "there"')
    for command in (["train"], ["export"], ["export", "--output", "x"], ["cache"], ["bundle"]):
        cli.main([command[0], str(tmp_path / "run.toml"), "steps=2", *command[1:]])
    assert calls == [("train", 0, 1), ("export", Path("there/transformer.safetensors")), ("export", Path("x")),
                     ("prepare_data", 0, 1), ("make_bundle", Path("there/bundle"), 0, 1)]


def test_a_bundle_makes_what_is_missing_and_keeps_what_exists(tmp_path, monkeypatch):
    config = toy_config(tmp_path, steps=2)
    data = replace(config.data, **{name: str(tmp_path / f"{name}.safetensors") for name in ("autoencoder",
                                                                                         "text_encoder")})
    Path(data.text_encoder).write_text("made before")
    monkeypatch.setattr(bundle.autoencoder, "main", lambda arguments: Path(arguments[1]).write_text("made now"))
    monkeypatch.setattr(bundle.text_encoder, "main", lambda arguments: pytest.fail("it exists"))
    monkeypatch.setattr(bundle, "prepare_data", lambda *arguments: None)
    bundle.make_bundle(replace(config, data=data), tmp_path / "bundle")
    made = tmp_path / "bundle"
    assert (made / "autoencoder.safetensors").read_text() == "made now"
    assert (made / "text_encoder.safetensors").read_text() == "made before"
    assert load_transformer(made, device="cpu", dtype=torch.float32).config == config.model


# ---- two processes ----------------------------------------------------------------------------------------------

def test_two_processes_average_their_weights_and_go_on_from_a_checkpoint(tmp_path):
    config = toy_config(tmp_path, steps=2)
    loop.train(config)
    first = last_checkpoint(config)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    str(Path(__file__).parent / "toy_run.py"), str(tmp_path), "4"], check=True, timeout=300)
    own, averaged = zip(*(torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)))
    assert not torch.equal(*own), "each process reads its own batches"
    torch.testing.assert_close(averaged[0], (own[0] + own[1]) / 2)
    assert torch.equal(*averaged)
    last = last_checkpoint(config)
    assert torch.equal(torch.cat([last[f"model {name}"].flatten() for name, _ in loop.new_model(
        config, FakeText()).named_parameters()]), averaged[0]), "what is saved is the average"
    assert not torch.equal(last["ema domain_embedding.weight"], first["ema domain_embedding.weight"])
    lines = [json.loads(line) for line in open(tmp_path / "run" / "log.jsonl")]
    assert [line["step"] for line in lines if "norm" in line] == [2, 4], "one process writes the log"
