"""Many pictures through the stock nodes: folders, chunks of a batch, the frames of a video."""

import numpy as np
import pytest
from jodi_prompts import as_array, joint_prompt, link, node, run
from PIL import Image

from training.world import render, sample_scene

PERCEIVE = {"image": "pictures", "depth": "generate", "albedo": "generate"}


def scenes(count: int, size=(128, 128), first: int = 20_000_000) -> list[Image.Image]:
    pictures = render([sample_scene(first + number) for number in range(count)], *size)["image"]
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]


@pytest.fixture
def folder(comfy):
    """A folder of pictures of several sizes in the input folder."""
    target = comfy.base / "input" / "holiday"
    target.mkdir(parents=True, exist_ok=True)
    for number, size in enumerate([(128, 128), (96, 160), (160, 96)]):
        scenes(1, size, 20_000_100 + number)[0].save(target / f"{number}.png")
    return target.name


def perceive(**changes) -> dict:
    prompt = joint_prompt(PERCEIVE, steps=4, cfg=1.0)
    prompt["sample"]["inputs"] |= changes
    del prompt["text"], prompt["roles"]["inputs"]["positive"]
    return prompt


def test_a_folder_of_mixed_sizes(comfy, folder):
    prompt = perceive() | {"pictures": node("LoadImageDataSetFromFolder", folder=folder)}
    prompt["decode"]["inputs"]["size"] = "like the given picture"
    outputs = comfy.run(prompt)
    saved = [as_array(png).shape for png in comfy.pictures(outputs)["depth"]]
    assert sorted(saved) == [(96, 160, 3), (128, 128, 3), (160, 96, 3)]


def frames(comfy, count: int) -> dict:
    """Nodes that load pictures as one batch."""
    prompt = {}
    for number, picture in enumerate(scenes(count)):
        (comfy.base / "input").mkdir(exist_ok=True)
        picture.save(comfy.base / "input" / f"frame{number}.png")
        prompt[f"load{number}"] = node("LoadImage", image=f"frame{number}.png")
    prompt["batch0"] = prompt.pop("load0")
    for number in range(1, count):
        prompt[f"batch{number}"] = node("ImageBatch", image1=link(f"batch{number - 1}"), image2=link(f"load{number}"))
    return prompt | {"all": node("ImageScaleBy", image=link(f"batch{count - 1}"), upscale_method="bilinear",
                                 scale_by=1.0)}


def test_chunks_of_a_batch_are_the_batch(comfy):
    """With one noise for all, the size of the chunks does not matter."""
    loaded = frames(comfy, 5)
    scaled = {"pictures": node("ImageScaleBy", **loaded["all"]["inputs"])}
    whole = run(comfy, perceive(same_noise=True) | loaded | scaled)
    chunks = run(comfy, perceive(same_noise=True) | loaded | {
        "pictures": node("RebatchImages", images=link("all"), batch_size=2)})
    assert whole["albedo"].shape == chunks["albedo"].shape == (5, 128, 128, 3)
    assert np.abs(whole["albedo"] - chunks["albedo"]).max() <= 2 / 255


def test_the_frames_of_a_video(comfy):
    """Encoded and read back by the host; a still picture gets still labels only with the same noise."""
    picture = scenes(1)[0]
    (comfy.base / "input").mkdir(exist_ok=True)
    picture.save(comfy.base / "input" / "still.png")
    film = {"still": node("LoadImage", image="still.png"),
            "frames": node("RepeatImageBatch", image=link("still"), amount=4),
            "film": node("CreateVideo", images=link("frames"), fps=8.0),
            "pictures": node("GetVideoComponents", video=link("film"))}
    flicker = []
    for same in (True, False):
        prompt = perceive(same_noise=same) | film
        prompt["out"] = node("CreateVideo", images=link("decode", 3), fps=link("pictures", 2))
        prompt["save"] = node("SaveVideo", video=link("out"), filename_prefix="labels", format="auto", codec="auto")
        saved = comfy.pictures({"albedo": comfy.run(prompt)["albedo"]})["albedo"]
        albedo = np.stack([as_array(png) for png in saved])
        flicker.append(np.abs(np.diff(albedo, axis=0)).mean())
    assert flicker[0] < 1e-3 < flicker[1], flicker
    assert list((comfy.base / "output").glob("labels*"))
