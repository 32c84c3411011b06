"""The oldest supported ComfyUI beside the one that all other tests run on: same nodes, same pictures."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from jodi_prompts import add_picture, joint_prompt, link, node, run
from PIL import Image

from scripts.comfy import Comfy

ROOT = Path(__file__).resolve().parents[2]
OLDER = Path(os.environ.get("OLDER_COMFYUI_DIR", ROOT / ".comfyui" / "older"))

pytestmark = pytest.mark.skipif(not (OLDER / "main.py").is_file() and not os.environ.get("CI"),
                                reason="no older ComfyUI here; in CI that is a failure")


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    with Comfy(OLDER, Path(sys.executable), tmp_path_factory.mktemp("older"), ROOT, "--cpu") as running:
        yield running


def test_it_is_an_older_one(older, comfy):
    versions = [server.get("/system_stats")["system"]["comfyui_version"] for server in (older, comfy)]
    assert versions[0].startswith("0.27.") and versions[1].startswith("0.30.")


def test_all_nodes_are_there(older, object_info):
    ours = {name for name in object_info if name.startswith("Jodi")}
    assert ours == {name for name in older.get("/object_info") if name.startswith("Jodi")}
    assert "IMPORT FAILED" not in older.log_text()


def tasks() -> dict[str, dict]:
    stock = joint_prompt({"image": "generate", "depth": "generate"}, steps=3)
    stock["sample"] = node("KSampler", model=link("load"), positive=link("roles"), negative=link("roles", 1),
                           latent_image=link("roles", 2), seed=1, steps=3, cfg=3.0, sampler_name="dpmpp_2m",
                           scheduler="simple", denoise=1.0)
    return {
        "joint": joint_prompt({"image": "generate", "depth": "generate", "normal": "generate"}, steps=3),
        "control": joint_prompt({"image": "generate", "depth": "picture"}, steps=3),
        "perception": joint_prompt({"image": "picture", "depth": "generate", "albedo": "generate"}, steps=3, cfg=1.0),
        "stock": stock}


@pytest.mark.parametrize("task", tasks())
def test_same_pictures(older, comfy, task):
    picture = Image.fromarray(np.tile(np.linspace(0, 255, 128, dtype=np.uint8)[:, None, None], (1, 128, 3)))
    results = []
    for server in (older, comfy):
        prompt = tasks()[task]
        if task in ("control", "perception"):
            add_picture(server, prompt, "picture", picture)
        results.append(run(server, prompt))
    for name, made in results[0].items():
        assert np.abs(made - results[1][name]).max() <= 2 / 255, name
