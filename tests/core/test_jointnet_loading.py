"""Files of JointNet: the published folder in all its forms, one file made of it, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jodi_core.cli import main
from jodi_core.convert import convert, inspect
from jodi_core.files import WeightsError
from jodi_core.jointnet.loading import load_jointnet, read_jointnet
from jodi_core.weights import load_transformer

GOLDEN = Path(__file__).parent.parent / "golden" / "jointnet"
WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def branches():
    """Branch -> its recorded tensors, of the inpaint variant."""
    tensors = load_file(GOLDEN / "jointnet_tiny.safetensors")
    return {branch: {name.removeprefix(f"{branch}/"): tensor.float() for name, tensor in tensors.items()
                     if name.startswith(f"{branch}/")} for branch in ("unet", "jointnet")}


@pytest.fixture
def folder(tmp_path, branches):
    """As the original writes it: the variant is told wrongly by the configuration."""
    values = json.loads((GOLDEN / "jointnet_tiny.json").read_text())["unet_config"] | {
        "_class_name": "JointNetModel", "has_masked_latent_input": False}
    for branch, tensors in branches.items():
        (tmp_path / "model" / branch).mkdir(parents=True)
        (tmp_path / "model" / branch / "config.json").write_text(json.dumps(values))
        save_file(tensors, tmp_path / "model" / branch / f"{WEIGHTS}.safetensors")
    return tmp_path / "model"


def same(found: dict, branches: dict) -> bool:
    wanted = {f"{branch}.{name}": tensor for branch, tensors in branches.items() for name, tensor in tensors.items()}
    return found.keys() == wanted.keys() and all(torch.equal(found[name].float(), wanted[name]) for name in wanted)


def rewrite(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_a_folder(folder, branches):
    config, tensors = read_jointnet(folder)
    assert config.masked_input and config.heads == (2, 2, 2) and same(tensors, branches)
    assert same(read_jointnet(folder.parent)[1], branches)    # one folder further up


def test_pickles_halves_and_shards(folder, branches):
    half = {name: tensor.half() for name, tensor in branches["unet"].items()}
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    torch.save(half, folder / "unet" / f"{WEIGHTS}.bin")
    place = folder / "jointnet"
    (place / f"{WEIGHTS}.safetensors").unlink()
    names = sorted(branches["jointnet"])
    where = {name: f"{WEIGHTS}-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: branches["jointnet"][name] for name in names if where[name] == file}, place / file)
    (place / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert same(read_jointnet(folder)[1], branches)
    (place / f"{WEIGHTS}-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match="00002-of-00002.safetensors: no such file"):
        read_jointnet(folder)
    (place / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../unet/x.bin"}}))
    with pytest.raises(WeightsError, match="outside of its folder"):
        read_jointnet(folder)


def test_one_file_made_of_it(folder, branches, tmp_path, capsys):
    target = tmp_path / "one.safetensors"
    assert main(["convert", str(folder), str(target)]) == 0 and "jointnet" in capsys.readouterr().out
    config, tensors = read_jointnet(target)
    assert same(tensors, branches) and config == read_jointnet(folder)[0]
    assert convert(target, tmp_path / "half.safetensors", dtype=torch.float16) == "jointnet"
    about = inspect(tmp_path / "half.safetensors")
    assert about["kind"] == "jointnet" and about["config"]["masked_input"] and about["dtypes"] == {"F16": len(tensors)}
    with pytest.raises(WeightsError, match="8 bits"):
        convert(folder, tmp_path / "small.safetensors", dtype=torch.float8_e4m3fn)
    with pytest.raises(WeightsError, match="is a JointNet model, but a Jodi transformer is wanted"):
        load_transformer(target)


def test_a_network_of_it(folder):
    pytest.importorskip("diffusers")
    network = load_jointnet(folder, dtype=torch.bfloat16)
    assert not network.training and {part.dtype for part in network.parameters()} == {torch.bfloat16}
    rewrite(folder / "unet" / f"{WEIGHTS}.safetensors", lambda tensors: tensors.pop("time_embedding.linear_1.bias"))
    rewrite(folder / "jointnet" / f"{WEIGHTS}.safetensors", lambda tensors: tensors.pop("time_embedding.linear_1.bias"))
    with pytest.raises(WeightsError, match="2 missing: unet.time_embedding.linear_1.bias"):
        load_jointnet(folder)


@pytest.mark.parametrize("change, told", [
    (lambda folder: shutil.rmtree(folder / "jointnet"), "half a JointNet: unet is there, jointnet is missing"),
    (lambda folder: shutil.rmtree(folder / "unet"), "jointnet is there, unet is missing"),
    (lambda folder: [shutil.rmtree(folder / name) for name in ("unet", "jointnet")], "no subfolders unet and jointnet"),
    (lambda folder: (folder / "unet" / f"{WEIGHTS}.safetensors").unlink(), "has 0 safetensors files"),
    (lambda folder: (folder / "unet" / "config.json").unlink(), "no config.json"),
    (lambda folder: (folder / "unet" / "config.json").write_text("[1]"), "config.json cannot be used"),
    (lambda folder: rewrite(folder / "unet" / f"{WEIGHTS}.safetensors",
                            lambda tensors: [tensors.pop(f"jointnet_masked_latent_conv.{part}")
                                             for part in ("weight", "bias")]), "only jointnet has jointnet_masked"),
    (lambda folder: rewrite(folder / "unet" / f"{WEIGHTS}.safetensors",
                            lambda tensors: [tensors.pop(name) for name in list(tensors) if "jointnet_" in name]),
     "plain U-Net"),
    (lambda folder: rewrite(folder / "jointnet" / f"{WEIGHTS}.safetensors",
                            lambda tensors: tensors.update({"conv_in.bias": torch.zeros(7)})),
     "conv_in.bias is 7 instead of 32"),
    (lambda folder: (folder / "text_encoder").mkdir() or shutil.rmtree(folder / "jointnet"), "Stable Diffusion model"),
])
def test_what_is_no_jointnet(folder, change, told):
    change(folder)
    with pytest.raises(WeightsError, match=told):
        read_jointnet(folder)


@pytest.mark.parametrize("value", [{"prediction_type": "v_prediction"}, {"block_out_channels": [32, 64]},
                                   {"cross_attention_dim": 32}])
def test_settings_that_do_not_fit_the_other_branch(folder, value):
    file = folder / "jointnet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | value))
    with pytest.raises(WeightsError, match="cannot be used|belong together"):
        read_jointnet(folder)


def test_files_that_lie(folder, tmp_path):
    target = tmp_path / "one.safetensors"
    convert(folder, target)
    own = json.loads(inspect(target)["metadata"]["jodi"])
    own["config"]["text_width"] = 999
    save_file(load_file(target), target, {"jodi": json.dumps(own)})
    with pytest.raises(WeightsError, match="text_width 999, but the tensors have 16"):
        read_jointnet(target)
    rewrite(target, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("unet.")])
    with pytest.raises(WeightsError, match="half a JointNet, without unet"):
        read_jointnet(target)
