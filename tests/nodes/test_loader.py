"""Jodi Loader: the host's model folders, the bundled model, and files that do not belong together."""

import re
from dataclasses import replace
from types import SimpleNamespace

import folder_paths
import pytest

from jodi_pack.jodi_core.files import WeightsError
from jodi_pack.nodes import loader
from jodi_pack.nodes.loader import NO_TEXT, TINY, JodiLoader, check_belong_together


@pytest.fixture
def model_folders(tiny_files, monkeypatch):
    """The random tiny model in the folders where the host looks."""
    for folder in (*loader.HOST_FOLDERS.values(), "checkpoints"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder,
                            ([str(tiny_files["transformer"].parent)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    yield
    folder_paths.filename_list_cache.clear()


def load(model="transformer", text="text_encoder", vae="autoencoder", dtype="default"):
    names = (name if name in (TINY, NO_TEXT) else f"{name}.safetensors" for name in (model, text, vae))
    return JodiLoader.execute(*names, dtype).result


def test_files_from_the_model_folders(model_folders):
    options = {entry.id: entry.options for entry in JodiLoader.define_schema().inputs}
    assert options["model_name"][0] == options["vae_name"][0] == TINY
    assert options["text_encoder_name"][:2] == [TINY, NO_TEXT]
    assert "transformer.safetensors" in options["model_name"]
    model, clip, vae = load()
    assert vae.joint_config == model.model.diffusion_model.config
    assert load(text=NO_TEXT)[1] is None


def test_bundled_model(model_folders, tiny_files, monkeypatch):
    monkeypatch.setattr(loader, "tiny_bundle", lambda: tiny_files)
    assert load(TINY, TINY, TINY)[1].tokenizer.config.hidden_size == 64


@pytest.mark.parametrize("names, message", [
    ({"model": "autoencoder"}, "a DC-AE autoencoder, but a Jodi transformer is wanted"),
    ({"text": "transformer"}, "a Gemma-2 text encoder is wanted"),
    ({"vae": "text_encoder"}, "a DC-AE autoencoder is wanted"),
])
def test_file_of_another_kind(model_folders, names, message):
    with pytest.raises(WeightsError, match=message):
        load(**names)


@pytest.mark.parametrize("left_out, message", [
    ("spiece_model", "has no tokenizer"), ("model.layers.0.mlp.up_proj.weight", "1 missing: model.layers.0.mlp.up")])
def test_incomplete_text_encoder(tiny_files, tmp_path, left_out, message):
    from jodi_pack.nodes.host.text import load_clip
    from safetensors import safe_open
    from safetensors.torch import save_file
    with safe_open(tiny_files["text_encoder"], "pt") as file:
        save_file({name: file.get_tensor(name) for name in file.keys() if name != left_out},
                  tmp_path / "text.safetensors", file.metadata())
    with pytest.raises(WeightsError, match=message):
        load_clip(str(tmp_path / "text.safetensors"))


@pytest.mark.parametrize("change, message", [
    ({"model_name": "Jodi.pth"}, "'Jodi.pth' is not in models/diffusion_models.*"
                                 "https://huggingface.co/VIPL-GENUN/Jodi/resolve/main/Jodi.pth.*tiny"),
    ({"text_encoder_name": "gemma.safetensors"}, "models/text_encoders.*download published"),
    ({"vae_name": "../../x"}, "not in models/vae.*dc-ae-f32c32-sana-1.0.safetensors"),
    ({"vae_name": {"a": ["b"]}}, "not in models/vae"),
    ({"model_name": 7 * "long" * 999}, "not in models/diffusion_models"),
    ({"vae_name": loader.SAME_FILE}, "the tiny model is not one file"),
])
def test_what_is_not_there_is_named_with_where_to_get_it(model_folders, change, message):
    chosen = {"model_name": TINY, "text_encoder_name": NO_TEXT, "vae_name": TINY}
    assert JodiLoader.validate_inputs(**chosen) is True
    assert JodiLoader.validate_inputs(**chosen | {"model_name": None}) is True, "a link is not known yet"
    told = JodiLoader.validate_inputs(**chosen | change)
    assert re.search(message, told) and len(told) < 300


def test_a_name_of_another_suffix_is_pointed_out(model_folders, tmp_path, monkeypatch):
    (tmp_path / "Jodi.pth").touch()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".pth"}))
    folder_paths.filename_list_cache.clear()
    told = JodiLoader.validate_inputs("Jodi.safetensors", NO_TEXT, TINY)
    assert re.search("Choose Jodi.pth, which is there.*convert", told)


def test_names_cannot_leave_the_folders(model_folders, tmp_path):
    with pytest.raises(FileNotFoundError):
        JodiLoader.execute(f"../../../../../../..{tmp_path}/x.safetensors", NO_TEXT, TINY, "default")


def test_parts_of_different_models(loaded):
    _, clip, vae = loaded
    config = vae.joint_config
    check_belong_together(config, None, vae)
    with pytest.raises(ValueError, match="gives 2304 numbers per token, but the model takes 64"):
        other = SimpleNamespace(tokenizer=SimpleNamespace(config=replace(clip.tokenizer.config, hidden_size=2304)))
        check_belong_together(config, other, vae)
    with pytest.raises(ValueError, match="shrinks pictures 8 times"):
        check_belong_together(replace(config, input_size=32), clip, vae)
