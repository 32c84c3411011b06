"""Surfaces out of depth labels: where points come to lie, where they are torn, what the files hold."""

import base64
import io
import json
import math
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from jodi_core.geometry import build_surface, distances, glb, ply
from jodi_core.pictures import load_picture

CAMERA = {"near": 1.0, "far": 10.0, "field_of_view": 60.0, "tear": 0.1, "longest": 256}


def project(points_N3, size, field_of_view):
    """Pixels (N, 2), row and column, in which a pinhole camera sees the points."""
    focal = size[1] / 2 / math.tan(math.radians(field_of_view) / 2)
    x, y, z = points_N3.unbind(1)
    return torch.stack((size[0] / 2 - focal * y / -z - 0.5, size[1] / 2 + focal * x / -z - 0.5), 1)


def plane(normal, height=48, width=64, field_of_view=60.0):
    """(depth label for near 1 and far 10, normals (3, H, W)) of a plane whose nearest point is at 2."""
    normal = torch.tensor(normal) / math.hypot(*normal)
    focal = width / 2 / math.tan(math.radians(field_of_view) / 2)
    y_HW, x_HW = torch.meshgrid((height / 2 - torch.arange(height) - 0.5) / focal,
                                (torch.arange(width) + 0.5 - width / 2) / focal, indexing="ij")
    away_HW = 1 / -(normal[0] * x_HW + normal[1] * y_HW - normal[2])
    assert (away_HW > 0).all()
    away_HW = away_HW * 2 / away_HW.min()
    return (1 / away_HW - 1 / 10) / (1 - 1 / 10), normal[:, None, None].expand(3, height, width)


def test_distances_are_steps_of_their_inverse():
    torch.testing.assert_close(distances(torch.tensor([1.0, 0.5, 0.0]), 2.0, 8.0), torch.tensor([2.0, 3.2, 8.0]))
    with pytest.raises(ValueError, match="nearest distance"):
        distances(torch.zeros(1), 2.0, 2.0)


def test_a_constant_depth_is_a_flat_wall():
    surface = build_surface(torch.full((30, 40), 0.5), **CAMERA)
    assert len(surface.points_N3) == 30 * 40 and len(surface.faces_M3) == 2 * 29 * 39
    torch.testing.assert_close(surface.points_N3[:, 2], torch.full((1200,), -1 / 0.55))
    width = float(surface.points_N3[:, 0].max() - surface.points_N3[:, 0].min()) * 40 / 39
    assert width == pytest.approx(2 * math.tan(math.radians(30)) / 0.55, rel=1e-4)
    assert surface.points_N3[0, 0] < 0 < surface.points_N3[0, 1]    # the first vertex is the top left one


@pytest.mark.parametrize("longest", [256, 20])
def test_points_project_to_their_pixels(longest):
    depth_HW = torch.rand(48, 64, generator=torch.manual_seed(0))
    surface = build_surface(depth_HW, **CAMERA | {"tear": 0.0, "longest": longest})
    pixels_N2 = project(surface.points_N3, (48, 64), 60.0)
    torch.testing.assert_close(pixels_N2, pixels_N2.round(), atol=1e-3, rtol=0)
    torch.testing.assert_close((pixels_N2 + 0.5) / torch.tensor([48, 64]), surface.uvs_N2.flip(1), atol=1e-4, rtol=0)
    row, column = pixels_N2.round().long().unbind(1)
    torch.testing.assert_close(-surface.points_N3[:, 2], distances(depth_HW[row, column], 1.0, 10.0))
    assert len(pixels_N2) == (48 * 64 if longest == 256 else 15 * 20)


def test_faces_look_at_the_camera():
    surface = build_surface(torch.rand(20, 20, generator=torch.manual_seed(0)), **CAMERA | {"tear": 0.0})
    one, two, three = surface.points_N3[surface.faces_M3].unbind(1)
    assert ((torch.linalg.cross(two - one, three - one) * one).sum(1) < 0).all()


def test_a_depth_step_is_torn():
    depth_HW = torch.full((20, 20), 0.2)
    depth_HW[5:15, 5:15] = 0.9
    surface = build_surface(depth_HW, **CAMERA)
    heights = surface.points_N3[surface.faces_M3][..., 2]
    assert torch.equal(heights.amin(1), heights.amax(1)) and len(heights) == 2 * 19 * 19 - 78
    assert len(build_surface(depth_HW, **CAMERA | {"tear": 0.0}).faces_M3) == 2 * 19 * 19


