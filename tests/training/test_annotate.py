"""annotate: pictures become a data set, whatever is there already and whatever is killed; alone and on Ray."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jodi_core.domains import JODI_DOMAINS
from jodi_core.fitting import cover_size
from jodi_core.pictures import read_picture
from training import checkpoint, cli, run
from training.config import (AdapterConfig, DataConfig, OptimConfig, SaveConfig, SetConfig, SpeedConfig, StartConfig,
                             TrainConfig)
from training.parallel import Processes
from training.picture_folder import upright_size
from training.samples import Samples, load_for_training
from training.scene import sample_scene
from training.world import render, write_dataset

pytestmark = [pytest.mark.usefixtures("one_thread"),
              pytest.mark.filterwarnings("ignore:Mismatch dtype"),
              pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]
ROOT = Path(__file__).resolve().parents[2]
BINS = {0.6: (96, 160), 1.0: (128, 128), 1.67: (160, 96)}
PICTURES = {"b.png": (128, 128), "a.jpg": (128, 128), "more/c.png": (160, 200), "wide.png": (100, 150),
            "d.png": (128, 128)}    # (height, width)
SETTINGS = ("--model", "tiny", "--domains", "normal,depth", "--steps", "2", "--batch", "2", "--device", "cpu")


def annotate(folder: Path, *options: str) -> int:
    return cli.main(["annotate", str(folder), *SETTINGS, *options])


def scene(seed: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    return {name: value[0].permute(1, 2, 0).numpy() for name, value in render([sample_scene(seed)], *size).items()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Pictures alone; do not write into it."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for seed, (name, size) in enumerate(PICTURES.items()):
        Image.fromarray(scene(seed, size)["image"]).save(folder / name, quality=95)
    (folder / "a.txt").write_text("\ufeffa house,\n  and a tree\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def labelled(pictures, tmp_path_factory) -> Path:
    """The same with labels; do not write into it."""
    folder = Path(shutil.copytree(pictures, tmp_path_factory.mktemp("labelled") / "set"))
    assert annotate(folder, "--caption", "a toy") == 0
    return folder


@pytest.fixture
def folder(pictures, tmp_path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "set"))


def program(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def entries(folder: Path) -> dict[str, dict]:
    return {entry["image"]: entry for entry in map(json.loads, (folder / "metadata.jsonl").read_text().splitlines())}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- a data set -------------------------------------------------------------------------------------------------

def test_pictures_become_a_data_set(labelled):
    found = entries(labelled)
    assert list(found) == sorted(PICTURES)
    assert found["more/c.png"] == {
        "image": "more/c.png", "info": {"height": 160, "width": 200}, "caption": {"all": "a toy"},
        "annotation_depth": "annotation_depth/more/c.png", "annotation_normal": "annotation_normal/more/c.png"}
    assert found["a.jpg"]["caption"] == {"txt": "a house, and a tree"}
    assert Image.open(labelled / "annotation_depth/b.png").mode == "L"


def test_labels_line_up_with_their_pictures_in_training(labelled):
    samples = Samples(DataConfig(sets=(SetConfig(path=str(labelled)),)), JODI_DOMAINS, BINS)
    for index in range(len(samples)):
        sample, target = samples.sample(index), samples.target(index)
        label = read_picture(sample.pictures["normal"])
        assert (label.height, label.width) == cover_size(sample.size, target)
        taken = load_for_training("normal", sample.pictures["normal"], target, "nearest")
        top, left = (round((have - want) / 2) for have, want in zip((label.height, label.width), target))
        cut = np.asarray(label)[top:top + target[0], left:left + target[1]]
        assert np.array_equal(((taken + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), cut), "not resampled"


def test_labels_are_those_of_the_whole_picture(tmp_path):
    """Against the truth of the toy world, with things at both borders of pictures between two bins."""
    sizes, errors = ((112, 150), (150, 112)), []
    for seed in range(4):
        Image.fromarray(scene(seed, sizes[seed % 2])["image"]).save(tmp_path / f"{seed}.png")
    assert annotate(tmp_path, "--steps", "10", "--batch", "4") == 0
    for seed in range(4):
        label = Image.open(tmp_path / f"annotation_depth/{seed}.png")
        truth = Image.fromarray(scene(seed, sizes[seed % 2])["depth"][..., 0])
        errors.append(np.abs(np.asarray(label, float) - np.asarray(truth.resize(label.size), float)).mean() / 255)
    assert max(errors) < 0.05, errors


def test_a_lora_is_trained_on_it(labelled, tmp_path):
    config = TrainConfig(
        output=str(tmp_path), steps=1, batch=2, micro_batch=2, mode="lora", adapter=AdapterConfig(rank=2, alpha=2.0),
        start=StartConfig(weights="tiny", autoencoder="tiny", text_encoder="tiny"), optim=OptimConfig(warmup=1),
        data=DataConfig(sets=(SetConfig(path=str(labelled)),), on_error="stop"), save=SaveConfig(every=1),
        speed=SpeedConfig(device="cpu", precision="float32"))
    run.train(config, Processes())
    assert checkpoint.newest_valid(tmp_path)


# ---- what is there stays ----------------------------------------------------------------------------------------

def test_only_what_is_missing_is_made(tmp_path):
    write_dataset(tmp_path, 3, 0, 128)
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    del lines[0]["annotation_depth"]
    lines[0]["mine"] = [1, "ü"]
    (tmp_path / lines[2]["annotation_normal"]).unlink()
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    before = files(tmp_path)
    assert annotate(tmp_path) == 0
    after = files(tmp_path)
    added = {"annotation_depth/images/00000000.png", "annotation_normal/images/00000002.png"}
    assert set(after) - set(before) == added
    assert {name for name in before if after[name] != before[name]} == {"metadata.jsonl"}
    found = list(entries(tmp_path).values())
    assert found[0] == lines[0] | {"annotation_depth": "annotation_depth/images/00000000.png"}
    assert found[1] == lines[1]
    assert found[2] == lines[2] | {"annotation_normal": "annotation_normal/images/00000002.png"}


def test_made_labels_are_not_made_again_unless_asked(labelled, tmp_path):
    folder = Path(shutil.copytree(labelled, tmp_path / "set"))
    (folder / "annotation_depth/b.png").write_bytes(b"mine")
    before = files(folder)
    assert annotate(folder) == 0 and files(folder) == before
    assert annotate(folder, "--overwrite") == 0 and files(folder) == files(labelled)


def test_a_split_gains_no_pictures_and_other_lists_lend_none(folder):
    (folder / "metadata.train.jsonl").write_text('{"image": "b.png"}\n')
    (folder / "metadata.test.jsonl").write_text('{"image": "d.png"}\n')
    assert annotate(folder, "--split", "train") == 0
    line = json.loads((folder / "metadata.train.jsonl").read_text())
    assert line["info"] == {"height": 128, "width": 128} and line["annotation_depth"] == "annotation_depth/b.png"
    assert annotate(folder, "--steps", "1") == 0
    assert set(entries(folder)) == set(PICTURES) - {"b.png", "d.png"}


# ---- killed, in other batches, on other machines ------------------------------------------------------------------

KILLED = """
import os, sys, torch
torch.set_num_threads(1)
from PIL import Image
from training import annotate, annotator, cli
annotator.THREADS = 1
annotate.WRITE_EVERY = annotate.SAY_EVERY = 0
save, count = Image.Image.save, iter(range(100))
def die(picture, path, **options):
    if next(count) == 5:
        path.write_bytes(b"half a pict")
        os._exit(9)
    save(picture, path, **options)
