"""One real ComfyUI per test session, with this pack installed in it."""

import json
import os
import sys
from pathlib import Path

import pytest
from dual_diffusion_files import write_whole_folder

from scripts.comfy import Comfy
from scripts.workflow import to_prompt

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_DIR", ROOT / ".comfyui" / "ComfyUI"))


@pytest.fixture(scope="session")
def comfyui() -> Path:
    if not (COMFYUI / "main.py").is_file():
        raise FileNotFoundError(f"no ComfyUI in {COMFYUI}: `python run.py test` sets one up, or set COMFYUI_DIR")
    return COMFYUI


@pytest.fixture(scope="session")
def server(comfyui, tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    write_whole_folder(base / "models" / "diffusers" / "dual_diff_sd3_512_sft")    # small and random, in place of it
    with Comfy(comfyui, Path(sys.executable), base, ROOT, "--cpu") as running:
        yield running


@pytest.fixture
def comfy(server):
    """The server, which must survive whatever the test does to it."""
    yield server
    assert server.alive(), server.log_text()[-2000:]


@pytest.fixture(scope="session")
def object_info(server):
    return server.get("/object_info")


@pytest.fixture
def prompt(object_info):
    """prompt("joint_generation"): a fresh server-format prompt of a shipped workflow."""
    def of(name: str) -> dict:
        return to_prompt(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")), object_info)
    return of
