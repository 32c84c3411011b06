"""Dual Diffusion in the trainer: losses of the original, runs that resume, what comes out, and what is refused."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from dual_diffusion_files import GOLDEN, RECORDED, part_of
from dual_run import MODEL, SCENES, FakeParts, Texts, dual_config, fresh, t5_tensors, use_parts
from jodi_core.dual_diffusion.config import DualDiffusionConfig
from jodi_core.dual_diffusion.network import DualDiffusionTransformer
from jodi_core.dual_diffusion.t5 import T5States
from jodi_core.dual_diffusion.weights import load_t5, load_transformer, read_t5
from jodi_core.files import WeightsError, read_tensors
from training import run
from training.config import LossConfig, StartConfig, TrainConfig
from training.config_file import build, load_config
from training.data import collate
from training.dual_config import DualTrainingConfig
from training.dual_losses import DualLoss, draw_question
from training.dual_model import DualTrainee
from training.families import FAMILY
from training.losses import Batch, Question
from training.order import TaskOrder
from training.parallel import Processes

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).parent / "dual_run.py"


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    use_parts(monkeypatch.setattr)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run of one process."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        use_parts(patch.setattr)
        run.train(dual_config(folder, mode="text_encoder"), Processes())
    return folder


def program(folder: Path, *options: str, processes: int = 1) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([sys.executable, *(launcher if processes > 1 else []), str(PROGRAM), str(folder), *options],
                          capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Averages of the newest checkpoint."""
    model = fresh(mode="text_encoder")
    run.load_weights(dual_config(folder, mode="text_encoder"), model, averaged=True)
    return {name: value.detach() for name, value in model.named_parameters()}


# ---- losses -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def golden():
    from safetensors.torch import load_file
    return load_file(GOLDEN / "golden.safetensors")


def test_the_loss_of_the_trainer_is_that_of_the_original(golden):
    config = DualTrainingConfig(**DualDiffusionConfig.from_dict(RECORDED["transformer_config"]).to_dict())
    network = DualDiffusionTransformer(config.network)
    network.load_state_dict(part_of(golden, "transformer."))
    recorded, pictures = part_of(golden, "train.text."), part_of(golden, "train.image.")
    t5 = T5States.from_state_dict(part_of(golden, "text_encoder."), dtype=torch.float32)
    model = DualTrainee(config, network, t5)
    weight = RECORDED["cases"]["train"]["text_weight"]
    loss = DualLoss(model, LossConfig(text_weight=weight), torch.ones(2),
                    [RECORDED["pad_token_id_used"]] * pictures["caption_ids"].shape[1])

    words = torch.stack([recorded["input_ids"].long(), recorded["label_mask"].long()], -1)
    asked = [Question("text", None, float(u), None, False, None, uniform_L=mask)
             for u, mask in zip(recorded["uniform_t"], recorded["uniform_mask"])]
    text, _ = loss(batch_of(recorded["image_latents"], words), asked)
    assert text.item() / len(asked) == pytest.approx(weight * float(recorded["loss"]), rel=1e-5)

    words = torch.stack([pictures["caption_ids"].long()] * 2, -1)
    asked = [Question("picture", None, float(t) / 1000, float(t), bool(u < 0.1), noise[:, None])
             for t, u, noise in zip(pictures["timesteps"], pictures["uniform_dropout"], pictures["noise"])]
    assert any(question.dropped for question in asked)
    picture, _ = loss(batch_of(pictures["latents"], words), asked)
    assert picture.item() / len(asked) == pytest.approx(float(pictures["loss"]), rel=1e-5)

    (picture / len(asked) + text / len(recorded["uniform_t"])).backward()
    grads = {name.removeprefix("network."): param.grad for name, param in model.named_parameters()}
    for name, grad in part_of(golden, "train.grad.").items():
        assert (grads[name] - grad).norm() <= 1e-4 * grad.norm(), name


def batch_of(latents_BCHW, words_BL2) -> Batch:
    return Batch(latents_BCHW[:, :, None], torch.ones(len(latents_BCHW), 1, dtype=torch.bool), words_BL2, None)


