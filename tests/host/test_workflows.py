"""The shipped workflows, run by the real server: what comes out is a picture and seven labels, not just files."""

import time

import numpy as np
import pytest
from jodi_prompts import LABELS, as_array, joint_prompt, run

from jodi_core.domains import JODI_DOMAINS

EVERYTHING = dict.fromkeys(JODI_DOMAINS, "generate")


def with_seed(prompt: dict, seed: int) -> dict:
    for node in prompt.values():
        if node["class_type"] in ("JodiJointSampler", "KSampler"):
            node["inputs"]["seed"] = seed
    return prompt


@pytest.fixture(scope="module")
def joint(server):
    """One joint generation: domain -> (1, H, W, 3)."""
    return run(server, joint_prompt(EVERYTHING, steps=8))


@pytest.mark.parametrize("name", ["joint_generation", "controllable_generation", "image_perception"])
def test_shipped_workflow(comfy, prompt, name):
    first, other = (run(comfy, with_seed(prompt(name), seed)) for seed in (1, 2))
    assert first, "no picture was saved"
    for node, picture in first.items():
        title = prompt(name)[node]["inputs"]["filename_prefix"]
        # Black is a right answer for the pose of a scene without a person.
        assert picture.std() > 0.02 or title.endswith("openpose"), f"{title} is flat"
    assert any(not np.array_equal(first[node], other[node]) for node in first)


def test_seed_decides(comfy):
    first, other = (run(comfy, joint_prompt({"image": "generate"}, seed=seed))["image"] for seed in (5, 6))
    comfy.post("/free", {"free_memory": True, "unload_models": True})
    time.sleep(1)  # the host forgets its cached results when it gets round to it
    entry = comfy.wait(comfy.queue(joint_prompt({"image": "generate"}, seed=5)))
    assert dict(entry["status"]["messages"])["execution_cached"]["nodes"] == []
    again = as_array(comfy.pictures(entry["outputs"])["image"][0])
    assert np.array_equal(first[0], again)
    assert np.abs(first - other).mean() > 0.01


def test_sizes(comfy, joint):
    assert {picture.shape for picture in joint.values()} == {(1, 128, 128, 3)}
    wide = run(comfy, joint_prompt({"image": "generate", "depth": "generate"}, size=(160, 96), batch=2))
    assert {picture.shape for picture in wide.values()} == {(2, 96, 160, 3)}
    assert np.abs(wide["image"][0] - wide["image"][1]).mean() > 0.01


def test_labels_differ_from_one_another(joint):
    assert set(joint) == set(JODI_DOMAINS)
    for i, one in enumerate(JODI_DOMAINS):
        for other in JODI_DOMAINS[i + 1:]:
            # The closest pair, line art and edges of a rendered scene, differs by 0.006 to 0.04.
            assert np.abs(joint[one] - joint[other]).mean() > 0.005, (one, other)


def test_labels_are_what_their_names_say(joint):
    for name in ("lineart", "edge", "depth"):
        assert np.ptp(joint[name], axis=-1).max() == 0, f"{name} is not grey"
    assert joint["depth"].min() == 0 and joint["depth"].max() == 1
    lengths = np.linalg.norm(joint["normal"] * 2 - 1, axis=-1)
    assert np.abs(lengths - 1).max() < 0.02
    assert len(np.unique((joint["segmentation"] * 255).round().reshape(-1, 3), axis=0)) <= 12
    assert joint["image"].std() > 0.05


def test_stock_sampler_runs_the_joint_latent(comfy):
    prompt = joint_prompt(dict.fromkeys(("image", *LABELS[:3]), "generate"), steps=4)
    inputs = prompt["sample"]["inputs"]
    prompt["sample"] = {"class_type": "KSampler", "inputs": inputs | {
        "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}}
    assert all(picture.shape == (1, 128, 128, 3) for picture in run(comfy, prompt).values())
