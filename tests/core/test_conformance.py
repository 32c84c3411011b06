"""The recorded numbers of the original pass, and whatever is wrong with a recording is noticed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jodi_core import JodiConfig, JodiTransformer
from jodi_core.conformance import main, recognise

GOLDEN = Path(__file__).parent.parent / "golden" / "jodi"


def part(folder: Path, *patterns: str) -> Path:
    """A folder with some of the recordings, writable."""
    folder.mkdir(exist_ok=True)
    for pattern in patterns:
        for path in GOLDEN.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    return folder


def rewrite(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_golden_data_passes(capsys):
    assert main([str(GOLDEN)]) == 0
    shown = capsys.readouterr().out
    assert "left alone: model_a.loss.json" in shown and "left alone: optimizer.json" in shown
    assert "FAILED" not in shown and "135 of 135 agree" in shown


def test_every_recording_is_run():
    """No golden file falls to a family by accident."""
    runners = {path.name: getattr(recognise(path.name)[1].run, "__name__", None) for path in GOLDEN.iterdir()}
    assert {name for name, run in runners.items() if run is None} == {
        "README.md", "model_a.loss.json", "model_a.loss.safetensors", "optimizer.json", "optimizer.safetensors"}
    assert runners["model_a.sampler.json"] == "sampler" and runners["sampler_toy.json"] == "toy_sampler"
    assert runners["model_a.weights.safetensors"] == "forward" and runners["model_a.debug.safetensors"] == "debug"


MODEL = ("model_a.json", "model_a.weights*")


@pytest.mark.parametrize("patterns, name, key", [
    ((*MODEL, "model_a.forward*"), "model_a.forward", "mixed_rows.out"),
    ((*MODEL, "model_a.forward*"), "model_a.forward", "cfg_pair.out"),
    ((*MODEL, "model_a.forward*"), "model_a.weights", "blocks.1.attn.proj.bias"),
    ((*MODEL, "model_a.forward*", "model_a.debug*"), "model_a.debug", "dbg.block1.mlp"),
    ((*MODEL, "model_a.forward*", "model_a.sampler*"), "model_a.sampler", "depth_s4_g4.5.final"),
    ((*MODEL, "model_a.forward*", "model_a.sampler*"), "model_a.sampler", "joint_s4_g1.traj"),
    ((*MODEL, "model_a.forward*", "model_a.pipeline*", "dcae.*"), "model_a.pipeline", "control.out0"),
    (("dcae.*",), "dcae.cases", "img64x96.decoded"),
    (("posembed.*",), "posembed", "d64_h4_w10_b8_p1.0"),
    (("postprocess.*",), "postprocess", "normal"),
    (("postprocess.*",), "postprocess", "seg12.index"),
    (("sampler_toy.*",), "sampler_toy", "s10_g1.0_f3.0.traj"),
    (("data_transform.*",), "data_transform", "img33x33.out"),
])
def test_a_changed_number_is_noticed(tmp_path, capsys, patterns, name, key):
    folder = part(tmp_path, *patterns)
    assert main([str(folder)]) == 0

    def change(tensors):
        tensors[key] = tensors[key] + tensors[key].abs().max() * 0.02 if tensors[key].is_floating_point() else \
            tensors[key] + (torch.arange(tensors[key].numel()) == 0).view(tensors[key].shape).to(tensors[key])

    rewrite(folder / f"{name}.safetensors", change)
    assert main([str(folder)]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("name, change", [
    ("geometry", lambda values: values["cases"][3].update(resize=[1024, 1025])),
    ("geometry", lambda values: values["batch_sampler"]["first_batches"][20].reverse()),
    ("text", lambda values: values["prompts"][2].update(cleaned_stripped="city ")),
    ("text", lambda values: values["select_index"][0].update(first=[0, 200, 201, 202])),
    ("roles", lambda values: values["samples"][2]["counts"].update({"11202220": values["samples"][2]["counts"].pop(
        "02202220")})),
    ("roles", lambda values: values["samples"][3]["captions"].update({"BLIP2-OPT-2.7b": 3000,
                                                                     "Qwen2-VL-7b-Instruct": 3000})),
    ("sampler_toy", lambda values: values.update(velocity="v = x ** 2")),
])
def test_a_changed_description_is_noticed(tmp_path, name, change):
    folder = part(tmp_path, f"{name}.*")
    values = json.loads((folder / f"{name}.json").read_text())
    change(values)
    (folder / f"{name}.json").write_text(json.dumps(values))
    assert main([str(folder)]) == 1


def test_a_shifted_joint_draw_is_noticed(tmp_path):
    """Possible rows with the wrong frequencies: joint generation a half of the time instead of a third."""
    folder = part(tmp_path, "roles.json")
    values = json.loads((folder / "roles.json").read_text())
    sample = values["samples"][0]
    sample["counts"]["00000000"] += 1000
    sample["draws"] += 1000
    (folder / "roles.json").write_text(json.dumps(values))
    assert main([str(folder)]) == 1


def test_nan_fails(tmp_path):
    folder = part(tmp_path, "posembed.*")
    rewrite(folder / "posembed.safetensors", lambda tensors: tensors["d48_h3_w5_b32_p1.0"].fill_(float("nan")))
    assert main([str(folder)]) == 1


@pytest.mark.parametrize("name", ["notes.txt", "model_a.forward.npz", "depth.png", "config.json"])
def test_unknown_file_fails(tmp_path, capsys, name):
    folder = part(tmp_path, "posembed.*")
    (folder / name).write_bytes(b"{}")
    assert main([str(folder)]) == 1
    assert f"{name}" in capsys.readouterr().out


def test_incomplete_recordings_fail(tmp_path, capsys):
    folder = part(tmp_path, "posembed.*", "model_a.forward*")
    assert main([str(folder)]) == 1
    assert "model_a.json is missing" in capsys.readouterr().out
    (folder / "model_a.forward.safetensors").unlink()
    (folder / "posembed.safetensors").unlink()
    assert main([str(folder)]) == 1


def test_one_broken_recording_does_not_hide_the_others(tmp_path, capsys):
    folder = part(tmp_path, "posembed.*", "geometry.json")
    (folder / "geometry.json").write_text("{")
    assert main([str(folder)]) == 1
    assert "posembed time features" in capsys.readouterr().out


def test_nothing_to_run_fails(tmp_path):
    assert main([str(tmp_path)]) == 1
    assert main([str(tmp_path / "absent")]) == 1
    assert main([str(part(tmp_path, "optimizer.*", "README.md"))]) == 1


def test_recordings_without_cases_fail(tmp_path):
    (tmp_path / "roles.json").write_text('{"samples": []}')
    assert main([str(tmp_path)]) == 1


@pytest.fixture
def other_model(tmp_path) -> Path:
    """A recording of our own network, unlike the golden one in every size: what the runner has to take."""
    values = {"input_size": 8, "patch_size": 2, "in_channels": 16, "hidden_size": 96, "depth": 3, "num_heads": 3,
              "mlp_ratio": 2.0, "caption_channels": 24, "model_max_length": 9, "qk_norm": True, "cross_norm": True,
              "y_norm": True, "use_pe": True, "linear_head_dim": 16, "num_conditions": 3}
    model = JodiTransformer(JodiConfig.from_reference(values))
    torch.manual_seed(3)
    model.init_weights()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()},
              tmp_path / "model_small-2.weights.safetensors")
    x, clean_x, y = torch.randn(1, 4, 16, 6, 8), torch.randn(1, 4, 16, 6, 8), torch.randn(1, 1, 9, 24)
    role = [[0, 1, 2, 0]]
    case = {"name": "one", "inputs": "in", "role": role, "t": [500.0], "mask_lengths": [4], "clean_x": True}
    outputs = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        mask = (torch.arange(9) < 4)[None]
        with torch.no_grad():
            outputs[precision] = model.eval().to(dtype)(x, torch.tensor([500.0]), y, torch.tensor(role), mask, clean_x)
        outputs[precision][:, 1:3] = 7.0  # the original's outputs of the other domains mean nothing
    save_file({"in.x": x, "in.clean_x": clean_x, "in.y": y, "a": outputs["fp32"], "b": outputs["bf16"]},
              tmp_path / "model_small-2.forward.safetensors")
    case["outputs"] = {"fp32": "a", "bf16": "b"}
    (tmp_path / "model_small-2.json").write_text(json.dumps({"model": values, "cases": [case]}))
    return tmp_path


def test_other_names_sizes_domains_and_precisions(other_model, capsys):
    assert main([str(other_model)]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert [row[-2:] for row in rows if row[:2] == ["model_small-2", "one"]] == [["2e-06", "ok"], ["3e-02", "ok"]]


def test_bf16_recording_is_not_held_to_float32_and_still_checked(other_model):
    rewrite(other_model / "model_small-2.forward.safetensors", lambda tensors: tensors["b"].mul_(1.01))
    assert main([str(other_model)]) == 0
    rewrite(other_model / "model_small-2.forward.safetensors", lambda tensors: tensors["b"].mul_(1.05))
    assert main([str(other_model)]) == 1