def test_draws_follow_the_original(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    asked = [draw_question(MODEL, LossConfig(), None, (4, 1, 4, 4), "picture", generator) for _ in range(400)]
    times = torch.tensor([question.time for question in asked])
    assert times.min() >= 1 and times.max() <= 1000 and (times == times.round()).all()
    assert 0.44 < (times / 1000).mean() < 0.56 and 20 < sum(question.dropped for question in asked) < 60
    text = draw_question(MODEL, LossConfig(), None, (4, 1, 4, 4), "text", generator)
    assert text.uniform_L.shape == (MODEL.text_length,) and text.noise_CLHW is None


def test_every_parameter_gets_a_gradient_from_either_task():
    loss = FAMILY["dual_diffusion"].make_loss(fresh(mode="text_encoder"), LossConfig(), torch.ones(2), FakeParts())
    for kind, task in enumerate(("picture", "text")):
        loss.zero_grad()
        generator = torch.Generator().manual_seed(0)
        items = [Texts().item(kind * SCENES + number, generator) for number in range(3)]
        batch = collate(items)
        asked = [draw_question(MODEL, LossConfig(), None, batch.latents_BCLHW.shape[1:], task, generator)
                 for _ in items]
        loss(batch, asked)[0].backward()
        assert [name for name, param in loss.named_parameters() if param.grad is None] == []


# ---- order ------------------------------------------------------------------------------------------------------

def test_each_micro_batch_has_samples_of_its_task():
    bins_N = torch.tensor([0, 1] * 30)
    order = TaskOrder(bins_N, ("text", "picture", "text"), 6, 2, 50, seed=1)
    kinds = [[int(bins_N[index]) for index in order.samples(step)] for step in range(50)]
    assert kinds == [[1, 1, 0, 0, 1, 1]] * 50
    seen = [index for step in range(15) for index in order.samples(step)[2:4]]
    assert len(set(seen)) == 30, "all are read before one comes again"
    with pytest.raises(ValueError, match="batch 8 is not a multiple of micro_batch 2 times 3 tasks: choose batch = 6"):
        TaskOrder(bins_N, ("text", "picture", "text"), 8, 2, 50, seed=1)
    with pytest.raises(ValueError, match='no data set has samples for the task "picture"'):
        TaskOrder(torch.ones(9), ("picture",), 2, 2, 5, seed=1)


# ---- runs -------------------------------------------------------------------------------------------------------

def test_training_lowers_both_losses(tmp_path):
    run.train(dual_config(tmp_path, steps=60, mode="text_encoder", batch=16, micro_batch=8), Processes())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for task in ("picture", "text"):
        losses = [line[task] for line in lines]
        assert sum(losses[-20:]) < 0.8 * sum(losses[:20]), task


def test_a_killed_run_ends_like_an_uninterrupted_one(whole, tmp_path):
    assert program(tmp_path, "kill=3").returncode == 9
    run.train(dual_config(tmp_path, mode="text_encoder"), Processes())
    one, other = weights(whole), weights(tmp_path)
    assert all(torch.equal(one[name], other[name]) for name in one) and len(one) > 50


def test_two_processes_with_copies_or_shards_train_like_one(whole, tmp_path):
    done = program(tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    one = weights(whole)
    for name in ("copies", "shards"):
        two = weights(tmp_path / name)
        for key in one:
            torch.testing.assert_close(two[key], one[key], atol=1e-5, rtol=1e-4)


# ---- what comes out ---------------------------------------------------------------------------------------------

def test_the_export_opens_with_its_text_encoder(whole, tmp_path):
    run.export(dual_config(whole, mode="text_encoder"), tmp_path / "model.safetensors")
    network, trained = load_transformer(tmp_path / "model.safetensors"), weights(whole)
    assert network.config == MODEL.network
    for name, value in network.state_dict().items():
        if name != "pos_embed.pos_embed":
            assert torch.equal(value, trained[f"network.{name}"].half()), name
    t5 = load_t5(tmp_path / "text_encoder.safetensors", network.config)
    assert torch.equal(t5.model.shared.weight, trained["t5.shared.weight"].half())


def test_the_row_of_the_mask_token_is_trained_alone(tmp_path):
    config = dual_config(tmp_path, mode="mask_embedding", steps=4)
    run.train(config, Processes())
    run.export(config, tmp_path / "model.safetensors")
    before = t5_tensors()
    save_file(before, tmp_path / "t5.safetensors")
    after = read_t5(tmp_path / "t5.safetensors", MODEL, tmp_path / "mask_token_emb.safetensors")["shared.weight"]
    changed = (after != before["shared.weight"]).any(1).nonzero().flatten().tolist()
    assert changed == [MODEL.mask_id]


def test_a_run_starts_from_a_file_of_the_family_or_from_stable_diffusion_3(tmp_path):
    torch.manual_seed(7)
    network = DualDiffusionTransformer(MODEL.network)
    network.init_weights()
    tensors = network.state_dict()
    save_file(tensors, tmp_path / "dual.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(
        MODEL.network.to_dict() | {"_class_name": "SD3JointModelFlexible"}))
    own = fresh(start=StartConfig(kind="dual_diffusion", weights=str(tmp_path / "dual.safetensors"), autoencoder="fake",
                                  text_encoder="fake"), model=replace(MODEL, num_layers=9))
    assert own.config == MODEL, "sizes are the file's"
    assert all(torch.equal(value, tensors[name]) for name, value in own.network.state_dict().items())

    renamed = {name.replace("image_norm_out", "norm_out").replace("image_proj_out", "proj_out"): value.clone()
               for name, value in tensors.items()}
    gone = ("text_proj_out", "null_image", "blocks.1.attn.to_add_out", "blocks.1.ff_context")
    sd3 = {name: value for name, value in renamed.items() if not any(part in name for part in gone)}
    for part in ("weight", "bias"):
        sd3[f"transformer_blocks.1.norm1_context.linear.{part}"] = tensors[
            f"transformer_blocks.1.norm1_context.linear.{part}"][:32].clone()
    save_file(sd3, tmp_path / "sd3.safetensors")
    start = StartConfig(kind="sd3", weights=str(tmp_path / "sd3.safetensors"), autoencoder="fake", text_encoder="fake")
    begun = fresh(start=start).network.state_dict()
    assert torch.equal(begun["image_proj_out.weight"], tensors["image_proj_out.weight"])
    assert torch.equal(begun["transformer_blocks.0.attn.to_q.weight"], tensors["transformer_blocks.0.attn.to_q.weight"])
    assert not begun["transformer_blocks.1.norm1_context.linear.weight"][32:].any(), "new gates are closed"


def test_the_autoencoder_has_to_fit(monkeypatch):
    monkeypatch.setattr(FakeParts, "autoencoder", SimpleNamespace(channels=16, factor=8))
    with pytest.raises(WeightsError, match="latents of 16 channels, factor 8, but the model takes 4"):
        fresh()


# ---- configuration ----------------------------------------------------------------------------------------------

def test_the_committed_configuration_loads():
    config = load_config(ROOT / "training" / "configs" / "tiny_dual_diffusion.toml")
    assert config.family == "dual_diffusion" and config.model.bins == {1.0: (128, 128)}
    folder = ROOT / "jodi_core" / "assets" / "tiny" / "dual_diffusion"
    assert DualDiffusionConfig.from_dict(json.loads((folder / "transformer" / "config.json").read_text())) \
        == config.model.network
    assert read_tensors(folder / "transformer" / "diffusion_pytorch_model.safetensors")


START = {"kind": "nothing", "autoencoder": "tiny", "text_encoder": "x"}


@pytest.mark.parametrize("values, message", [
    ({"tasks": ["joint"]}, "tasks = 'joint': use one of picture, text"),
    ({"in_turn": False}, "needs in_turn = true"),
    ({"start": {"kind": "nothing"}}, 'start.autoencoder = "published": Dual Diffusion is not fetched'),
    ({"loss": {"times": "uniform"}}, 'loss.times = uniform is of family = "jodi"'),
    ({"family": "jodi", "loss": {"text_weight": 1.0}}, 'loss.text_weight = 1.0 is of family = "dual_diffusion"'),
    ({"toy": {"scenes": 9, "bins": {"64x64": 1.0}}}, "squares of model.side = 512 pixels"),
    ({"data": {"sets": [{"path": "a.json", "tasks": ["answer"]}]}}, "data.sets.tasks = 'answer'"),
    ({"data": {"sets": [{"path": "a.tar", "root": "b"}]}}, "root is of JSON lists"),
    ({"family": "jodi", "data": {"sets": [{"path": "a.json"}]}}, 'are of family = "dual_diffusion"'),
])
def test_contradictions_are_refused(values, message):
    base = {"family": "dual_diffusion", "tasks": ["text"], "in_turn": True, "start": START}
    if values.get("family") == "jodi":
        base = {}
    with pytest.raises(ValueError, match=message):
        build(TrainConfig, base | values)
