"""Jodi Depth Mesh: a picture and its depth as a mesh and a point cloud."""

import io as bytes_io

import torch
from comfy_api.latest import Types, io
from torch.nn.utils.rnn import pad_sequence

from ..jodi_core.fitting import same_shape
from ..jodi_core.geometry import Surface, build_surface, glb, ply
from ..jodi_core.labels import NORMAL_AXES, PUBLISHED, depth_values, unit_normals
from ..jodi_core.pictures import load_picture


def like(values_BCHW: torch.Tensor, depth_BHW: torch.Tensor, name: str) -> torch.Tensor:
    """An input in the size of the depth (nearest pixels), one for each of its maps.

    ValueError for another count, and for another shape, which would lie beside the depth.
    """
    if len(values_BCHW) not in (1, len(depth_BHW)):
        raise ValueError(f"{len(depth_BHW)} depth maps need as many of '{name}', or one, not {len(values_BCHW)}")
    own, size = values_BCHW.shape[-2:], depth_BHW.shape[-2:]
    if not same_shape(own, size):
        raise ValueError(f"'{name}' has {own[1]}x{own[0]} pixels, but the depth {size[1]}x{size[0]}: they must have "
                         "the same shape to lie over each other, so crop or resize one of them")
    sized_BCHW = torch.nn.functional.interpolate(values_BCHW.float(), size=depth_BHW.shape[1:], mode="nearest-exact")
    return sized_BCHW.expand(len(depth_BHW), -1, -1, -1)


def as_mesh(surfaces: list[Surface], picture_B3HW: torch.Tensor) -> Types.MESH:
    """The host's mesh: surfaces of one batch, padded to a common length, with the pictures as textures."""
    return Types.MESH(
        vertices=pad_sequence([one.points_N3 for one in surfaces], batch_first=True),
        faces=pad_sequence([one.faces_M3 for one in surfaces], batch_first=True),
        uvs=pad_sequence([one.uvs_N2 for one in surfaces], batch_first=True),
        texture=picture_B3HW.movedim(1, -1).expand(len(surfaces), -1, -1, -1),
        vertex_counts=torch.tensor([len(one.points_N3) for one in surfaces]),
        face_counts=torch.tensor([len(one.faces_M3) for one in surfaces]))


FLAT, AROUND = FORMS = ("camera", "cylinder")


class JodiDepthMesh(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiDepthMesh",
            display_name="Jodi Depth Mesh",
            category="3d/jodi",
            description="Picture and depth label as a textured mesh and as a point cloud, in ComfyUI's own 3D types: "
                        "for Save 3D Model, Preview 3D and Preview Point Cloud.",
            search_aliases=["depth to mesh", "depth to 3d", "point cloud", "glb", "ply", "relief", "2.5d"],
            inputs=[
                io.Image.Input("image", tooltip="What the surface looks like."),
                io.Image.Input("depth", tooltip="The depth label, the nearest white."),
                io.Float.Input("field_of_view", default=50.0, min=1.0, max=170.0, step=0.5,
                               tooltip="Of the camera, in degrees across the width. Too small a value gives a deep, "
                                       "tube-like space, too large a value a flat one."),
                io.Float.Input("near", default=1.0, min=0.001, max=1000.0, step=0.1,
                               tooltip="Distance of the nearest point (white); glTF takes it for metres."),
                io.Float.Input("far", default=5.0, min=0.002, max=100000.0, step=0.1,
                               tooltip="Distance of the farthest point (black). The closer to 'near', the flatter."),
                io.Float.Input("tear", default=0.1, min=0.0, max=10.0, step=0.01,
                               tooltip="Faces that span a step in distance of more than this fraction are left out, so "
                                       "that things come off what is behind them. 0: nothing is torn."),
                io.Int.Input("resolution", default=512, min=2, max=2048,
                             tooltip="Most vertices along the longer side; the texture keeps the picture's size."),
                io.Image.Input("normal", optional=True,
                               tooltip="The normal label: the surface can be lit, and slanted ground is not torn."),
                io.Combo.Input("normal_painted_by", options=list(NORMAL_AXES), default=PUBLISHED, optional=True,
                               tooltip="The convention of the normal label, as in Jodi Label Convert."),
                io.Mask.Input("mask", optional=True,
                              tooltip="Only where it is 1 there is a surface; for instance the sky left out."),
                io.Combo.Input("form", options=list(FORMS), default=FLAT, optional=True,
                               tooltip="'camera': an ordinary picture. 'cylinder': a panorama around the viewer, whose "
                                       "depth is the distance from the axis; field_of_view is not used."),
                io.Float.Input("span", default=360.0, min=1.0, max=360.0, step=1.0, optional=True,
                               tooltip="Degrees around a cylinder; at 360 it is closed."),
            ],
            outputs=[
                io.Mesh.Output("mesh", tooltip="Textured, without normals; a batch gives as many."),
                io.File3DGLB.Output("model_3d", tooltip="The mesh of the first picture as a GLB file, with normals if "
                                                        "they are given."),
                io.File3DPLY.Output("points", tooltip="The vertices of the first picture as a coloured point cloud."),
            ],
        )

    @classmethod
    def execute(cls, image, depth, field_of_view, near, far, tear, resolution, normal=None,
                normal_painted_by=PUBLISHED, mask=None, form=FLAT, span=360.0) -> io.NodeOutput:
        picture_B3HW, depth_BHW = load_picture(image.movedim(-1, 1)).cpu(), depth_values(depth.movedim(-1, 1)).cpu()
        like(picture_B3HW, depth_BHW, "image")
        normals, masks = [None] * len(depth_BHW), [None] * len(depth_BHW)
        if normal is not None:
            normals = unit_normals(like(normal.movedim(-1, 1).cpu(), depth_BHW, "normal"), normal_painted_by)
        if mask is not None:
            masks = like(mask[:, None].cpu(), depth_BHW, "mask")[:, 0]
        surfaces = [build_surface(depth_HW, near=near, far=far, field_of_view=field_of_view, tear=tear,
                                  longest=resolution, normals_3HW=normals_3HW, keep_HW=keep_HW,
                                  span=span if form == AROUND else None)
                    for depth_HW, normals_3HW, keep_HW in zip(depth_BHW, normals, masks)]
        return io.NodeOutput(as_mesh(surfaces, picture_B3HW),
                             Types.File3D(bytes_io.BytesIO(glb(surfaces[0], picture_B3HW[0])), "glb"),
                             Types.File3D(bytes_io.BytesIO(ply(surfaces[0], picture_B3HW[0])), "ply"))
