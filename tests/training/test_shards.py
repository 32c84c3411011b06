"""The same samples as a folder, as tar shards, and as shards far away: same pictures, same run, named faults."""

import io
import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch.nn.functional import avg_pool2d

from jodi_core.domains import JODI_DOMAINS
from training import run, shards
from training.config import DataConfig, SetConfig, SpeedConfig
from training.pack import pack
from training.parallel import Processes
from training.pictures import PictureSource
from training.samples import Samples, load_for_training
from training.shard_index import Index, make_index
from training.shards import ShardSet, expand
from training.world import write_dataset

from toy_run import MODEL, FakeText, toy_config

pytestmark = [pytest.mark.filterwarnings("ignore:Mismatch dtype"),
              pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
SCENES, PER_SHARD, LAST = 11, 4, 3    # LAST: in the last shard
PATTERN = "shard-{000000..000002}.tar"
FAR = f"memory://bucket/{PATTERN}"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Folder with `scenes` and their `shards`; do not write into it."""
    root = tmp_path_factory.mktemp("packed")
    lines = write_dataset(root / "scenes", SCENES, 0, 32)
    entries = [json.loads(line) for line in lines.read_text().splitlines()]
    for number in (2, 5, 8):    # half as high for training
        entries[number] |= {"info": {"height": 16, "width": 32}}
    del entries[4]["annotation_edge"]
    entries[6]["caption"]["other"] = "two captions"
    lines.write_text("\n".join(map(json.dumps, entries)) + "\n")
    assert pack(str(root / "scenes"), root / "shards", per_shard=PER_SHARD) == 0
    return root


@pytest.fixture
def root(packed, tmp_path):
    return Path(shutil.copytree(packed, tmp_path / "root"))


@pytest.fixture
def bucket(packed):
    """The shards, without their indices, where only fsspec reads."""
    files = MemoryFileSystem()
    for shard in (packed / "shards").glob("*.tar"):
        files.pipe_file(f"/bucket/{shard.name}", shard.read_bytes())
    yield files
    files.rm("/bucket", recursive=True)


def open_shards(path, cache="", **data) -> ShardSet:
    return ShardSet(SetConfig(path=str(path)), DataConfig(cache=str(cache), **data))


def near(root: Path) -> str:
    return str(root / "shards" / PATTERN)


class Encoders(FakeText):
    """Stand for the encoders of a run: blocks of pixels, letters."""

    config = type("Config", (), {"scaling_factor": 1.0})

    @property
    def autoencoder(self):
        return self

    def parameters(self):
        yield torch.zeros(1)

    def encode(self, first):
        if isinstance(first, list):
            letters = torch.tensor([[ord(letter) / 99 for letter in first[0][:6]]])
            return letters[..., None].expand(1, -1, 8), torch.tensor([letters.shape[1]])
        return torch.cat([avg_pool2d(first, 8), avg_pool2d(first[:, :1], 8)], 1)

    def identity(self, kind, digest):
        return kind


def settings(path: str, output: Path, **data):
    where = {"cache": str(output / "cache")} if "://" in path else {}
    return replace(toy_config(output), data=DataConfig(sets=(SetConfig(path=path),), **where | data), in_turn=False)


# ---- the same samples -------------------------------------------------------------------------------------------

def test_the_same_items_and_the_same_run(packed, root, tmp_path, bucket, monkeypatch):
    """From a folder, near shards and far ones; with workers, and resumed."""
    monkeypatch.setattr(run, "Encoders", Encoders)
    ways = {"folder": (str(root / "scenes"), {}, 0), "near": (near(root), {}, 0), "far": (FAR, {}, 0),
            "workers": (FAR, {"cache": str(tmp_path / "workers" / "cache")}, 2)}
    losses, items = {}, {}
    for name, (path, data, workers) in ways.items():
        config = replace(settings(path, tmp_path / name, **data), speed=SpeedConfig(
            device="cpu", precision="float32", workers=workers))
        source = PictureSource(config, Samples(config.data, MODEL.domains, MODEL.bins), Encoders())
        items[name] = [source.item(index, torch.Generator().manual_seed(index)) for index in range(SCENES)]
        if name == "workers":
            run.train(replace(config, steps=3), Processes())
        run.train(config, Processes())
        log = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        losses[name] = [(line["step"], line["loss"]) for line in log if "loss" in line]
    assert len(losses["folder"]) == 6 and all(found == losses["folder"] for found in losses.values())
    for found in items.values():
        for one, other in zip(found, items["folder"]):
            assert torch.equal(one.latents_CLHW, other.latents_CLHW) and torch.equal(one.text_MC, other.text_MC)
            assert torch.equal(one.present_L, other.present_L)
    assert items["folder"][2].latents_CLHW.shape[-2:] == (2, 4) and not items["far"][4].present_L.all()
    assert items["near"][6].name.endswith("shard-000001.tar, sample 00000007")


def test_a_cache_of_the_folder_serves_the_shards(packed, tmp_path, bucket, monkeypatch):
    """Known by content; nothing but indices is read from far then."""
    def latents(path):
        config = settings(path, tmp_path, cache=str(tmp_path / "cache"))
        source = PictureSource(config, Samples(config.data, MODEL.domains, MODEL.bins), Encoders())
        return [source.item(index, torch.Generator().manual_seed(0)).latents_CLHW for index in range(SCENES)]
    made = latents(str(packed / "scenes"))
    monkeypatch.setattr(shards, "read_range", None)
    monkeypatch.setattr(Encoders, "encode", None)
    assert all(map(torch.equal, latents(FAR), made))


def test_sizes_names_and_labels(packed):
    found = open_shards(near(packed))
    assert len(found) == SCENES and found.sizes[2] == (16, 32) and found.sizes[3] == (32, 32)
    sample = found.sample(4, JODI_DOMAINS)
    assert sample.name.endswith("shard-000001.tar, sample 00000005")
    assert set(sample.pictures) == set(JODI_DOMAINS) - {"edge"}
    entry = json.loads((packed / "scenes" / "metadata.jsonl").read_text().splitlines()[4])
    assert sample.captions == entry["caption"]
    for domain, field in (("image", "image"), ("segmentation", "annotation_seg_12colors")):
        assert sample.pictures[domain].read_bytes() == (packed / "scenes" / entry[field]).read_bytes()


def test_patterns():
    assert expand("a/s-{008..010}.tar") == ["a/s-008.tar", "a/s-009.tar", "a/s-010.tar"]
    assert expand("s3://b/{0..1}-{2..3}.tar") == [f"s3://b/{i}-{k}.tar" for i in (0, 1) for k in (2, 3)]
    with pytest.raises(ValueError, match="no number lies in"):
        expand("s-{3..2}.tar")


# ---- indices ----------------------------------------------------------------------------------------------------

def test_an_index_is_made_once(root, capsys, monkeypatch):
    for index in (root / "shards").glob("*.index"):
        index.rename(index.with_suffix(".packed"))
    open_shards(near(root))
    assert capsys.readouterr().out.count("indexing") == 3
    for packed_index in (root / "shards").glob("*.packed"):
        made, known = (path.read_text().splitlines() for path in (packed_index.with_suffix(".index"), packed_index))
        assert made[1:] == known[1:], "as pack made it"
    monkeypatch.setattr(shards, "make_index", None)
    assert len(open_shards(near(root))) == SCENES


@pytest.mark.parametrize("change", ["other shard", "touched", "index cut", "index of another kind"])
def test_an_index_that_does_not_fit_is_made_anew(root, change, capsys):
    shard = root / "shards" / "shard-000000.tar"
    index = Path(f"{shard}.index")
    if change == "other shard":
        shutil.copy(root / "shards" / "shard-000002.tar", shard)
    elif change == "touched":
        os.utime(shard, ns=(index.stat().st_mtime_ns + 1,) * 2)
    elif change == "index cut":
        index.write_bytes(index.read_bytes()[:-300])
    else:
        index.write_text("[]\n")
    found = open_shards(near(root))
    assert capsys.readouterr().out == f"indexing {shard}\n"
    assert len(found) == SCENES - (change == "other shard")
    assert found.sample(0, JODI_DOMAINS).pictures["image"].read_bytes()[1:4] == b"PNG"
    open_shards(near(root))
    assert capsys.readouterr().out == ""


def test_far_indices_are_kept_and_fetched(packed, tmp_path, bucket, capsys, monkeypatch):
    assert len(open_shards(FAR, tmp_path)) == SCENES
    assert capsys.readouterr().out.count("indexing") == 3
    open_shards(FAR, tmp_path)
    assert capsys.readouterr().out == ""
    for name in ("shard-000000.tar.index", "shard-000001.tar.index"):    # uploaded with the shards
        bucket.pipe_file(f"/bucket/{name}", (packed / "shards" / name).read_bytes())
    bucket.pipe_file("/bucket/shard-000001.tar", (packed / "shards" / "shard-000002.tar").read_bytes())
    assert len(open_shards(FAR, tmp_path / "new")) == PER_SHARD + 2 * LAST
    told = capsys.readouterr().out
    assert told.count("indexing") == 2 and "shard-000000" not in told, "the second upload is of another shard"
    bucket.pipe_file("/bucket/shard-000000.tar", (packed / "shards" / "shard-000002.tar").read_bytes())
    assert len(open_shards(FAR, tmp_path)) == 3 * LAST, "replaced: known by size and time"


def test_a_folder_that_cannot_be_written(root, tmp_path, monkeypatch):
    def refuse(path, content, write=shards.write_whole):
        if path.parent.name == "shards" and path.parent.parent == root:
            raise PermissionError(f"{path}: read-only")
        write(path, content)
    monkeypatch.setattr(shards, "write_whole", refuse)
    for index in (root / "shards").glob("*.index"):
        index.unlink()
    with pytest.raises(OSError, match="read-only.*name a data.cache folder"):
        open_shards(near(root))
    assert len(open_shards(near(root), tmp_path / "cache")) == SCENES
    monkeypatch.setattr(shards, "make_index", None)
    assert len(open_shards(near(root), tmp_path / "cache")) == SCENES


def test_remote_sets_need_a_cache():
    with pytest.raises(ValueError, match="s3://b/a.tar is remote, so an index of it has to be kept: name a folder"):
        DataConfig(sets=(SetConfig(path="s3://b/a.tar"),))
    with pytest.raises(ValueError, match="split is of folders"):
        SetConfig(path="a.tar", split="train")


# ---- what may be wrong ------------------------------------------------------------------------------------------

def test_a_shard_that_was_cut_short(root, tmp_path, capsys):
    shard = root / "shards" / "shard-000001.tar"
    third = Index.read(Path(f"{shard}.index")).sample(2)["files"]["annotation_depth"][0]
    os.truncate(shard, third + 5)
    with pytest.raises(ValueError, match="shard-000001.tar is damaged or cut short in or after sample 00000007"):
        open_shards(near(root), on_error="stop")
    found = open_shards(near(root))
    assert len(found) == SCENES - 2
    told = capsys.readouterr().out
    assert "sample 00000007" in told and "only its first 2 samples are used" in told
    assert found.sample(PER_SHARD + 2, JODI_DOMAINS).name.endswith("shard-000002.tar, sample 00000009")


@pytest.mark.parametrize("size, samples", [(0, 0), (700, 0), (-10240, None)])
def test_every_cut_is_told(packed, size, samples):
    content = (packed / "shards" / "shard-000000.tar").read_bytes()
    about, *lines = map(json.loads, make_index(io.BytesIO(content[:size]), "some.tar").splitlines())
    assert "some.tar is damaged or cut short" in about["fault"] and about["samples"] == len(lines) < PER_SHARD
    assert samples is None or len(lines) == samples


def test_a_damaged_header_does_not_pass_for_the_end(packed):
    content = bytearray((packed / "shards" / "shard-000000.tar").read_bytes())
    name = content.index(b"00000003.json")
    content[name + 3] ^= 1
    about, *lines = map(json.loads, make_index(io.BytesIO(content), "some.tar").splitlines())
    assert "in or after sample 00000002" in about["fault"] and [line["key"] for line in lines] == ["00000001"]


@pytest.mark.parametrize("fault", ["flipped", "gone", "shorter"])
def test_a_damaged_picture_is_named_and_another_taken(root, tmp_path, bucket, fault, capsys):
    source = PictureSource(settings(near(root), tmp_path), Samples(
        DataConfig(sets=(SetConfig(path=near(root)),)), MODEL.domains, MODEL.bins), Encoders())
    shard = root / "shards" / "shard-000000.tar"
    start, size, _ = Index.read(Path(f"{shard}.index")).sample(3)["files"]["annotation_depth"]
    if fault == "gone":
        shard.unlink()
    else:
        content = bytearray(shard.read_bytes())
        content[start + size // 2] ^= 4
        shard.write_bytes(content if fault == "flipped" else content[:start + 9])
    item = source.item(3, torch.Generator())
    told = capsys.readouterr().out
    assert "shard-000000.tar, sample 00000004" in told and item.name.endswith("shard-000001.tar, sample 00000005")
    assert {"flipped": "depth: damaged", "gone": "No such file", "shorter": "9 bytes in place of"}[fault] in told


def member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("files, message", [
    (["a.image.png"], "sample a: it has no a.json"),
    (["a.json", "b.json", "a.image.png"], "do not lie one after the other"),
    (["a.json", "a.image.png", "a.image.jpg"], "sample a: it has more than one image"),
    (["a.json", "a.image.png", "b.json"], None),
    (["./x/a.json", "./x/a.image.png", "README", "a/.hidden", "c.json"], None)])
def test_shards_of_others(tmp_path, files, message):
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        for name in files:
            member(tar, name, b'{"info": {"height": 3, "width": 4}}' if name.endswith("json") else b"pixels")
    if message:
        with pytest.raises(ValueError, match=message):
            open_shards(tmp_path / "other.tar")
    else:
        found = open_shards(tmp_path / "other.tar")
        assert len(found) == 2 and found.sizes == [(3, 4)] * 2
        assert found.sample(0, JODI_DOMAINS).pictures["image"].read_bytes() == b"pixels"


def test_a_network_that_fails_now_and_then(packed, tmp_path, bucket, monkeypatch):
    """Tried again; after a while it is an error with the address."""
    waits, calls = [], []
    monkeypatch.setattr(shards.time, "sleep", waits.append)
    sample = open_shards(FAR, tmp_path).sample(0, JODI_DOMAINS)

    def flaky(self, path, start=None, end=None, read=MemoryFileSystem.cat_file, **options):
        calls.append(path)
        if len(calls) % 3:
            raise RuntimeError("connection reset")
        return read(self, path, start, end, **options)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", flaky)
    picture = load_for_training("image", sample.pictures["image"], (32, 32), "nearest")
    assert picture.shape == (3, 32, 32) and waits == [1, 2]
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *a, **k: 1 / 0)
    with pytest.raises(OSError, match="shard-000000.tar, sample 00000001, image: memory://bucket/.*ZeroDivision"):
        sample.pictures["image"].read_bytes()
    with pytest.raises(FileNotFoundError, match="other"):
        open_shards("memory://bucket/other.tar", tmp_path)
