"""Jodi Label Convert: label pictures in the forms that other nodes expect."""

import torch
from comfy_api.latest import io

from ..jodi_core.labels import (DIRECTX, NORMAL_AXES, OPENGL, PUBLISHED, class_mask, class_numbers, depth_values,
                                line_values, paint_normals, unit_normals)
from ..jodi_core.segmentation import SEGMENTATION_NAMES

DEPTH, NORMAL, LINES, SEGMENTATION = "depth", "normal", "lines", "segmentation"
WHITE, BLACK = "white", "black"


def convert(picture_BCHW: torch.Tensor, kind: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """(picture (B, 3, H, W), mask (B, H, W)) of a label; `kind` is what the node's combo holds."""
    if kind["kind"] == NORMAL:
        normals_B3HW = unit_normals(picture_BCHW, kind["painted_by"])
        return paint_normals(normals_B3HW, kind["convention"]), normals_B3HW[:, 2].clamp(0, 1)
    if kind["kind"] == SEGMENTATION:
        classes_BHW = class_numbers(picture_BCHW)
        grey_BHW, mask_BHW = classes_BHW.float() / 255, class_mask(classes_BHW, kind["class_name"])
    elif kind["kind"] == DEPTH:
        grey_BHW = mask_BHW = depth_values(picture_BCHW, kind["nearest"] == WHITE)
    else:
        grey_BHW = mask_BHW = line_values(picture_BCHW, kind["invert"])
    return grey_BHW[:, None].expand(-1, 3, -1, -1), mask_BHW


class JodiLabelConvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        nearest = io.Combo.Input("nearest", options=[WHITE, BLACK],
                                 tooltip="What the nearest becomes. Labels come with the nearest white.")
        painted_by = io.Combo.Input("painted_by", options=list(NORMAL_AXES), default=PUBLISHED,
                                    tooltip="The convention of the label. The published model paints surfaces that "
                                            "face left red; the bundled tiny model paints OpenGL.")
        convention = io.Combo.Input("convention", options=[OPENGL, DIRECTX],
                                    tooltip="OpenGL: red right, green up (Blender, Unity, glTF). DirectX: red right, "
                                            "green down (Unreal).")
        invert = io.Boolean.Input("invert", default=False,
                                  tooltip="Off: lines are white, and 1 in the mask. On: lines are black, and 0.")
        class_name = io.Combo.Input("class_name", options=list(SEGMENTATION_NAMES), default="person",
                                    tooltip="The class that the mask shows.")
        return io.Schema(
            node_id="JodiLabelConvert",
            display_name="Jodi Label Convert",
            category="image/jodi",
            description="Brings a label picture into the form that other nodes expect, and makes a mask of it: depth "
                        "either way round, normals as OpenGL or DirectX, lines as a mask, one class as a mask with all "
                        "class numbers beside it.",
            search_aliases=["depth to mask", "invert depth", "normal map convert", "flip green", "lineart mask",
                            "segmentation mask", "class mask", "index map", "select class"],
            inputs=[
                io.Image.Input("label", tooltip="A label picture, of Jodi Label Decode or from a file."),
                io.DynamicCombo.Input("kind", tooltip="Which label it is. 'lines': lineart or edge.", options=[
                    io.DynamicCombo.Option(DEPTH, [nearest]),
                    io.DynamicCombo.Option(NORMAL, [painted_by, convention]),
                    io.DynamicCombo.Option(LINES, [invert]),
                    io.DynamicCombo.Option(SEGMENTATION, [class_name]),
                ]),
            ],
            outputs=[
                io.Image.Output(tooltip="The label converted. segmentation: grey, class number / 255, which an 8-bit "
                                        "PNG keeps exactly."),
                io.Mask.Output(tooltip="depth, lines: the same as values. normal: how far the surface faces the "
                                       "viewer. segmentation: 1 where the class is."),
            ],
        )

    @classmethod
    def execute(cls, label, kind=None) -> io.NodeOutput:
        if not isinstance(kind, dict):
            raise ValueError("kind: not one of the choices that the node offers")
        picture_B3HW, mask_BHW = convert(label.movedim(-1, 1), kind)
        return io.NodeOutput(picture_B3HW.movedim(1, -1).contiguous(), mask_BHW)
