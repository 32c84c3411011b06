"""A small data set folder of toy scenes, and ways to change what is in it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jodi_core.models.jodi import JodiConfig
from training.config import DataConfig, SetConfig, StartConfig, TrainConfig
from training.world import write_dataset

BINS = {0.6: (48, 80), 1.0: (64, 64)}
SCENES = 6


@pytest.fixture(scope="module")
def toy_set(tmp_path_factory):
    """Toy scenes on disk; do not write into it."""
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(folder, SCENES, 0, 64)
    return folder


@pytest.fixture
def folder(toy_set, tmp_path):
    return Path(shutil.copytree(toy_set, tmp_path / "scenes"))


def config_of(*folders: Path, data: dict | None = None, **changes) -> TrainConfig:
    sets = tuple(SetConfig(path=str(folder)) for folder in folders)
    model = JodiConfig(hidden_size=32, depth=1, num_heads=2, model_max_length=60, bins=BINS)
    return TrainConfig(**{"start": StartConfig(kind="nothing"), "batch": 4, "model": model,
                          "data": DataConfig(**{"sets": sets} | (data or {}))} | changes)


def entry(folder: Path, line: int) -> dict:
    return json.loads((folder / "metadata.jsonl").read_text().splitlines()[line])


def file(folder: Path, line: int, domain: str) -> Path:
    names = {"image": "image", "segmentation": "annotation_seg_12colors"}
    return folder / entry(folder, line)[names.get(domain, f"annotation_{domain}")]


def change(folder: Path, line: int, **values) -> None:
    """Other values in a line of the metadata; None removes one."""
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    changed = json.loads(lines[line]) | values
    lines[line] = json.dumps({key: value for key, value in changed.items() if value is not None})
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * share)])


def paint(path: Path, pixels_HW3, **how) -> None:
    Image.fromarray(np.asarray(pixels_HW3)).save(path, "PNG", **how)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def problems(report) -> list[tuple[str, str, int | None, str]]:
    return [(problem.kind, problem.domain, problem.line, Path(problem.file).name) for problem in report.problems]
