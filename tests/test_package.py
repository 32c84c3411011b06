"""What the registry would ship: small, complete, with an icon and a banner of the sizes that it wants."""

import re
import subprocess
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest
from PIL import Image

from scripts.comfy import PACK
from training.versions import OLDEST, require_torch

ROOT = Path(__file__).parent.parent
MOST = 60_000_000    # bytes


def listed(*options: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", *options], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return set(done.stdout.splitlines())


@pytest.fixture(scope="module")
def shipped() -> set[str]:
    return listed() - listed("--cached", "--ignored", "--exclude-from=.comfyignore")


def test_the_package_is_small_and_complete(shipped):
    assert sum((ROOT / name).stat().st_size for name in shipped if (ROOT / name).is_file()) < MOST
    for part in (*PACK, "LICENSE", "README.md", "CHANGELOG.md", "requirements.txt"):
        assert any(name == part or name.startswith(part + "/") for name in shipped), part
    rooms = {name.partition("/")[0] for name in shipped if "/" in name}
    assert not rooms & {"tests", "training", "benchmarks", "scripts", "docs", ".github", ".ci"}


@pytest.mark.parametrize("what, version, old", [
    ("the trainer", "2.7.1+cu126", True), ("the trainer", "1.13.1", True), ("the trainer", "2.8.0", False),
    ("speed.shard", "2.9.1+cu128", True), ("speed.shard", "2.10.0", False), ("speed.shard", "3.0.0a0+git1", False)])
def test_the_trainer_refuses_an_old_pytorch(what, version, old):
    with pytest.raises(ValueError, match=f"{what} needs PyTorch .* or newer, and this is") if old else nullcontext():
        require_torch(what, version)


def test_pip_knows_the_oldest_pytorch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"torch>={'.'.join(map(str, OLDEST['the trainer']))}" in project["optional-dependencies"]["train"]


def test_nothing_has_to_be_installed():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert all(not line.strip() or line.startswith("#") for line in lines)


def test_the_version_has_its_changes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert project["project"]["version"] == newest
    assert project["tool"]["comfy"]["requires-comfyui"] == ">=0.27.0"


def test_pictures_of_the_pack():
    icon, banner = (Image.open(ROOT / "docs" / "images" / f"{name}.png") for name in ("icon", "banner"))
    assert icon.size == (400, 400) and banner.width * 9 == banner.height * 21
