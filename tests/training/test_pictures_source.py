"""Folders of pictures and labels: read, encoded once, trained on; and everything that may be wrong with them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from jodi_core.domains import JODI_DOMAINS
from jodi_core.segmentation import PALETTE_12
from jodi_core.weights import resolve
from training import checkpoint, run
from training.caches import Store
from training.config import (AdapterConfig, DataConfig, OptimConfig, SaveConfig, SetConfig, SpeedConfig, StartConfig,
                             TrainConfig, WatchConfig)
from training.encoders import Encoders
from training.filling import fill
from training.parallel import Processes
from training.pictures import PictureSource
from training.samples import FolderSet, Samples, load_for_training
from training.world import write_dataset

pytestmark = [pytest.mark.filterwarnings("ignore:Mismatch dtype"),
              pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
BINS = {0.6: (96, 160), 1.0: (128, 128), 1.67: (160, 96)}


@pytest.fixture(scope="module")
def toy_set(tmp_path_factory):
    """Nine toy scenes on disk; do not write into it."""
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(folder, 9, 0, 128)
    return folder


@pytest.fixture
def folder(toy_set, tmp_path):
    return Path(shutil.copytree(toy_set, tmp_path / "scenes"))


@pytest.fixture(scope="module")
def encoders():
    return Encoders(StartConfig(autoencoder="tiny", text_encoder="tiny"), torch.device("cpu"))


def config_of(folder: Path, **data) -> TrainConfig:
    return TrainConfig(
        output=str(folder / "run"), steps=4, batch=2, micro_batch=2, mode="lora",
        adapter=AdapterConfig(rank=2, alpha=2.0),
        start=StartConfig(weights="tiny", autoencoder="tiny", text_encoder="tiny"), optim=OptimConfig(warmup=1),
        data=DataConfig(**{"sets": (SetConfig(path=str(folder)),), "cache": str(folder / "cache")} | data),
        speed=SpeedConfig(device="cpu", precision="float32"), save=SaveConfig(every=2), watch=WatchConfig(every=1,
                                                                                                      tensorboard=False))


def with_other_weights(kind: str, file: Path) -> Encoders:
    """The tiny encoders, one of them a little different."""
    with safe_open(resolve("tiny", kind), "pt") as stored:
        tensors, metadata = {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata()
    next(value for value in tensors.values() if value.is_floating_point())[0] += 0.1
    save_file(tensors, file, metadata)
    parts = {"autoencoder": "tiny", "text_encoder": "tiny", kind: str(file)}
    return Encoders(StartConfig(**parts), torch.device("cpu"))


def open_source(folder: Path, encoders, **data) -> PictureSource:
    config = config_of(folder, **data)
    return PictureSource(config, Samples(config.data, JODI_DOMAINS, BINS), encoders)


def change(folder: Path, line: int, **values) -> None:
    """Other values in a line of the metadata; None removes one."""
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    entry = json.loads(lines[line]) | values
    lines[line] = json.dumps({key: value for key, value in entry.items() if value is not None})
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- what is read -----------------------------------------------------------------------------------------------

def test_all_domains_are_read_and_encoded(folder, encoders):
    source = open_source(folder, encoders)
    item = source.item(3, draws())
    assert item.latents_CLHW.shape == (32, 8, 8, 8) and item.present_L.all() and "line 4" in item.name
    entry = json.loads((folder / "metadata.jsonl").read_text().splitlines()[3])
    normal = load_for_training("normal", folder / entry["annotation_normal"], (128, 128), "nearest")
    autoencoder = encoders.autoencoder
    expected = autoencoder.encode(normal[None])[0] * autoencoder.config.scaling_factor
    torch.testing.assert_close(item.latents_CLHW[:, 4], expected, atol=1e-3, rtol=1e-3)
    features, length = encoders.text.encode([entry["caption"]["toy"]])
    torch.testing.assert_close(item.text_MC, features[0, :int(length)], atol=1e-2, rtol=1e-2)


def test_absent_labels_and_nobody(folder, encoders):
    change(folder, 0, annotation_depth=None, annotation_openpose=None)
    present = open_source(folder, encoders).item(0, draws()).present_L
    assert dict(zip(JODI_DOMAINS, present.tolist())) == dict.fromkeys(JODI_DOMAINS, True) | {"depth": False}
    assert not open_source(folder, encoders, empty_pose=False).item(0, draws()).present_L[-1]


def test_sets_repeats_and_sizes(folder, encoders):
    change(folder, 1, info={"height": 300, "width": 500})
    sets = (SetConfig(path=str(folder), repeat=2), SetConfig(path=str(folder)))
    samples = Samples(DataConfig(sets=sets), JODI_DOMAINS, BINS)
    assert len(samples) == 27 and samples.target(1) == samples.target(10) == (96, 160)
    assert (samples.bins_N == samples.bins_N[1]).sum() == 3
    shutil.copy(folder / "metadata.jsonl", folder / "metadata.mine.jsonl")
    assert len(FolderSet(SetConfig(path=str(folder), split="mine"))) == 9


def test_captions_are_drawn_by_weight(folder):
    change(folder, 0, caption={"short": "a", "long": "b"})
    drawn = {}
    for name, weights in (("plain", {}), ("weighted", {"long": 3, "short": 1}), ("other", {"nobody": 1})):
        sample = FolderSet(SetConfig(path=str(folder), captions=weights)).sample(0, JODI_DOMAINS)
        drawn[name] = sum(sample.choose_caption(draws(seed)) == "b" for seed in range(400)) / 400
    assert drawn["plain"] == pytest.approx(0.5, abs=0.08) == drawn["other"]
    assert drawn["weighted"] == pytest.approx(0.75, abs=0.08)


def test_class_colours_stay_pure(folder):
    path = folder / json.loads((folder / "metadata.jsonl").read_text().splitlines()[0])["annotation_seg_12colors"]
    palette = {tuple(colour) for colour in PALETTE_12.tolist()}
    for way, pure in (("nearest", True), ("bicubic", False)):
        pixels = ((load_for_training("segmentation", path, (96, 160), way) + 1) * 127.5).round().flatten(1).T
        assert ({tuple(map(int, pixel)) for pixel in pixels.tolist()} <= palette) == pure


# ---- the cache --------------------------------------------------------------------------------------------------

def failing(*arguments):
    raise AssertionError("something was encoded again")


def test_everything_is_encoded_once(folder, encoders, monkeypatch):
    first = open_source(folder, encoders)
    assert fill(first, 0, 2) == (5, []) and fill(first, 1, 2) == (4, [])
    monkeypatch.setattr(PictureSource, "encode", failing)
    monkeypatch.setattr(PictureSource, "encode_caption", failing)
    again = open_source(folder, encoders)
    assert torch.equal(again.item(2, draws()).latents_CLHW, first.item(2, draws()).latents_CLHW)
    shutil.move(folder / "images", folder / "pictures")    # by content, whatever the place
    for line in range(9):
        entry = json.loads((folder / "metadata.jsonl").read_text().splitlines()[line])
        change(folder, line, image=entry["image"].replace("images", "pictures"))
    open_source(folder, encoders).item(2, draws())


@pytest.mark.parametrize("changed", ["picture", "size", "segmentation", "autoencoder", "text_encoder"])
def test_whatever_shapes_an_entry_makes_another(folder, encoders, monkeypatch, changed):
    open_source(folder, encoders).item(0, draws())
    data = {}
    if changed == "picture":
        path = folder / json.loads((folder / "metadata.jsonl").read_text().splitlines()[0])["image"]
        shutil.copy(folder / json.loads((folder / "metadata.jsonl").read_text().splitlines()[1])["image"], path)
    elif changed == "size":
        change(folder, 0, info={"height": 90, "width": 150})
    elif changed == "segmentation":
        data["segmentation"] = "bicubic"
    else:
        encoders = with_other_weights(changed, folder / "changed.safetensors")
    made = []
    for name in ("encode", "encode_caption"):
        monkeypatch.setattr(PictureSource, name, lambda self, *a, was=getattr(PictureSource, name): made.append(a) or
                            was(self, *a))
    open_source(folder, encoders, **data).item(0, draws())
    assert len(made) == {"picture": 1, "size": 8, "segmentation": 1, "autoencoder": 8, "text_encoder": 1}[changed]


def test_a_damaged_entry_is_made_anew(folder, encoders, capsys):
    source = open_source(folder, encoders)
    whole = source.item(0, draws()).latents_CLHW
    with source.store.own as own:
        own.execute("update entries set data = zeroblob(length(data))")
    assert torch.equal(open_source(folder, encoders).item(0, draws()).latents_CLHW, whole)
    assert "is damaged and is made anew" in capsys.readouterr().out


def test_without_a_cache_it_is_the_same(folder, encoders):
    kept, fresh = (open_source(folder, encoders, **data).item(4, draws()) for data in ({}, {"cache": ""}))
    assert torch.equal(kept.latents_CLHW, fresh.latents_CLHW) and torch.equal(kept.text_MC, fresh.text_MC)


def test_a_store_reads_what_all_processes_wrote(tmp_path):
    for rank in range(3):
        Store(tmp_path, rank).put({f"key{rank}": torch.full((2, 3), float(rank))})
    for rank in range(3):
        assert torch.equal(Store(tmp_path).get(f"key{rank}"), torch.full((2, 3), float(rank)).half())
    assert Store(tmp_path).get("other") is None and Store(tmp_path).has("key1")


# ---- what may be wrong ------------------------------------------------------------------------------------------

def spoil(folder: Path, line: int, fault: str) -> None:
    entry = json.loads((folder / "metadata.jsonl").read_text().splitlines()[line])
    if fault == "missing":
        (folder / entry["annotation_depth"]).unlink()
    elif fault == "truncated":
        path = folder / entry["image"]
        path.write_bytes(path.read_bytes()[:200])
    else:
        change(folder, line, caption=None)


@pytest.mark.parametrize("fault", ["missing", "truncated", "no caption"])
def test_a_bad_sample_is_named_and_another_taken(folder, encoders, fault, capsys):
    spoil(folder, 2, fault)
    item = open_source(folder, encoders).item(2, draws())
    told = capsys.readouterr().out
    assert "line 4" in item.name and "skipped: " in told and ("line 3" in told or ".png" in told)
    with pytest.raises((OSError, ValueError)):
        open_source(folder, encoders, on_error="stop").item(2, draws())


def test_the_cache_command_counts_them(folder, encoders):
    spoil(folder, 2, "truncated")
    samples, faults = fill(open_source(folder, encoders), 0, 1)
    assert samples == 9 and len(faults) == 1 and ".png" in faults[0]


@pytest.mark.parametrize("text, message", [
    ('{"image": "a.png", "info": {"height": 3}}', "line 1: no object with info.height"),
    ('{"image": "a.p', "cut short"),
    ('{"info": {"height": 0, "width": 4}}', "a picture of 4x0 pixels")])
def test_bad_metadata(tmp_path, text, message):
    (tmp_path / "metadata.jsonl").write_text(text + "\n")
    with pytest.raises(ValueError, match=message):
        FolderSet(SetConfig(path=str(tmp_path)))


def test_no_data_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="a data set is a folder with metadata.jsonl"):
        FolderSet(SetConfig(path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"name a data set in \[\[data.sets\]\]"):
        Samples(DataConfig(), JODI_DOMAINS, BINS)
    with pytest.raises(ValueError, match="set speed.workers = 0 instead of 2"):
        replace(config_of(tmp_path, cache=""), speed=SpeedConfig(workers=2))


# ---- the whole way ----------------------------------------------------------------------------------------------

def test_a_lora_from_a_folder_of_pictures(folder, tmp_path):
    """With a cache, with workers, and without a cache: the same steps; a resumed run goes on with them."""
    losses = {}
    for name, data, speed in (("cached", {}, {}), ("workers", {}, {"workers": 2}), ("online", {"cache": ""}, {})):
        config = replace(config_of(folder, **data), output=str(tmp_path / name))
        config = replace(config, speed=replace(config.speed, **speed))
        run.prepare(config, Processes())
        run.train(replace(config, steps=2), Processes())
        run.train(config, Processes())
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        losses[name] = {line["step"]: line["loss"] for line in lines}
    assert losses["cached"] == losses["workers"] == losses["online"] and set(losses["cached"]) == {1, 2, 3, 4}
    assert checkpoint.newest_valid(tmp_path / "cached")
    run.export(config, tmp_path / "lora.safetensors")
    assert (tmp_path / "lora.safetensors").stat().st_size > 10_000
