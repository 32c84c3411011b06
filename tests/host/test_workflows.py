"""The shipped workflows, run by the real server: what comes out is a picture and seven labels, not just files."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from jodi_prompts import LABELS, as_array, joint_prompt, link, node, run
from safetensors.torch import save_file
from stock import difference, latents

from jodi_core.domains import JODI_DOMAINS
from scripts.workflow import to_prompt

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))

EVERYTHING = dict.fromkeys(JODI_DOMAINS, "generate")


def with_seed(prompt: dict, seed: int) -> dict:
    for part in prompt.values():
        if part["class_type"] in ("JodiJointSampler", "KSampler"):
            part["inputs"]["seed"] = seed
    return prompt


@pytest.fixture(scope="module")
def joint(server):
    """One joint generation: domain -> (1, H, W, 3)."""
    return run(server, joint_prompt(EVERYTHING, steps=8))


def saved_pictures(server, prompt: dict) -> dict[str, np.ndarray]:
    """Title -> pictures (B, H, W, 3) of every Save Image node of a workflow; the title is the end of its file names."""
    nodes = {node: part["inputs"]["filename_prefix"].rpartition("/")[2] for node, part in prompt.items()
             if part["class_type"] == "SaveImage"}
    outputs = server.run(prompt)
    files = server.pictures({node: outputs[node] for node in nodes})
    return {nodes[node]: np.stack([as_array(png) for png in pngs]) for node, pngs in files.items()}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_shipped_workflow(comfy, prompt, name):
    pictures = saved_pictures(comfy, prompt(name))
    assert pictures, "no picture was saved"
    for title, picture in pictures.items():
        # Black is a right answer for the pose of a scene without a person.
        assert picture.std() > 0.02 or title.endswith("openpose"), f"{title} is flat"


@pytest.mark.parametrize("name", ["joint_generation", "controllable_generation", "image_perception"])
def test_another_seed_gives_other_pictures(comfy, prompt, name):
    first, other = (saved_pictures(comfy, with_seed(prompt(name), seed)) for seed in (1, 2))
    assert any(not np.array_equal(first[title], other[title]) for title in first)


def nodes_of(prompt: dict, kind: str) -> list[str]:
    """Ids of the nodes of a type, in the order in which the workflow has them."""
    return sorted((node for node, part in prompt.items() if part["class_type"] == kind), key=int)


def test_edits_stay_inside_their_masks(comfy, prompt):
    edit = prompt("edit_two_domains")
    before, after = latents(comfy, edit, *nodes_of(edit, "JodiJointSampler"))
    changed = (before - after).abs().amax(dim=1)[0] > 1e-3    # image, depth: 8 x 8 cells of 16 pixels
    assert changed[0, 1:, :5].all() and not changed[0, :1].any() and not changed[0, :, 5:].any()
    assert changed[1, 2:, :4].all() and not changed[1, :1].any() and not changed[1, :, 5:].any()


@pytest.mark.parametrize("name, first_has, given", [
    ("several_conditions", ("image", "edge", "depth", "normal"), ("edge", "depth", "normal")),
    ("relight_restyle", ("image", "depth", "albedo"), ("depth",))])
def test_given_labels_stay(comfy, prompt, name, first_has, given):
    workflow = prompt(name)
    first, *_, last = latents(comfy, workflow, *nodes_of(workflow, "JodiJointSampler"))
    for place, label in enumerate(given, 1):
        assert difference(last[:, :, place], first[:, :, first_has.index(label)]) < 1e-5
    assert difference(last[:, :, 0], first[:, :, 0]) > 0.1


def test_inpainting_leaves_the_other_pixels(comfy, prompt):
    workflow = prompt("segmentation_inpainting")
    grow, = nodes_of(workflow, "GrowMask")
    decode, = nodes_of(workflow, "JodiLabelDecode")
    workflow |= {"900": node("MaskToImage", mask=link(grow)),
                 "901": node("SaveImage", images=link("900"), filename_prefix="mask"),
                 "902": node("SaveImage", images=link(decode), filename_prefix="before")}
    pictures = saved_pictures(comfy, workflow)
    outside = pictures["mask"][0, :, :, 0] == 0
    change = np.abs(pictures["inpaint_after"][0] - pictures["before"][0])
    assert 0.5 < outside.mean() < 0.95
    assert change[outside].max() < 0.01 and change[~outside].mean() > 0.05


def test_lists_and_frames(comfy, prompt):
    folder, video = (saved_pictures(comfy, prompt(name)) for name in ("perceive_folder", "video_labels"))
    assert {part.shape for part in folder.values()} == {(4, 128, 128, 3)}
    assert {part.shape for part in video.values()} == {(5, 128, 128, 3)}
    assert len(list((comfy.base / "output" / "jodi").glob("video_*.mp4"))) >= 2


def test_a_panorama_is_wide(comfy, prompt):
    assert {part.shape for part in saved_pictures(comfy, prompt("large_picture")).values()} == {(1, 128, 384, 3)}


def test_a_surface_is_saved(comfy, prompt):
    workflow = prompt("depth_to_mesh")
    saver, = nodes_of(workflow, "SaveGLB")
    workflow[saver]["inputs"]["filename_prefix"] = "test/surface"    # not a cached run
    file = comfy.run(workflow)[saver]["3d"][0]
    glb = (comfy.base / "output" / file["subfolder"] / file["filename"]).read_bytes()
    assert glb[:4] == b"glTF" and len(glb) > 100_000


def in_few_steps(prompt: dict, steps: int) -> dict:
    for part in prompt.values():
        if part["class_type"] in ("JodiJointSampler", "JodiSigmas"):
            part["inputs"]["steps"] = steps
    return prompt


def test_sizes_of_panoramas_and_enlarged_pictures(comfy, prompt):
    around = saved_pictures(comfy, in_few_steps(prompt("panorama"), 1))
    assert len(around) == 4 and {part.shape for part in around.values()} == {(1, 128, 512, 3)}
    sheets = saved_pictures(comfy, in_few_steps(prompt("upsample"), 1))
    assert sheets["upsample_after"].shape[1:3] > sheets["upsample_before"].shape[1:3]


def test_a_picture_stays_in_the_middle_of_its_panorama(comfy, prompt):
    pictures = saved_pictures(comfy, in_few_steps(prompt("panorama_expand"), 2))
    wide = pictures["expand_image"]
    assert wide.shape == (1, 128, 384, 3) and pictures["expand_depth"].shape == wide.shape
    assert np.abs(wide[:, :, 128:256] - pictures["expand_before"]).mean() < 0.03


def test_surroundings_are_saved(comfy, prompt):
    workflow = in_few_steps(prompt("panorama_mesh"), 2)
    saver, = nodes_of(workflow, "SaveGLB")
    file = comfy.run(workflow)[saver]["3d"][0]
    glb = (comfy.base / "output" / file["subfolder"] / file["filename"]).read_bytes()
    document = json.loads(glb[20:20 + int.from_bytes(glb[12:16], "little")])
    box = document["accessors"][0]
    assert box["min"][2] < 0 < box["max"][2] and document["samplers"][0]["wrapS"] == 10497


def test_a_lora_takes_its_place(comfy):
    """Bypassed as shipped, since there is no LoRA yet; enabled it changes the picture."""
    workflow = json.loads((ROOT / "workflows" / "stock_ksampler_lora.json").read_text(encoding="utf-8"))
    plain = saved_pictures(comfy, to_prompt(workflow, comfy.get("/object_info")))["lora"]
    target = comfy.base / "models" / "loras"
    target.mkdir(parents=True, exist_ok=True)
    name = "diffusion_model.blocks.2.attn.proj"
    save_file({f"{name}.lora_A.weight": torch.ones(1, 160) * 0.5, f"{name}.lora_B.weight": torch.ones(160, 1) * 0.5},
              target / "your_lora.safetensors")
    for part in workflow["nodes"]:
        if part["type"] == "LoraLoaderModelOnly":
            part["mode"] = 0
    changed = saved_pictures(comfy, to_prompt(workflow, comfy.get("/object_info")))["lora"]
    assert np.abs(changed - plain).mean() > 0.001


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
