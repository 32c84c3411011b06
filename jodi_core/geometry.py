"""A picture and its depth as a surface in space: unprojected, torn at depth steps, written as GLB or PLY.

Space is that of glTF 2.0: x right, y up, the camera at the origin looking along -z. Lengths have the unit of `near`.
"""

import base64
import io
import json
import math
import struct
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .pictures import to_pil

COLOURS = ("red", "green", "blue")
GRAZING = 0.02  # cosine; flatter surfaces predict no finite step


@dataclass(frozen=True)
class Surface:
    """Vertices of a pixel grid and the triangles between them, counter-clockwise as the camera sees them."""

    points_N3: torch.Tensor
    uvs_N2: torch.Tensor  # places in the picture, 0 to 1 from its top left corner
    faces_M3: torch.Tensor  # int64
    normals_N3: torch.Tensor | None = None


def distances(depth: torch.Tensor, near: float, far: float) -> torch.Tensor:
    """A depth label in [0, 1], 1 the nearest -> distances along the view: its values are steps of 1 / distance.

    1 / (scale depth + shift) is near = 1 / (scale + shift), far = 1 / shift. ValueError unless 0 < near < far.
    """
    if not 0 < near < far:
        raise ValueError(f"the nearest distance must be above 0 and below the farthest, not {near:g} and {far:g}")
    return 1 / (depth / near + (1 - depth) / far)


def grid(size: tuple[int, int], longest: int) -> torch.Tensor:
    """Pixels (h, w, 2), row and column, spread evenly over a picture of (height, width), at most `longest` a side."""
    share = min(1.0, longest / max(size))
    rows, columns = (((torch.arange(max(2, round(side * share))) + 0.5) * side / max(2, round(side * share))).long()
                     for side in size)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)


def rays(pixels_hw2: torch.Tensor, size: tuple[int, int], field_of_view: float) -> torch.Tensor:
    """Directions (h, w, 3) of pixel centres with z = -1; field_of_view in degrees across the width."""
    height, width = size
    focal = width / 2 / math.tan(math.radians(field_of_view) / 2)    # pixels
    row_hw, column_hw = pixels_hw2.float().unbind(-1)
    return torch.stack(((column_hw + 0.5 - width / 2) / focal, (height / 2 - row_hw - 0.5) / focal,
                        -torch.ones_like(row_hw)), -1)


def cylinder_rays(pixels_hw2: torch.Tensor, size: tuple[int, int], span: float) -> torch.Tensor:
    """Directions (h, w, 3) of pixel centres from the axis of a cylinder, of horizontal length 1 (JointNet spec 4.6).

    span: degrees across the width, from x over z; a pixel is as high as wide. ValueError from 180 degrees of height on.
    """
    height, width = size
    if span * height / width >= 180:
        raise ValueError(f"a cylinder of {span:g} degrees around a picture of {width}x{height} pixels would be "
                         f"{span * height / width:.0f} degrees high: below 180 it must be, so crop the picture")
    row_hw, column_hw = (pixels_hw2.double() + 0.5).unbind(-1)
    around_hw, down_hw = (math.radians(span) / width * part for part in (column_hw, row_hw - height / 2))
    return torch.stack((around_hw.cos(), -down_hw.tan(), around_hw.sin()), -1).float()


def turned(normals_hw3: torch.Tensor, rays_hw3: torch.Tensor) -> torch.Tensor:
    """Normals as seen along each ray's horizontal direction (x right, y up, z back) in the axes of the cylinder."""
    x_hw, y_hw, z_hw = normals_hw3.unbind(-1)
    cos_hw, _, sin_hw = rays_hw3.unbind(-1)    # of the angle around
    return torch.stack((-sin_hw * x_hw - cos_hw * z_hw, y_hw, cos_hw * x_hw - sin_hw * z_hw), -1)


