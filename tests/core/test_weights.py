"""Weight files: recognising, refusing, converting. Most tests are about files that are not what they seem."""

import json
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jodi_core import files, weights
from jodi_core.convert import convert, inspect
from jodi_core.files import WeightsError
from jodi_core.models.jodi import JodiConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "jodi"
MODEL_A = GOLDEN / "model_a.weights.safetensors"
MODEL_A_CONFIG = json.loads((GOLDEN / "model_a.json").read_text())["model"]


@pytest.fixture
def tensors(tiny_files):
    return load_file(tiny_files["transformer"])


def own_metadata(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["jodi"])


# ---- files that are not what they seem ------------------------------------------------------------------------------

class Explosive:
    def __reduce__(self):
        return (open, (str(Explosive.marker), "w"))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name, content, message", [
    ("x.safetensors", b"", "empty"),
    ("x.pth", b"", "empty"),
    ("x.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    ("x.pth", b"\n<!DOCTYPE html><html>not found</html>", "web page"),
    ("x.safetensors", b'{"error": "Entry not found"}', "web page or a message"),
    ("x.safetensors", b"\xff" * 100, "not a complete safetensors"),
    ("x.pth", b"\xff" * 100, "not a complete torch file"),
    ("x.pth", b"\x80\x02garbage", "damaged"),
    ("x.gguf", b"GGUF", "use .safetensors"),
])
def test_what_is_no_weight_file_is_told_so(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    for read in (files.read_header, files.read_tensors):
        with pytest.raises(WeightsError, match=message):
            read(path)


def test_folders_and_missing_files_are_told_apart(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(WeightsError, match="folder"):
        weights.read_transformer(tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="no such file"):
        weights.load_transformer(tmp_path / "absent.safetensors")
    with pytest.raises(WeightsError, match="has no transformer.safetensors"):
        weights.load_transformer(tmp_path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path, tiny_files, tensors, share):
    whole = tiny_files["transformer"].read_bytes()
    with pytest.raises(WeightsError, match="cut short"):
        weights.read_transformer(write(tmp_path / "x.safetensors", whole[:int(len(whole) * share)]))
    torch.save(tensors, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    with pytest.raises(WeightsError, match="cut short|damaged"):
        weights.read_transformer(write(tmp_path / "x.pth", whole[:int(len(whole) * share)]))


@pytest.mark.parametrize("form", ["plain pickle", "zip"])
def test_a_pickle_that_would_execute_code_is_refused_and_executes_nothing(tmp_path, form):
    Explosive.marker = tmp_path / "executed"
    path = tmp_path / "x.pth"
    if form == "zip":
        torch.save({"state_dict": {"a": Explosive()}}, path)
    else:
        path.write_bytes(pickle.dumps(Explosive(), protocol=2))
    assert not Explosive.marker.exists()
    with pytest.raises(WeightsError, match="was refused.*can execute code"):
        convert(path, tmp_path / "y.safetensors")
    assert not Explosive.marker.exists() and not (tmp_path / "y.safetensors").exists()


def test_a_torch_file_without_tensors_is_refused(tmp_path):
    torch.save({"state_dict": {"epoch": 3}}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="no plain dictionary of tensors"):
        files.read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("wrap", [dict, lambda d: {"state_dict": d, "epoch": 3}, lambda d: OrderedDict(d)])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_of_every_published_form_are_read(tmp_path, tensors, wrap, zipped, tiny_files):
    extended = {"model.diffusion_model." + name: tensor for name, tensor in tensors.items()}
    extended["model.diffusion_model.pos_embed"] = torch.zeros(1, 36, 64)
    torch.save(wrap(extended), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    config = weights.read_transformer(tiny_files["transformer"])[0]
    convert(tmp_path / "x.pth", tmp_path / "y.safetensors", config=config.to_dict())
    again = weights.read_transformer(tmp_path / "y.safetensors")
    assert again[0] == config and again[1].keys() == tensors.keys()
    assert all(torch.equal(again[1][name], tensors[name]) for name in tensors)
    assert own_metadata(tmp_path / "y.safetensors")["source_sha256"] == files.sha256(tmp_path / "x.pth")


@pytest.mark.parametrize("keys, described", [
    (["x_embedder.proj.weight", "y_embedder.y_proj.fc1.weight", "blocks.0.mlp.inverted_conv.conv.weight"], "Sana"),
    (["transformer_blocks.0.ff.conv_inverted.weight"], "Sana.*diffusers"),
    (["x_embedder.proj.weight", "y_embedder.y_proj.fc1.weight", "blocks.0.mlp.fc1.weight"], "PixArt"),
    (["model.diffusion_model.input_blocks.0.0.weight"], "Stable Diffusion UNet"),
    (["double_blocks.0.img_attn.qkv.weight"], "Flux"),
    (["encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.mid_block.x"], "another autoencoder"),
    (["lora_unet_blocks_0_attn_qkv.lora_down.weight"], "LoRA"),
    (["diffusion_model.blocks.0.attn.qkv.lora_A.weight"], "LoRA"),
    (["encoder.block.0.layer.0.SelfAttention.q.weight"], "T5"),
    (["text_model.encoder.layers.0.self_attn.q_proj.weight"], "CLIP"),
    (["model.layers.0.self_attn.q_proj.weight"], "another language model"),
    (["model.layers.0.pre_feedforward_layernorm.weight", "model.layers.0.self_attn.q_norm.weight"], "Gemma-3"),
    (["down_blocks.0.resnets.0.conv1.weight"], "Stable Diffusion UNet"),
    (["something.else"], "no model file that is known"),
])
def test_files_of_other_models_are_named(tmp_path, keys, described):
    save_file({key: torch.zeros(2) for key in keys}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=f"{described}.*a Jodi transformer is wanted.*Jodi.pth"):
        weights.read_transformer(tmp_path / "x.safetensors")


def test_each_kind_is_refused_in_the_place_of_another(tiny_files):
    with pytest.raises(WeightsError, match="is a DC-AE autoencoder, but a Jodi transformer"):
        weights.load_transformer(tiny_files["autoencoder"])
    with pytest.raises(WeightsError, match="is a Gemma-2 text encoder, but a DC-AE"):
        weights.load_autoencoder(tiny_files["text_encoder"])
    with pytest.raises(WeightsError, match="is a Jodi transformer, but a Gemma-2"):
        weights.load_text(tiny_files["transformer"])


# ---- keys and configuration -----------------------------------------------------------------------------------------

def with_metadata(path, tensors, config, **other) -> Path:
    own = {"format": 1, "kind": "transformer", "config": config, "source_sha256": ""} | other
    save_file(tensors, path, {"jodi": json.dumps(own)})
    return path


@pytest.fixture
def config(tiny_files):
    return weights.read_transformer(tiny_files["transformer"])[0].to_dict()


def test_missing_unexpected_and_mis_shaped_tensors_are_counted_and_named(tmp_path, tensors, config):
    for block in (0, 1):
        for part in ("q_linear.weight", "q_linear.bias"):
            del tensors[f"blocks.{block}.cross_attn.{part}"]
    tensors["blocks.0.extra"] = torch.zeros(1)
    tensors["t_block.1.bias"] = torch.zeros(3)
    path = with_metadata(tmp_path / "x.safetensors", tensors, config)
    with pytest.raises(WeightsError) as error:
        weights.read_transformer(path)
    assert "4 missing: blocks.0.cross_attn.q_linear" in str(error.value) and ", ..." in str(error.value)
    assert "1 unexpected: blocks.0.extra" in str(error.value)
    assert "1 of a wrong shape: t_block.1.bias is 3 instead of 384" in str(error.value)


@pytest.mark.parametrize("change, told", [
    ({"hidden_size": 128}, "hidden_size 128.*64"),
    ({"depth": 10 ** 9}, "depth 1000000000.*2"),
    ({"domains": ["image", "depth"]}, "num_domains 2.*8"),
    ({"caption_channels": 2304}, "caption_channels 2304.*64"),
    ({"num_heads": 7}, "num_heads 7"),
    ({"bins": [1]}, "cannot be used"),
    ({"hidden_size": "64"}, "cannot be used"),
    ({"surprise": 1}, "surprise"),
])
def test_metadata_that_lies_is_an_error(tmp_path, tensors, config, change, told):
    path = with_metadata(tmp_path / "x.safetensors", tensors, config | change)
    with pytest.raises(WeightsError, match=told):
        weights.read_transformer(path)


@pytest.mark.parametrize("metadata, told", [
    ("no json", "cannot be read"), ("[]", "cannot be read"), ('{"format": 1}', "cannot be read"),
    ('{"format": 2, "kind": "transformer", "config": {}}', "newer version"),
    ('{"format": 1, "kind": "teapot", "config": {}}', "teapot"),
    ('{"format": 1, "kind": "autoencoder", "config": {}}', "metadata says autoencoder"),
])
def test_unusable_metadata_is_an_error(tmp_path, tensors, metadata, told):
    save_file(tensors, tmp_path / "x.safetensors", {"jodi": metadata})
    with pytest.raises(WeightsError, match=told):
        weights.read_transformer(tmp_path / "x.safetensors")


def test_an_unpublished_size_without_metadata_asks_for_its_configuration(tmp_path):
    with pytest.raises(WeightsError, match="num_heads"):
        weights.read_transformer(MODEL_A)
    assert convert(MODEL_A, tmp_path / "a.safetensors", config=MODEL_A_CONFIG) == "transformer"
    model = weights.load_transformer(tmp_path / "a.safetensors", dtype=torch.float32)
    assert model.config == JodiConfig.from_reference(MODEL_A_CONFIG)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training


def test_both_namings_of_the_autoencoder_load_to_the_same(tmp_path, tiny_files):
    autoencoder = weights.load_autoencoder(tiny_files["autoencoder"])
    config, tensors = weights.read_autoencoder(tiny_files["autoencoder"])
    save_file(tensors, tmp_path / "bare.safetensors")
    bare = weights.load_autoencoder(tmp_path / "bare.safetensors")
    picture = torch.rand(1, 3, 32, 32) * 2 - 1
    assert bare.config == autoencoder.config == config
    assert torch.equal(bare.encode(picture), autoencoder.encode(picture))
    tensors["decoder.project_in.main.conv.bias"] = torch.zeros(5)
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError, match="decoder.project_in.main.conv.bias is 5"):
        weights.load_autoencoder(tmp_path / "bad.safetensors")


def test_a_text_encoder_without_tokenizer_is_refused(tmp_path, tiny_files):
    tensors = load_file(tiny_files["text_encoder"])
    del tensors["spiece_model"]
    with safe_open(tiny_files["text_encoder"], "pt") as file:
        save_file(tensors, tmp_path / "x.safetensors", file.metadata())
    with pytest.raises(WeightsError, match="x.safetensors.*no tokenizer"):
        weights.load_text(tmp_path / "x.safetensors")


# ---- convert and inspect --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["transformer", "autoencoder", "text_encoder"])
def test_convert_changes_the_type_of_floating_point_alone_and_round_trips(tmp_path, tiny_files, kind):
    target = tmp_path / "x.safetensors"
    assert convert(tiny_files[kind], target, dtype=torch.bfloat16) == kind
    before, after = load_file(tiny_files[kind]), load_file(target)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        expected = tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        assert torch.equal(after[name], expected)
    assert own_metadata(target)["config"] == own_metadata(tiny_files[kind])["config"]


def test_convert_refuses_to_overwrite_unless_told(tmp_path, tiny_files):
    target = write(tmp_path / "x.safetensors", b"precious")
    with pytest.raises(WeightsError, match="exists"):
        convert(tiny_files["transformer"], target)
    assert target.read_bytes() == b"precious"
    convert(tiny_files["transformer"], target, overwrite=True)
    assert inspect(target)["kind"] == "transformer"
    with pytest.raises(WeightsError, match="no such folder"):
        convert(tiny_files["transformer"], tmp_path / "absent" / "x.safetensors")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, tiny_files):
    resource = pytest.importorskip("resource")
    target = write(tmp_path / "x.safetensors", b"precious")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard))  # a disk that is full after 20 kB
    try:
        with pytest.raises(WeightsError, match="could not write.*nothing was left"):
            convert(tiny_files["transformer"], target, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [target]


def test_inspect_reads_the_header_alone(tmp_path, tiny_files, monkeypatch):
    monkeypatch.setattr(weights, "read_tensors", lambda *args: pytest.fail("loaded"))
    about = inspect(tiny_files["transformer"])
    assert about["kind"] == "transformer" and about["config"]["hidden_size"] == 64
    assert about["parameters"] == sum(tensor.numel() for tensor in load_file(tiny_files["transformer"]).values())
    assert about["dtypes"] == {"F32": about["tensors"]}
    assert inspect(MODEL_A)["config"].startswith("unusable: ")
