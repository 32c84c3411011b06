"""The recorded numbers of Dual Diffusion pass, and a changed one is noticed."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from jodi_core.conformance import main

pytest.importorskip("transformers")    # T5 and its tokenizer

GOLDEN = Path(__file__).parent.parent / "golden" / "dual_diffusion"


@pytest.fixture
def folder(tmp_path):
    for name in ("golden.json", "golden.safetensors"):
        shutil.copyfile(GOLDEN / name, tmp_path / name)
    return tmp_path


def failed(capsys) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "FAILED" in line]


def test_recorded_numbers_pass(capsys):
    assert main([str(GOLDEN)]) == 0
    assert "110 of 110 agree" in capsys.readouterr().out


def test_changed_numbers_are_noticed(folder, capsys):
    """One of every kind of case, all at once: each fails by itself."""
    tensors = load_file(folder / "golden.safetensors")
    for name in ("forward.1.image_out", "t5.output", "image.latents_final", "train.text.loss",
                 "train.grad.text_proj_out.bias", "preprocess.1.webdataset_data", "vae.latent_scaled",
                 "image.schedule.shift3_steps28.sigmas"):
        tensors[name] = tensors[name] * 1.02
    for name in ("text.vqa.x_final", "text.infill.x_steps", "train.text.x_noised", "text.finalize.result"):
        tensors[name].view(-1)[-1] += 1
    save_file(tensors, folder / "golden.safetensors")
    assert main([str(folder)]) == 1
    lines = failed(capsys)
    for title in ("forward 1 image_out", "golden T5", "picture latents at last", "text loss ", "text loss blanks",
                  "gradient text_proj_out", "picture 1 webdataset_data", "scaled latents", "shift3_steps28",
                  "vqa tokens at last", "infill tokens of 5 steps", "closing pass"):
        assert any(title in line for line in lines), title
    assert len(lines) == 12


def test_other_draws_make_another_text(folder, capsys):
    tensors = load_file(folder / "golden.safetensors")
    tensors["text.caption.uniforms"] = tensors["text.caption.uniforms"].flip(-1).contiguous()
    save_file(tensors, folder / "golden.safetensors")
    assert main([str(folder)]) == 1
    assert any("caption tokens at last" in line for line in failed(capsys))


def test_changed_tokens_are_noticed(tmp_path, capsys):
    values = json.loads((GOLDEN / "tokenization.json").read_text())
    values["sft_samples"][4]["label_mask"][-1] = 0
    values["decode"][0]["pipeline_text"] += " "
    (tmp_path / "tokenization.json").write_text(json.dumps(values))
    assert main([str(tmp_path)]) == 1
    assert len(failed(capsys)) == 2
