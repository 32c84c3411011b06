"""Panoramas as surfaces around the viewer, against what the original's mesh script wrote."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from jodi_core.geometry import build_surface, cylinder_rays, distances, glb, grid, grid_faces, ply, turned
from jodi_core.pictures import load_picture, to_pil_16bit

GOLDEN = Path(__file__).parents[1] / "golden" / "jointnet"
AROUND = {"near": 1.0, "far": 10.0, "tear": 0.0, "longest": 256, "span": 360.0}


@pytest.mark.parametrize("name", ["mesh_default", "mesh_scaled"])
def test_recorded_vertices_and_triangles(name):
    """The script clips grey values to 1/255 and radii to near and far; its seam stays open."""
    told = {"scale": 1.0, "shift": 0.0, "near": 1e-5, "far": 1e5, "span": 360.0}
    told |= json.loads((GOLDEN / "jointnet_tiny.json").read_text())["cases"][name]["args"]
    with safe_open(GOLDEN / "jointnet_tiny.safetensors", "pt") as file:
        depth_HW, vertices_N3, faces_M3 = (
            file.get_tensor(f"case/{name}/{part}") for part in ("depth_u8", "vertices", "triangles"))
    size = tuple(depth_HW.shape)
    farthest = 1 / told["shift"] if told["shift"] else math.inf
    away_HW = distances(depth_HW.clamp_min(1) / 255, 1 / (told["scale"] + told["shift"]), farthest)
    away_HW = away_HW.clamp(told["near"], told["far"])
    pixels_HW2 = grid(size, max(size))
    points_N3 = (cylinder_rays(pixels_HW2, size, told["span"]) * away_HW[..., None]).flatten(0, 1)
    assert (points_N3 - vertices_N3).abs().max() < 1e-6 * vertices_N3.abs().max()
    assert torch.equal(grid_faces(*size), faces_M3.long())


def edges_of(surface) -> tuple[np.ndarray, np.ndarray]:
    """Edges by where they lie in space, and how many faces each has."""
    _, place_N = surface.points_N3.mul(1e4).round().unique(dim=0, return_inverse=True)
    corners_M3 = place_N[surface.faces_M3]
    pairs = torch.cat([corners_M3[:, [one, other]] for one, other in ((0, 1), (1, 2), (2, 0))]).sort(1).values
    return np.unique(pairs.numpy(), axis=0, return_counts=True)


def test_a_panorama_of_360_degrees_is_closed():
    """Only the upper and the lower rim have edges of a single face; textures go on over the seam."""
    depth_HW = torch.rand(6, 20, generator=torch.manual_seed(0))
    surface = build_surface(depth_HW, **AROUND)
    assert len(surface.faces_M3) == 2 * 5 * 20 and (edges_of(surface)[1] == 1).sum() == 2 * 20
    assert float(surface.uvs_N2[:, 0].max()) == pytest.approx(1 + 0.5 / 20)
    spread = surface.uvs_N2[surface.faces_M3][..., 0]
    assert float((spread.amax(1) - spread.amin(1)).max()) < 1.01 / 20
    open_one = build_surface(depth_HW, **AROUND | {"span": 350.0})
    assert len(open_one.faces_M3) == 2 * 5 * 19 and (edges_of(open_one)[1] == 1).sum() == 2 * 19 + 2 * 5


def test_faces_look_at_the_axis():
    surface = build_surface(torch.rand(8, 30, generator=torch.manual_seed(1)), **AROUND)
    one, two, three = surface.points_N3[surface.faces_M3].unbind(1)
    assert ((torch.linalg.cross(two - one, three - one) * one).sum(1) < 0).all()


def test_a_depth_step_is_torn_at_the_seam_too():
    depth_HW = torch.full((10, 40), 0.2)
    depth_HW[:, 35:] = 0.9
    surface = build_surface(depth_HW, **AROUND | {"tear": 0.1})
    assert len(surface.faces_M3) == 2 * 9 * (40 - 2)
    radius = surface.points_N3[surface.faces_M3][..., [0, 2]].norm(dim=-1)
    torch.testing.assert_close(radius.amin(1), radius.amax(1))


def test_normals_turn_with_the_view():
    """Facing the viewer they point to the axis, wherever on the cylinder; up stays up, right is further around."""
    rays_hw3 = cylinder_rays(grid((4, 12), 12), (4, 12), 360.0)
    away_hw3 = rays_hw3 * torch.tensor([1.0, 0.0, 1.0])
    toward, up, right = (turned(torch.tensor(normal).expand(4, 12, 3), rays_hw3) for normal in (
        [0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]))
    torch.testing.assert_close(toward, -away_hw3)
    assert torch.equal(up, torch.tensor([0.0, 1.0, 0.0]).expand(4, 12, 3))
    assert ((right * (rays_hw3.roll(-1, 1) - rays_hw3)).sum(-1) > 0).all()
    surface = build_surface(torch.full((4, 12), 0.5), **AROUND, normals_3HW=torch.zeros(3, 4, 12).index_fill(
        0, torch.tensor(2), 1.0))
    inward = -surface.points_N3 * torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(surface.normals_N3, torch.nn.functional.normalize(inward, dim=1))


def test_files_of_a_closed_panorama():
    picture = torch.rand(3, 6, 20, generator=torch.manual_seed(2))
    surface = build_surface(torch.full((6, 20), 0.5), **AROUND)
    file = glb(surface, picture)
    document = json.loads(file[20:20 + int.from_bytes(file[12:16], "little")])
    assert document["samplers"] == [{"wrapS": 10497, "wrapT": 33071}]
    assert b"element vertex 126" in ply(surface, picture)    # the first column twice


def test_sixteen_bits_of_depth_are_sixteen_bits_of_distance(tmp_path):
    """Read with 8 bits, or clipped to them as the script does, most of these rows would lie at one distance."""
    depth_HW = torch.linspace(0.5, 0.51, 200)[:, None].expand(200, 600)
    to_pil_16bit(depth_HW[None]).save(tmp_path / "depth.png")
    read_HW = load_picture(tmp_path / "depth.png")[0, 0]
    surface = build_surface(read_HW, **AROUND | {"longest": 600})
    radii = surface.points_N3[:, [0, 2]].norm(dim=-1).mul(1e6).round().unique()
    assert len(radii) > 190


def test_a_cylinder_has_no_poles():
    with pytest.raises(ValueError, match="360 degrees around a picture of 40x20 pixels would be 180 degrees high"):
        build_surface(torch.rand(20, 40), **AROUND)
