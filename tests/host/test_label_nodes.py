"""The label nodes on the real host: what they make goes through its own nodes and files."""

import io

import av
import numpy as np
import pytest
import torch
from jodi_prompts import add_picture, joint_prompt, link, node, run
from PIL import Image

from jodi_core.labels import class_numbers
from jodi_core.segmentation import SEGMENTATION_NAMES
from training.world import render, sample_scene


@pytest.fixture(scope="module")
def world():
    """Labels of one scene with a person, each (H, W, 3) uint8."""
    seed = next(seed for seed in range(99) if sample_scene(seed).thing("person"))
    return {name: picture[0].movedim(0, -1).numpy() for name, picture in render([sample_scene(seed)], 64, 96).items()}


def converted(server, label_HW3: np.ndarray, **kind) -> tuple[np.ndarray, np.ndarray]:
    """(picture, mask) (1, H, W, 3) of Jodi Label Convert, through the host's PNG files."""
    prompt = {"convert": node("JodiLabelConvert", label=link("label"), **kind),
              "picture": node("SaveImage", images=link("convert"), filename_prefix="converted"),
              "as_image": node("MaskToImage", mask=link("convert", 1)),
              "mask": node("SaveImage", images=link("as_image"), filename_prefix="mask")}
    add_picture(server, prompt, "label", Image.fromarray(label_HW3))
    saved = run(server, prompt)
    return saved["picture"], saved["mask"]


def test_index_map_keeps_its_numbers_in_a_png(comfy, world):
    picture, mask = converted(comfy, world["segmentation"], kind="segmentation", **{"kind.class_name": "person"})
    truth = class_numbers(torch.from_numpy(world["segmentation"])[None].movedim(-1, 1) / 255)[0].numpy()
    assert np.array_equal((picture[0, ..., 0] * 255).round(), truth)
    assert np.array_equal(mask[0, ..., 0] == 1, truth == SEGMENTATION_NAMES.index("person"))


def test_depth_and_lines_turn_round(comfy, world):
    picture, mask = converted(comfy, world["depth"], kind="depth", **{"kind.nearest": "black"})
    assert np.abs(picture[0] * 255 - (255 - world["depth"])).max() <= 1 and np.array_equal(picture, mask)
    picture, mask = converted(comfy, 255 - world["lineart"], kind="lines", **{"kind.invert": False})
    assert np.array_equal(mask[0] * 255, world["lineart"])


def test_normals_change_convention(comfy, world):
    kind = {"kind": "normal", "kind.painted_by": "OpenGL", "kind.convention": "DirectX"}
    picture, facing = converted(comfy, world["normal"], **kind)
    red, green, blue = (picture[0] * 255 - world["normal"]).transpose(2, 0, 1)
    assert np.abs(red).max() <= 2 and np.abs(blue).max() <= 2
    assert np.abs(picture[0, ..., 1] * 255 + world["normal"][..., 1] - 255).max() <= 2
    assert facing[0, 0].min() > 0.98    # the sky faces the viewer


def levels_16bit(png: bytes) -> np.ndarray:
    """Red channel of a 48-bit PNG, which Pillow would cut to 8 bits."""
    assert png[24:26] == bytes([16, 2])    # 16 bits per channel, RGB
    return next(av.open(io.BytesIO(png)).decode()).to_ndarray(format="rgb48le")[..., 0]


def test_sixteen_bit_depth_by_the_stock_nodes(comfy):
    def depth16(source: list) -> dict:
        return {"convert": node("JodiLabelConvert", label=source, kind="depth", **{"kind.nearest": "white"}),
                "save": node("SaveImageAdvanced", images=link("convert"), filename_prefix="depth16", format="png",
                             **{"format.bit_depth": "16-bit", "format.input_color_space": "sRGB"})}
    prompt = joint_prompt({"image": "generate", "depth": "generate"})
    png = comfy.pictures(comfy.run(prompt | depth16(link("decode", 3))))["save"][0]
    (comfy.base / "input" / "depth16.png").write_bytes(png)
    again = comfy.pictures(comfy.run({"label": node("LoadImage", image="depth16.png")} | depth16(link("label"))))
    levels, loaded = levels_16bit(png), levels_16bit(again["save"][0])
    assert len(np.unique(levels)) > 1000 and levels.min() == 0 and levels.max() == 65535
    assert np.abs(levels.astype(int) - loaded).max() <= 8    # of 65535; one step of 8 bits is 257
