"""A LoRA that the trainer made of drawings (docs/training.md), loaded by the stock node: the picture changes its style,
the scene stays."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from jodi_prompts import joint_prompt, link, node, run

INK = Path(__file__).parent / "data" / "jodi_ink.safetensors"
TEXT = "a red house on the left, a person in a blue shirt in the middle, on green grass, a clear blue sky"


def colour(picture: np.ndarray) -> float:
    """Mean difference of a pixel's channels, 0..1."""
    return float((picture.max(-1) - picture.min(-1)).mean())


@pytest.fixture(scope="module")
def made(server):
    """Strength -> pictures by domain."""
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(INK, folder / INK.name)
    pictures = {}
    for strength in (0.0, 0.5, 1.0):
        prompt = joint_prompt(dict.fromkeys(("image", "depth", "lineart"), "generate"), text=TEXT, steps=8, seed=3)
        prompt["lora"] = node("LoraLoaderModelOnly", model=link("load"), lora_name=INK.name, strength_model=strength)
        prompt["sample"]["inputs"]["model"] = link("lora")
        pictures[strength] = run(server, prompt)
    return pictures


def test_the_style_is_that_of_the_drawings(comfy, made):
    plain, half, full = (colour(made[strength]["image"]) for strength in (0.0, 0.5, 1.0))
    assert full < half < plain and full < 0.4 * plain
    assert made[1.0]["image"].mean() > 0.6, "paper"


def test_the_scene_is_the_same(comfy, made):
    depth = [made[strength]["depth"][..., 0].ravel() for strength in (0.0, 1.0)]
    assert np.corrcoef(*depth)[0, 1] > 0.9
