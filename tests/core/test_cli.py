"""The command line: what it writes, and one clear line with status 2 for whatever is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jodi_core import cli
from jodi_core.convert import inspect

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "jodi"


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_joint_writes_a_picture_per_domain_a_16_bit_depth_and_a_sheet(tiny_folder, tmp_path, capsys):
    arguments = ["joint", "--model", str(tiny_folder), "--prompt", "a red house beside a lake", "--seed", "7",
                 "--steps", "2", "--count", "2", "--output", str(tmp_path / "new" / "out")]
    assert cli.main(arguments) == 0
    written = {Path(line) for line in capsys.readouterr().out.split()}
    folder = tmp_path / "new" / "out"
    assert {path.name for path in written} == names(folder) == {
        f"7_{sample}_{domain}.png" for sample in ("00", "01")
        for domain in ("image", "lineart", "edge", "depth", "depth_16bit", "normal", "albedo", "segmentation",
                       "openpose")} | {"7_sheet.png"}
    before = (folder / "7_00_image.png").read_bytes()
    assert before != (folder / "7_01_image.png").read_bytes()
    deep, shallow = (np.asarray(Image.open(folder / f"7_00_depth{kind}.png")) for kind in ("_16bit", ""))
    assert deep.dtype == np.uint16 and deep.max() == 65535 and len(np.unique(deep)) > len(np.unique(shallow))
    assert np.abs(deep / 65535 - shallow[..., 0] / 255).max() < 0.003
    assert cli.main(arguments) == 0 and (folder / "7_00_image.png").read_bytes() == before


def test_control_and_perceive(tiny_folder, photo, tmp_path, capsys):
    common = ["--model", str(tiny_folder), "--seed", "1", "--steps", "1", "--output"]
    assert cli.main(["control", "--condition", f"depth={photo}", "--condition", f"edge={photo}", *common,
                     str(tmp_path / "control")]) == 0
    assert names(tmp_path / "control") == {"1_00_image.png", "1_sheet.png"}
    assert cli.main(["perceive", "--image", str(photo), "--domains", "depth, normal", "--size", "20x50", *common,
                     str(tmp_path / "perceive")]) == 0
    assert names(tmp_path / "perceive") == {"1_00_depth.png", "1_00_depth_16bit.png", "1_00_normal.png", "1_sheet.png"}
    assert Image.open(tmp_path / "perceive" / "1_00_normal.png").size == (50, 20)


@pytest.mark.parametrize("arguments, message", [
    (["joint", "--model", "absent.safetensors"], "absent.safetensors: no such file"),
    (["joint", "--model", "hf://a/../b"], "hf://owner/name/file"),
    (["joint", "--model", "TINY", "--domains", "deepness"], "no domain deepness; it has image"),
    (["joint", "--model", "TINY", "--steps", "0"], "steps 0"),
    (["joint", "--model", "TINY", "--count", "0"], "count 0"),
    (["joint", "--model", "TINY", "--device", "quantum"], "quantum"),
    (["perceive", "--model", "TINY", "--image", "absent.png"], "absent.png"),
    (["perceive", "--model", "TINY", "--image", "PHOTO", "--domains", "image"], "not both"),
    (["control", "--model", "TINY", "--condition", "deepness=PHOTO"], "no domain deepness"),
    (["control", "--model", "TINY", "--condition", "depth=PHOTO", "--condition", "depth=PHOTO"], "given once"),
    (["joint", "--model", "TINY", "--output", "PHOTO"], "photo.png"),
    (["convert", "PHOTO", "x.safetensors"], "cannot read this kind of file"),
    (["inspect", "absent.pth"], "no such file"),
    (["download", "hf://a/b/../c", "--to", "."], "hf://owner/name/file"),
    (["download", "published", "--to", "."], "--comfyui"),
    (["download", "published", "--comfyui", "absent"], "no folder 'models'"),
])
def test_what_is_wrong_takes_one_line(tiny_folder, photo, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("TINY", str(tiny_folder)).replace("PHOTO", str(photo)) for word in arguments]
    assert cli.main(words) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ") and message in told and "\n" not in told


@pytest.mark.parametrize("arguments, message", [
    ([], "COMMAND"), (["joint", "--size", "12"], "HEIGHTxWIDTH"), (["control"], "--condition"),
    (["control", "--condition", "depth"], "DOMAIN=FILE"), (["perceive"], "--image"),
    (["download", "hf://a/b/c"], "--to"),
])
def test_wrong_usage_is_explained(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_out_of_memory_says_what_to_try(monkeypatch, capsys):
    def run(options):
        raise torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(cli, "_sample", run)
    assert cli.main(["joint"]) == 2 and "smaller --count" in capsys.readouterr().err


def test_convert_then_inspect(tmp_path, capsys):
    target = tmp_path / "a.safetensors"
    assert cli.main(["convert", str(GOLDEN / "model_a.weights.safetensors"), str(target),
                     "--config", str(GOLDEN / "model_a.json"), "--dtype", "float16"]) == 0
    assert cli.main(["inspect", str(target)]) == 0
    told = capsys.readouterr().out
    assert "kind: transformer" in told and "hidden_size: 64" in told and '"F16"' in told
    assert json.dumps(inspect(target)["config"]["domains"]) in told
    assert "source_sha256" in told


@pytest.mark.parametrize("name, stored", [("fp32", "F32"), ("bf16", "BF16"), ("fp16", "F16"), ("fp8_e4m3", "F8_E4M3")])
def test_convert_to_every_number_type(tiny_files, tmp_path, capsys, name, stored):
    target = tmp_path / "a.safetensors"
    assert cli.main(["convert", str(tiny_files["transformer"]), str(target), "--dtype", name]) == 0
    assert " MB)" in capsys.readouterr().out and stored in inspect(target)["dtypes"]
    pictures = tmp_path / name
    assert cli.main(["joint", "--model", str(target), "--autoencoder", str(tiny_files["autoencoder"]), "--text-encoder",
                     str(tiny_files["text_encoder"]), "--prompt", "a tree", "--steps", "2", "--domains", "image",
                     "--output", str(pictures)]) == 0, "the command line computes in another type than it is stored in"
    assert any(pictures.glob("*_00_image.png"))


def test_the_package_imports_light_and_help_needs_no_model():
    check = "import sys, jodi_core; assert 'torch' not in sys.modules; jodi_core.Role; jodi_core.flow_timesteps"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
    shown = subprocess.run([sys.executable, "-m", "jodi_core", "--help"], cwd=ROOT, check=True, capture_output=True)
    assert b"perceive" in shown.stdout


@pytest.mark.skipif(os.name == "nt", reason="signals to a child differ")
def test_an_interrupt_ends_quietly(tiny_folder, tmp_path):
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)    # ignored in the background, by children as well
    process = subprocess.Popen(
        [sys.executable, "-m", "jodi_core", "joint", "--model", str(tiny_folder), "--steps", "100000", "--output",
         str(tmp_path / "out")], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, usual)
    while not (tmp_path / "out").is_dir() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        told = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and told.strip() == "interrupted"
    assert names(tmp_path / "out") == set()
