"""Jodi Loader: the host's model folders, the bundled model, and files that do not belong together."""

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
    for kind, folder in loader.HOST_FOLDERS.items():
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder,
                            ([str(tiny_files[kind].parent)], {".safetensors"}))
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