Image.Image.save = die
cli.main(sys.argv[1:])
"""


def test_killed_in_the_middle_and_run_again_is_as_if_never_killed(folder, labelled):
    done = program("-c", KILLED, "annotate", str(folder), *SETTINGS, "--caption", "a toy")
    assert done.returncode == 9, done.stderr
    made = [name for name in files(folder) if name.startswith("annotation_")]
    assert len(made) == 6 and any(name.endswith(".part") for name in made)
    assert 0 < len(entries(folder)) < len(PICTURES)
    assert annotate(folder, "--caption", "a toy") == 0
    assert files(folder) == files(labelled)


def test_batches_of_another_size_round_otherwise_at_most(folder, labelled):
    assert annotate(folder, "--batch", "3") == 0
    for name in files(labelled):
        if name.startswith("annotation_"):
            one, other = (np.asarray(Image.open(path / name), int) for path in (folder, labelled))
            assert np.abs(one - other).max() <= 1 and (one != other).mean() < 1e-3


def test_on_ray_with_two_workers_the_files_are_the_same(folder, labelled):
    done = program("-m", "training", "annotate", str(folder), *SETTINGS, "--caption", "a toy", "--ray",
                   "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert files(folder) == files(labelled)


# ---- what may be wrong --------------------------------------------------------------------------------------------

class Captions:
    """In place of the pipeline of Dual Diffusion."""

    asked = []

    @classmethod
    def from_pretrained(cls, model, device):
        return cls()

    def caption(self, picture, seed):
        self.asked.append((picture.name, seed))
        return [f"about {picture.stem}"]


def test_captions_that_lack_are_written_by_a_model(folder, monkeypatch, capsys):
    monkeypatch.setattr("training.captioner.DualDiffusionPipeline", Captions)
    for _ in range(2):    # the second time there is nothing to do
        assert annotate(folder, "--captioner", "some/folder", "--seed", "3") == 0
    assert sorted(Captions.asked) == [(name, 3) for name in ("b.png", "c.png", "d.png", "wide.png")]
    captions = {name: entry["caption"]["txt"] for name, entry in entries(folder).items()}
    assert captions["more/c.png"] == "about c" and captions["a.jpg"] == "a house, and a tree" and len(captions) == 5
    assert (folder / "wide.txt").read_text() == "about wide\n"
    told = capsys.readouterr().out
    assert "4 captions written by some/folder" in told and "no caption" not in told


def test_pictures_that_cannot_be_used_are_named_and_left_out(tmp_path, capsys):
    good = Image.fromarray(scene(0, (128, 128))["image"])
    for name in ("good.png", "cut.jpg", "twice.jpg", "twice.png"):
        good.save(tmp_path / name)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:1500])
    (tmp_path / "none.png").write_bytes(b"no picture")
    Image.new("L", (40_000, 2)).save(tmp_path / "long.png")
    (tmp_path / "good.txt").write_bytes(b"")
    assert annotate(tmp_path) == 1
    told = capsys.readouterr().out
    for name, message in (("cut.jpg", "cannot read a picture"), ("none.png", "cannot identify"),
                          ("long.png", "too elongated"), ("twice.png", "would be that of twice.jpg: rename")):
        assert [line for line in told.splitlines() if line.startswith("skipped: ") and name in line and message in line]
    assert "4 pictures could not be used" in told and "2 pictures have no caption" in told
    assert set(entries(tmp_path)) == {"good.png", "twice.jpg"}


@pytest.mark.parametrize("options, metadata, message", [
    (["--domains", "depht"], "", "the model makes no label depht of a picture; it makes lineart, edge"),
    (["--domains", "image"], "", "the model makes no label image"),
    (["--workers", "2"], "", "add --ray"), (["--batch", "0"], "", "must be at least 1"),
    (["--split", "train"], "", "metadata.train.jsonl: there is no such file"),
    (["--model", "nowhere.safetensors"], "", "no such file"),
    ([], '{"image": "a.png"}\n{"image": "b.p', "line 2: no object with the path of an image"),
])
def test_bad_input(tmp_path, capsys, options, metadata, message):
    if metadata:
        (tmp_path / "metadata.jsonl").write_text(metadata)
    assert annotate(tmp_path, *options) == 2
    assert message in capsys.readouterr().err
    assert set(files(tmp_path)) == ({"metadata.jsonl"} if metadata else set())


def test_paths_out_of_the_folder_are_refused(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "set/metadata.jsonl").write_text('{"image": "../x.png"}\n')
    assert annotate(tmp_path / "set") == 1
    assert "leads out of the data set's folder" in capsys.readouterr().out
    assert set(files(tmp_path)) == {"x.png", "set/metadata.jsonl"}


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_pictures_that_say_which_way_is_up(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.new("RGB", (60, 40)).save(tmp_path / "x.jpg", exif=exif)
    seen = read_picture(tmp_path / "x.jpg")
    assert upright_size(tmp_path / "x.jpg") == (seen.height, seen.width) == ((60, 40) if orientation == 6 else (40, 60))
