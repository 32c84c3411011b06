"""Finding weight files: addresses, the hub's cache, and downloads that end where the host looks or leave nothing."""

import errno
import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from jodi_core import published, weights
from jodi_core.files import WeightsError


@pytest.mark.parametrize("ref", [
    "hf://owner/name/../secret", "hf://../name/file", "hf:///etc/passwd", "hf://owner//file", "hf://owner/name",
    "hf://owner/name/", "hf://owner/name/a\\..\\b", "hf://owner/name/./x", "hf://", "hf://owner/name/c:/x",
    "hf://owner/name/a\x00b"])
def test_addresses_that_could_leave_their_folder_are_refused(ref, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("nothing may be fetched"))
    with pytest.raises(WeightsError, match="hf://owner/name/file"):
        weights.locate(ref)


def test_one_file_is_fetched_and_an_existing_local_path_wins(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args: asked.append(args) or "/cache/x.pth")
    assert weights.locate("hf://owner/name/sub/x.pth") == Path("/cache/x.pth")
    assert asked == [("owner/name", "sub/x.pth")]
    monkeypatch.chdir(tmp_path)
    local = Path("hf:/owner/name/sub/x.pth")
    local.parent.mkdir(parents=True)
    local.write_bytes(b"here")
    assert weights.locate("hf://owner/name/sub/x.pth") == local and len(asked) == 1


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A hub cache that holds one file of owner/name, and no network."""
    repo = tmp_path / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    save_file({"x": torch.ones(1)}, repo / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


def test_offline_mode_serves_the_cache_and_says_what_is_missing(offline, tmp_path):
    assert published.download("hf://owner/name/model.safetensors", folder=tmp_path / "to").name == "name.safetensors"
    assert weights.locate("hf://owner/name/model.safetensors").parent.name == "abc"
    with pytest.raises(WeightsError, match="not in the cache.*local copy"):
        weights.locate("hf://owner/name/other.safetensors")


def test_download_goes_where_the_host_looks(tmp_path, monkeypatch, tiny_files):
    host = tmp_path / "ComfyUI"
    with pytest.raises(WeightsError, match="no folder 'models'"):
        published.download("hf://owner/dc-ae/model.safetensors", comfyui=host)
    (host / "models").mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: str(tiny_files["autoencoder"]))
    path = published.download("hf://owner/dc-ae/model.safetensors", comfyui=host)
    assert path == host / "models" / "vae" / "dc-ae.safetensors"
    assert path.read_bytes() == tiny_files["autoencoder"].read_bytes()
    assert [p for p in (host / "models").rglob("*") if p.is_file()] == [path], "nothing else may stay"
    with pytest.raises(WeightsError, match="exists"):
        published.download("hf://owner/dc-ae/model.safetensors", comfyui=host)


def gemma_folder(folder: Path, tiny_text: Path) -> Path:
    """A text encoder file taken apart into the files that its authors publish."""
    folder.mkdir()
    tensors = load_file(tiny_text)
    (folder / "tokenizer.model").write_bytes(tensors.pop("spiece_model").numpy().tobytes())
    names = sorted(tensors)
    for number, half in ((1, names[::2]), (2, names[1::2])):
        save_file({name: tensors[name] for name in half}, folder / f"model-0000{number}-of-00002.safetensors")
    return folder


def test_the_published_model_arrives_as_three_files(tmp_path, monkeypatch, tiny_files):
    hub = gemma_folder(tmp_path / "hub", tiny_files["text_encoder"])
    torch.save({"state_dict": load_file(tiny_files["transformer"])}, hub / "Jodi.pth")
    (hub / "model.safetensors").write_bytes(tiny_files["autoencoder"].read_bytes())
    fetched = []

    def serve(repo, name, local_dir):
        fetched.append(name)
        Path(local_dir).mkdir(parents=True, exist_ok=True)
        return (Path(local_dir) / name).write_bytes((hub / name).read_bytes()) and Path(local_dir) / name
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", serve)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    models = tmp_path / "ComfyUI" / "models"
    models.mkdir(parents=True)
    for _ in range(2):
        paths = published.download_published(tmp_path / "ComfyUI")
        assert [str(path.relative_to(models)) for path in paths] == [
            "diffusion_models/Jodi.pth", "vae/dc-ae-f32c32-sana-1.0.safetensors",
            "text_encoders/gemma-2-2b-it.safetensors"]
    assert len(fetched) == 5, "what is there is not fetched again"
    assert {path for path in models.rglob("*") if path.is_file()} == set(paths), "nothing else may stay"
    whole, original = load_file(paths[2]), load_file(tiny_files["text_encoder"])
    assert whole.keys() == original.keys() and all(torch.equal(whole[name], original[name]) for name in whole)


def test_a_gemma_folder_serves_as_it_is(tmp_path, tiny_files):
    folder = gemma_folder(tmp_path / "gemma", tiny_files["text_encoder"])
    encoder = weights.load_text(folder)
    assert "user prompt" in encoder.config.prefix.lower(), "without metadata the published prefix holds"
    assert torch.equal(encoder.encode_negative(["a tree"], 5),
                       weights.load_text(tiny_files["text_encoder"]).encode_negative(["a tree"], 5))
    (folder / "tokenizer.model").unlink()
    with pytest.raises(WeightsError, match="text_encoder.safetensors"):
        weights.load_text(folder)


@pytest.mark.parametrize("failure", [TimeoutError("read timed out"), type("TransportError", (Exception,), {})()])
def test_a_broken_connection_is_told_and_can_resume(tmp_path, monkeypatch, failure):
    def fail(*args, **options):
        raise failure
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(WeightsError, match="hf://owner/name/x.pth could not be fetched.*resume"):
        weights.locate("hf://owner/name/x.pth")


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"),
                                     RuntimeError("Data processing error: No space left on device (os error 28)")])
def test_a_full_disk_leaves_no_partial_download(tmp_path, monkeypatch, failure):
    def fill(repo, name, local_dir):
        Path(local_dir).mkdir()
        (Path(local_dir) / "x.incomplete").write_bytes(b"partial")
        raise failure
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fill)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    with pytest.raises(WeightsError, match="No space left.*nothing was left"):
        published.download("hf://owner/name/x.pth", folder=tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_an_interrupted_download_keeps_what_it_has(tmp_path, monkeypatch):
    def interrupt(repo, name, local_dir):
        Path(local_dir).mkdir(exist_ok=True)
        (Path(local_dir) / "x.incomplete").write_bytes(b"partial")
        raise KeyboardInterrupt
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", interrupt)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    with pytest.raises(KeyboardInterrupt):
        published.download("hf://owner/name/x.pth", folder=tmp_path)
    assert (tmp_path / ".jodi-download" / "x.incomplete").exists()


def test_the_links_for_workflows_are_those_of_the_documentation():
    documented = (Path(__file__).parents[2] / "docs" / "model_files.md").read_text().split("```json")[1].split("```")[0]
    assert json.loads(documented) == published.model_links()
    for link in published.model_links():
        assert link["url"].startswith("https://") and link["directory"] in weights.HOST_FOLDERS.values()
    for kind, folder in weights.HOST_FOLDERS.items():
        assert f"models/{folder}/" in published.how_to_get(kind)
