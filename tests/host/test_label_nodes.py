"""The label nodes on the real host: what they make goes through its own nodes and files."""

import io
import json
import struct

import av
import numpy as np
import pytest
import torch
from jodi_prompts import add_picture, joint_prompt, link, node, run
from PIL import Image

from jodi_core.labels import class_numbers
from jodi_core.segmentation import SEGMENTATION_NAMES
from scripts.comfy import ComfyError
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


def scene_mesh(server, world, **inputs) -> dict:
    """Picture and labels of a scene, and the mesh of them."""
    prompt = {"mesh": node("JodiDepthMesh", **{
        "image": link("image"), "depth": link("depth"), "field_of_view": 60.0, "near": 1.0, "far": 8.0, "tear": 0.2,
        "resolution": 96} | inputs)}
    for name in ("image", "depth", "normal"):
        add_picture(server, prompt, name, Image.fromarray(world[name]))
    return prompt


def gltf(file: bytes) -> tuple[dict, dict]:
    """(document, its accessor of positions) of a GLB file whose length is right."""
    magic, version, length, text, kind = struct.unpack("<4sIII4s", file[:20])
    assert (magic, version, length, kind) == (b"glTF", 2, len(file), b"JSON")
    document = json.loads(file[20:20 + text])
    return document, document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]


def test_mesh_is_saved_and_previewed_by_stock_nodes(comfy, world):
    prompt = scene_mesh(comfy, world, normal=link("normal"), normal_painted_by="OpenGL")
    outputs = comfy.run(prompt | {
        "save": node("SaveGLB", mesh=link("mesh"), filename_prefix="3d/scene"),
        "save_file": node("SaveGLB", mesh=link("mesh", 1), filename_prefix="3d/file"),
        "preview": node("Preview3D", model_file=link("mesh", 1)),
        "cloud": node("SavePointCloud", model_3d=link("mesh", 2), filename_prefix="3d/cloud", viewport_state="",
                      width=512, height=512)})
    folder = comfy.base / "output"
    saved, own = (gltf((folder / "3d" / outputs[name]["3d"][0]["filename"]).read_bytes())
                  for name in ("save", "save_file"))
    assert (folder / outputs["preview"]["result"][0]).read_bytes()[:4] == b"glTF"
    assert saved[1]["count"] == own[1]["count"] > 0.9 * 64 * 96
    faces = saved[0]["accessors"][saved[0]["meshes"][0]["primitives"][0]["indices"]]["count"] / 3
    assert 1.5 * 64 * 96 < faces < 2 * 63 * 95    # torn at the outlines, whole elsewhere
    assert -8 - 1e-4 <= saved[1]["min"][2] < -4 and -1.2 < saved[1]["max"][2] <= -1    # the sky, the ground before us
    assert saved[1]["min"] == pytest.approx(own[1]["min"]) and saved[1]["max"] == pytest.approx(own[1]["max"])
    assert saved[0]["images"] and "NORMAL" in own[0]["meshes"][0]["primitives"][0]["attributes"]
    cloud = (folder / outputs["cloud"]["result"][0]).read_bytes()
    assert f"element vertex {own[1]['count']}\n".encode() in cloud[:200]


def test_mesh_of_a_batch_leaves_out_the_sky(comfy, world):
    prompt = scene_mesh(comfy, world, image=link("images"), depth=link("depths"), mask=link("ground"))
    prompt |= {"images": node("ImageBatch", image1=link("image"), image2=link("image")),
               "turned": node("ImageInvert", image=link("depth")),
               "depths": node("ImageBatch", image1=link("depth"), image2=link("turned")),
               "sky": node("JodiLabelConvert", label=link("classes"), kind="segmentation",
                           **{"kind.class_name": "sky"}),
               "ground": node("InvertMask", mask=link("sky", 1)),
               "save": node("SaveGLB", mesh=link("mesh"), filename_prefix="3d/batch")}
    add_picture(comfy, prompt, "classes", Image.fromarray(world["segmentation"]))
    files = [file["filename"] for file in comfy.run(prompt)["save"]["3d"]]
    first, second = (gltf((comfy.base / "output" / "3d" / file).read_bytes())[1] for file in files)
    assert first["count"] < 0.7 * 64 * 96 and first["min"][2] > -8 and second["max"][2] < -1


def test_pose_is_redrawn_by_the_stock_node(comfy, world):
    prompt = {"keypoints": node("JodiPoseKeypoints", openpose=link("pose")),
              "redrawn": node("SDPoseDrawKeypoints", keypoints=link("keypoints"), draw_body=True, draw_hands=True,
                              draw_face=True, draw_feet=False, stick_width=1, face_point_size=3, score_threshold=0.3,
                              draw_head=True),
              "save": node("SaveImage", images=link("redrawn"), filename_prefix="pose")}
    add_picture(comfy, prompt, "pose", Image.fromarray(world["openpose"]))
    drawn, redrawn = world["openpose"].max(-1) > 100, run(comfy, prompt)["save"][0].max(-1) > 0.4
    assert (drawn & redrawn).sum() > 0.8 * drawn.sum()


def test_bad_distances_are_explained(comfy, world):
    with pytest.raises(ComfyError, match="nearest distance must be above 0 and below the farthest"):
        comfy.run(scene_mesh(comfy, world, near=5.0, far=2.0)
                  | {"save": node("SaveGLB", mesh=link("mesh"), filename_prefix="3d/no")})


def test_batches_that_do_not_fit_are_explained(comfy, world):
    prompt = scene_mesh(comfy, world, image=link("images"))
    prompt |= {"images": node("ImageBatch", image1=link("image"), image2=link("image")),
               "save": node("SaveGLB", mesh=link("mesh"), filename_prefix="3d/no")}
    with pytest.raises(ComfyError, match="1 depth maps need as many of 'image', or one, not 2"):
        comfy.run(prompt)
