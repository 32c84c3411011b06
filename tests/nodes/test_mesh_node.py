"""Jodi Depth Mesh with panoramas, and with things that do not belong together."""

import pytest
import torch

from jodi_pack.nodes.mesh import JodiDepthMesh


@pytest.mark.parametrize("name, shape", [("image", (1, 32, 64, 3)), ("normal", (1, 64, 32, 3)), ("mask", (1, 60, 20))])
def test_things_of_another_shape_than_the_depth(name, shape):
    parts = {"image": torch.rand(1, 90, 90, 3), "depth": torch.rand(1, 48, 48, 3)} | {name: torch.rand(shape)}
    with pytest.raises(ValueError, match=f"'{name}' has .* pixels, but the depth 48x48"):
        JodiDepthMesh.execute(parts.pop("image"), parts.pop("depth"), 50.0, 1.0, 5.0, 0.0, 512, **parts)


def test_a_mesh_around_the_viewer():
    picture, depth = torch.rand(2, 48, 192, 3), torch.rand(2, 24, 96, 3)
    mesh, model, points = JodiDepthMesh.execute(picture, depth, 50.0, 1.0, 5.0, 0.0, 512, form="cylinder").result
    assert mesh.vertices.shape == (2, 24 * 97, 3) and mesh.faces.shape == (2, 2 * 23 * 96, 3)
    radii = mesh.vertices[..., [0, 2]].norm(dim=-1)
    assert 0.999 < radii.min() and radii.max() < 5.001
    half = JodiDepthMesh.execute(picture, depth, 50.0, 1.0, 5.0, 0.0, 512, form="cylinder", span=180.0).result[0]
    assert half.vertices.shape == (2, 24 * 96, 3) and half.vertices[..., 2].min() > 0
