"""Converting: number types, what stays precise in 8 bits, files that hold several parts."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jodi_core import files, weights
from jodi_core.convert import convert, inspect
from jodi_core.files import WeightsError

FP8 = torch.float8_e4m3fn


def test_in_8_bits_the_matrices_of_the_blocks_shrink_and_the_rest_stays_in_16(tmp_path, tiny_files):
    target = tmp_path / "x.safetensors"
    convert(tiny_files["transformer"], target, dtype=FP8)
    stored = load_file(target)
    shrunk = {name for name, tensor in stored.items() if tensor.dtype == FP8}
    parts = ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj",
             "mlp.inverted_conv.conv", "mlp.point_conv.conv")
    assert shrunk == {f"blocks.{block}.{part}.weight" for block in (0, 1) for part in parts}
    assert {stored[name].dtype for name in stored.keys() - shrunk} == {torch.bfloat16}
    assert inspect(target)["dtypes"]["F8_E4M3"] == len(shrunk)


@pytest.mark.parametrize("change", [lambda tensor: tensor / 100, lambda tensor: tensor * 1e5])
def test_a_matrix_that_8_bits_would_spoil_stays_in_16(tmp_path, tiny_files, change):
    tensors, name = load_file(tiny_files["transformer"]), "blocks.0.attn.proj.weight"
    tensors[name] = change(tensors[name])
    with safe_open(tiny_files["transformer"], "pt") as file:
        save_file(tensors, tmp_path / "x.safetensors", file.metadata())
    convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors", dtype=FP8)
    stored = load_file(tmp_path / "y.safetensors")
    assert stored[name].dtype == torch.bfloat16 and stored["blocks.1.attn.proj.weight"].dtype == FP8
    assert torch.allclose(stored[name].float(), tensors[name], rtol=0.01)


@pytest.mark.parametrize("kind", ["transformer", "text_encoder"])
def test_an_8_bit_file_loads_in_16_bits_and_gives_nearly_the_same(tmp_path, tiny_files, kind):
    target = tmp_path / "x.safetensors"
    convert(tiny_files[kind], target, dtype=FP8)
    if kind == "text_encoder":
        results = [weights.load_text(path, dtype=torch.float32).encode(["a red house"])[0]
                   for path in (tiny_files[kind], target)]
        assert weights.load_text(target).model.dtype == torch.bfloat16
    else:
        x = torch.randn(1, 8, 8, 6, 6, generator=torch.Generator().manual_seed(0))
        caption = torch.randn(1, 1, 24, 64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            results = [weights.load_transformer(path, dtype=torch.float32)(
                x, torch.tensor([500.]), caption, torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 24), None)
                for path in (tiny_files[kind], target)]
        assert {p.dtype for p in weights.load_transformer(target).parameters()} == {torch.bfloat16}
    error = (results[1] - results[0]).norm() / results[0].norm()
    assert 0 < error < 0.1


def test_an_autoencoder_is_not_put_into_8_bits(tmp_path, tiny_files):
    with pytest.raises(WeightsError, match="autoencoder.*choose bfloat16"):
        convert(tiny_files["autoencoder"], tmp_path / "x.safetensors", dtype=FP8)


def test_values_that_a_number_type_cannot_hold_are_refused(tmp_path, tiny_files):
    tensors = load_file(tiny_files["transformer"])
    tensors["blocks.1.attn.proj.weight"][3, 5] = 7e4
    path = tmp_path / "x.safetensors"
    with safe_open(tiny_files["transformer"], "pt") as file:
        save_file(tensors, path, file.metadata())
    with pytest.raises(WeightsError, match="blocks.1.attn.proj.weight has values up to 7e.*choose bfloat16"):
        convert(path, tmp_path / "y.safetensors", dtype=torch.float16)
    assert not (tmp_path / "y.safetensors").exists()
    tensors["blocks.1.attn.proj.weight"][3, 5] = torch.inf    # no fault of the conversion: it stays as it is
    with safe_open(tiny_files["transformer"], "pt") as file:
        save_file(tensors, path, file.metadata())
    convert(path, tmp_path / "y.safetensors", dtype=torch.float16)


def test_written_files_are_aligned_and_read_back_by_others(tmp_path):
    tensors = {"a": torch.tensor(True), "b": torch.arange(3, dtype=torch.int64), "c": torch.ones(2, 3).half().T,
               "d": torch.zeros(0, 4), "e": torch.tensor(2.5), "f": torch.ones(5).to(FP8)}
    files.write_safetensors(tmp_path / "x.safetensors", tensors, {"note": "ü"})
    content = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(content[8:8 + struct.unpack("<Q", content[:8])[0]])
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % tensors[name].dtype.itemsize == 0
    back = load_file(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name].float(), tensors[name].float()) for name in tensors)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"note": "ü"}


def bundle(path: Path, parts: dict[str, Path]) -> Path:
    """Parts in one file under the names that the host's CheckpointSave gives them."""
    prefixes = {"transformer": "model.diffusion_model.", "autoencoder": "first_stage_model.",
                "text_encoder": "cond_stage_model.gemma2_2b."}
    tensors = {}
    for kind, source in parts.items():
        config, own = weights.read_part(source, kind)
        own |= weights.metadata_tensor(kind, config)
        tensors |= {prefixes[kind] + ("transformer." if name.startswith("model.") else "") + name: tensor
                    for name, tensor in own.items()}
    save_file(tensors, path)
    return path


def test_each_part_of_a_bundle_is_found(tmp_path, tiny_files):
    path = bundle(tmp_path / "all.safetensors", tiny_files)
    for kind, source in tiny_files.items():
        config, tensors = weights.read_part(path, kind)
        assert config == weights.read_part(source, kind)[0]
        assert all(torch.equal(tensors[name], tensor) for name, tensor in load_file(source).items())
    about = inspect(path)
    assert about["kind"] == "transformer + autoencoder + text_encoder"
    assert about["config"]["text_encoder"]["prefix"] == "draw this: "


def test_a_bundle_is_taken_apart_by_convert(tmp_path, tiny_files):
    path = bundle(tmp_path / "all.safetensors", tiny_files)
    with pytest.raises(WeightsError, match="holds transformer, autoencoder, text_encoder: choose one with --part"):
        convert(path, tmp_path / "x.safetensors")
    assert convert(path, tmp_path / "x.safetensors", part="autoencoder") == "autoencoder"
    assert load_file(tmp_path / "x.safetensors").keys() == load_file(tiny_files["autoencoder"]).keys()


def test_a_part_that_is_not_in_the_bundle_is_missed(tmp_path, tiny_files):
    path = bundle(tmp_path / "two.safetensors", {kind: tiny_files[kind] for kind in ("transformer", "autoencoder")})
    with pytest.raises(WeightsError, match="a Gemma-2 text encoder is wanted"):
        weights.read_text_encoder(path)