def build_surface(depth_HW: torch.Tensor, *, near: float, far: float, tear: float, longest: int,
                  field_of_view: float = 50.0, span: float | None = None, normals_3HW: torch.Tensor | None = None,
                  keep_HW: torch.Tensor | None = None) -> Surface:
    """The surface that a depth label shows.

    depth_HW       [0, 1], 1 the nearest; `distances` tells what near and far mean
    field_of_view  of a camera, degrees across the width, above 0 and below 180
    span           in place of it: a panorama of so many degrees on a cylinder, whose distances are from its axis; at
                   360 it is closed, by vertices at the place of the first column whose uvs go on above 1
    tear           no face spans a step in distance of more than this fraction; 0: nothing is torn
    longest        of the vertex grid, in vertices
    normals_3HW    unit vectors, x right, y up, z to the viewer, of the same size: carried along, and steps that the
                   slant of the surface explains are not torn
    keep_HW        above 0.5 where there is a surface, of the same size

    Vertices without a face are left out. ValueError if nothing is left.
    """
    size = tuple(depth_HW.shape)
    pixels_hw2 = grid(size, longest)
    uvs_hw2 = ((pixels_hw2 + 0.5) / torch.tensor(size)).flip(-1)
    if span == 360:
        pixels_hw2 = torch.cat((pixels_hw2, pixels_hw2[:, :1]), 1)
        uvs_hw2 = torch.cat((uvs_hw2, uvs_hw2[:, :1] + torch.tensor([1.0, 0.0])), 1)
    at = tuple(pixels_hw2.unbind(-1))
    rays_hw3 = rays(pixels_hw2, size, field_of_view) if span is None else cylinder_rays(pixels_hw2, size, span)
    away_hw = distances(depth_HW[at].float(), near, far)
    normals_hw3 = None if normals_3HW is None else normals_3HW.movedim(0, -1)[at]
    if normals_hw3 is not None and span is not None:
        normals_hw3 = turned(normals_hw3, rays_hw3)
    faces_M3 = grid_faces(*away_hw.shape)
    if tear > 0:
        faces_M3 = faces_M3[~torn(faces_M3, away_hw, rays_hw3, normals_hw3, tear)]
    if keep_HW is not None:
        faces_M3 = faces_M3[(keep_HW[at] > 0.5).flatten()[faces_M3].all(1)]
    if not len(faces_M3):
        raise ValueError("nothing is left of the surface: raise the tearing threshold or keep more of it")
    used, faces = faces_M3.unique(return_inverse=True)
    return Surface((rays_hw3 * away_hw[..., None]).flatten(0, 1)[used], uvs_hw2.flatten(0, 1)[used],
                   faces.view_as(faces_M3), None if normals_hw3 is None else normals_hw3.flatten(0, 1)[used])


def grid_faces(height: int, width: int) -> torch.Tensor:
    """Two triangles (M, 3) per square of a grid whose vertices are numbered row by row."""
    number_hw = torch.arange(height * width).view(height, width)
    top_left, top_right = number_hw[:-1, :-1].flatten(), number_hw[:-1, 1:].flatten()
    low_left, low_right = number_hw[1:, :-1].flatten(), number_hw[1:, 1:].flatten()
    return torch.stack((top_left, low_left, low_right, top_left, low_right, top_right), 1).view(-1, 3)


def torn(faces_M3: torch.Tensor, away_hw: torch.Tensor, rays_hw3: torch.Tensor, normals_hw3: torch.Tensor | None,
         tear: float) -> torch.Tensor:
    """Which faces (M,) span a step in distance of more than the fraction `tear`.

    A plane with normal n has at two rays p, q distances in the ratio n.p : n.q, whatever its distance; a step counts
    only as far as it exceeds what the normals of both ends predict so.
    """
    log_N, rays_N3 = away_hw.flatten().log(), rays_hw3.flatten(0, 1)
    normals_N3 = None if normals_hw3 is None else normals_hw3.flatten(0, 1)
    torn_M = torch.zeros(len(faces_M3), dtype=torch.bool)
    for one, other in ((0, 1), (1, 2), (2, 0)):
        one, other = faces_M3[:, one], faces_M3[:, other]
        step_M = log_N[other] - log_N[one]
        excess_M = step_M.abs()
        if normals_N3 is not None:
            explained = [(_facing(normals_N3[end], rays_N3[one]) / _facing(normals_N3[end], rays_N3[other])).log()
                         * step_M.sign() for end in (one, other)]
            excess_M = excess_M - torch.minimum(*explained).clamp_min(0)
        torn_M |= excess_M > math.log1p(tear)
    return torn_M


def _facing(normals_M3: torch.Tensor, rays_M3: torch.Tensor) -> torch.Tensor:
    return -(normals_M3 * rays_M3).sum(1).clamp_max(-GRAZING)