def test_normals_keep_slanted_ground_whole():
    depth_HW, normals_3HW = plane((0.0, 1.0, 0.8))
    torn = CAMERA | {"tear": 0.02}
    everything = 2 * 47 * 63
    assert len(build_surface(depth_HW, **torn).faces_M3) < 0.8 * everything
    assert len(build_surface(depth_HW, **torn, normals_3HW=normals_3HW).faces_M3) == everything


def test_normals_do_not_hold_a_step_together():
    depth_HW, normals_3HW = plane((0.0, 1.0, 0.8))
    depth_HW, normals_3HW = depth_HW.clone(), normals_3HW.clone()
    depth_HW[:, 30:40], normals_3HW[:, :, 30:40] = 0.9, torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    surface = build_surface(depth_HW, **CAMERA, normals_3HW=normals_3HW)
    columns = project(surface.points_N3, (48, 64), 60.0)[:, 1].round()[surface.faces_M3]
    inside = (columns >= 30) & (columns < 40)
    assert (inside.all(1) | ~inside.any(1)).all()


def test_only_what_the_mask_keeps():
    keep_HW = torch.zeros(20, 30)
    keep_HW[:, :10] = 1
    surface = build_surface(torch.full((20, 30), 0.5), **CAMERA, keep_HW=keep_HW)
    assert len(surface.points_N3) == 200 and surface.uvs_N2[:, 0].max() < 1 / 3
    with pytest.raises(ValueError, match="nothing is left"):
        build_surface(torch.full((20, 30), 0.5), **CAMERA, keep_HW=torch.zeros(20, 30))


@pytest.mark.parametrize("lit", [False, True])
def test_glb_holds_the_surface(lit):
    depth_HW, normals_3HW = plane((0.0, 0.5, 1.0))
    picture_3HW = torch.rand(3, 48, 64, generator=torch.manual_seed(0))
    surface = build_surface(depth_HW, **CAMERA, normals_3HW=normals_3HW if lit else None)
    file = glb(surface, picture_3HW)
    document, binary = chunks(file)
    primitive = document["meshes"][0]["primitives"][0]
    accessors = [document["accessors"][number] for number in primitive["attributes"].values()]
    assert lit != ("extensionsUsed" in document)
    view = document["bufferViews"][document["accessors"][primitive["attributes"]["NORMAL"]]["bufferView"]]
    normals = np.frombuffer(binary, "<f4", 3 * 48 * 64, view["byteOffset"]).reshape(-1, 3)
    assert np.allclose(normals, normals_3HW[:, 0, 0].numpy(), atol=1e-4), "given ones, or those of the plane's faces"
    assert {accessor["count"] for accessor in accessors} == {48 * 64}
    view = document["bufferViews"][0]
    points = np.frombuffer(binary, "<f4", 3 * 48 * 64, view["byteOffset"]).reshape(-1, 3)
    assert np.array_equal(points, surface.points_N3.numpy()) and points.min(0).tolist() == accessors[0]["min"]
    indices = document["accessors"][primitive["indices"]]
    offset = document["bufferViews"][indices["bufferView"]]["byteOffset"]
    faces = np.frombuffer(binary, "<u4", indices["count"], offset).reshape(-1, 3)
    assert np.array_equal(faces, surface.faces_M3.numpy())
    texture = load_picture(Image.open(io.BytesIO(base64.b64decode(document["images"][0]["uri"].partition(",")[2]))))
    torch.testing.assert_close(texture[0], picture_3HW, atol=0.5 / 255 + 1e-6, rtol=0)


def chunks(file):
    """(document, binary) of a GLB whose lengths fit."""
    magic, version, length, text = struct.unpack("<4sIII", file[:16])
    assert (magic, version, length) == (b"glTF", 2, len(file)) and text % 4 == 0 and file[16:20] == b"JSON"
    size, kind = struct.unpack("<I4s", file[20 + text:28 + text])
    assert kind == b"BIN\0" and 28 + text + size == len(file)
    return json.loads(file[20:20 + text]), file[28 + text:]


def test_ply_holds_points_and_colours():
    depth_HW, normals_3HW = plane((0.0, 0.5, 1.0), 4, 6)
    picture_3HW = torch.arange(24).view(1, 4, 6).expand(3, -1, -1) / 255
    surface = build_surface(depth_HW, **CAMERA, normals_3HW=normals_3HW)
    header, body = ply(surface, picture_3HW).split(b"end_header\n", 1)
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 24\nproperty float x\n")
    points = np.frombuffer(body, [("place", "<f4", 3), ("normal", "<f4", 3), ("colour", "u1", 3)])
    assert np.array_equal(points["place"], surface.points_N3.numpy())
    assert np.array_equal(points["colour"][:, 0], np.arange(24))
    np.testing.assert_allclose(np.linalg.norm(points["normal"], axis=1), 1, atol=1e-6)