def vertex_normals(surface: Surface) -> torch.Tensor:
    """(N, 3) unit vectors: the mean over the faces around each vertex, weighted by their areas."""
    a_M3, b_M3, c_M3 = surface.points_N3[surface.faces_M3].unbind(1)
    faces_M3 = torch.linalg.cross(b_M3 - a_M3, c_M3 - a_M3)
    sums_N3 = torch.zeros_like(surface.points_N3)
    for corner in range(3):
        sums_N3.index_add_(0, surface.faces_M3[:, corner], faces_M3)
    return F.normalize(sums_N3, dim=1)


def glb(surface: Surface, picture_3HW: torch.Tensor) -> bytes:
    """A binary glTF 2.0 file of the surface with the picture (3, H, W) in [0, 1] as its texture.

    With normals the surface is lit by the viewer's lights; without them it shows the picture's colours as they are, and
    its vertices have the normals of the faces around them.
    """
    png = io.BytesIO()
    to_pil(picture_3HW).save(png, "PNG")
    points = surface.points_N3.numpy().astype("<f4")
    lit = surface.normals_N3 is not None
    normals = (surface.normals_N3 if lit else vertex_normals(surface)).numpy().astype("<f4")
    arrays = {"POSITION": points, "TEXCOORD_0": surface.uvs_N2.numpy().astype("<f4"), "NORMAL": normals}
    accessors = [{"bufferView": number, "componentType": 5126, "count": len(points), "type": f"VEC{array.shape[1]}"}
                 for number, array in enumerate(arrays.values())]
    accessors[0] |= {"min": points.min(0).tolist(), "max": points.max(0).tolist()}
    accessors.append({"bufferView": len(arrays), "componentType": 5125, "count": surface.faces_M3.numel(),
                      "type": "SCALAR"})
    parts = [*(array.tobytes() for array in arrays.values()), surface.faces_M3.numpy().astype("<u4").tobytes()]
    views, binary = [], b""
    for part in parts:
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(part)})
        binary += part    # all are whole numbers of 4 bytes
    material = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}, "metallicFactor": 0.0},
                "doubleSided": True} | ({} if lit else {"extensions": {"KHR_materials_unlit": {}}})
    document = {
        "asset": {"version": "2.0", "generator": "Jodi"},
        "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {name: number for number, name in enumerate(arrays)},
                                    "indices": len(arrays), "material": 0}]}],
        "materials": [material], "textures": [{"source": 0, "sampler": 0}],
        # Clamp to the edge; a closed panorama goes on at its other side.
        "samplers": [{"wrapS": 10497 if surface.uvs_N2[:, 0].max() > 1 else 33071, "wrapT": 33071}],
        # Not in a buffer: an offline ComfyUI forbids its viewer to fetch that, and the surface would be white.
        "images": [{"uri": "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()}],
        "accessors": accessors, "bufferViews": views, "buffers": [{"byteLength": len(binary)}],
    } | ({} if lit else {"extensionsUsed": ["KHR_materials_unlit"]})
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    return (struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(binary)) + struct.pack("<I4s", len(text), b"JSON")
            + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary)


def ply(surface: Surface, picture_3HW: torch.Tensor) -> bytes:
    """A binary PLY point cloud of the vertices, coloured by the picture (3, H, W) in [0, 1]; normals if there are."""
    height, width = picture_3HW.shape[1:]
    column_N, row_N = (surface.uvs_N2.frac() * torch.tensor([width, height])).long().unbind(1)
    values_N, names = surface.points_N3, ["x", "y", "z"]
    if surface.normals_N3 is not None:
        values_N, names = torch.cat((values_N, surface.normals_N3), 1), [*names, "nx", "ny", "nz"]
    vertices = np.zeros(len(values_N), [(name, "<f4") for name in names] + [(name, "u1") for name in COLOURS])
    for name, column in zip(names, values_N.T.numpy()):
        vertices[name] = column
    for name, channel in zip(COLOURS, (picture_3HW[:, row_N, column_N].clamp(0, 1) * 255).round().numpy()):
        vertices[name] = channel
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}",
              *(f"property float {name}" for name in names), *(f"property uchar {name}" for name in COLOURS),
              "end_header\n"]
    return "\n".join(header).encode() + vertices.tobytes()
