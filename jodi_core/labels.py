"""Labels in the forms that other tools use: depth either way round, normal conventions, line masks, class numbers.

Pictures are (B, C, H, W) floats in [0, 1] with C = 1, 3 or 4, as `pictures.load_picture` takes them; they may have
been through an 8-bit file or a resize. Every function raises its ValueError for another shape.
"""

import torch
import torch.nn.functional as F

from .pictures import load_picture
from .segmentation import SEGMENTATION_NAMES, nearest_class

# Convention -> direction of the red and of the green axis against x right, y up; blue points to the viewer in all.
# The labels that the published model was trained on, and so what it paints, have red to the left (seen on the
# example data of its repository; spec 3 does not say).
PUBLISHED, OPENGL, DIRECTX = "published model", "OpenGL", "DirectX"
NORMAL_AXES = {PUBLISHED: (-1.0, 1.0), OPENGL: (1.0, 1.0), DIRECTX: (1.0, -1.0)}


def depth_values(picture_BCHW: torch.Tensor, near_white: bool = True) -> torch.Tensor:
    """Grey of a depth label, (B, H, W) in [0, 1]. Labels have the nearest white; False turns them round."""
    depth_BHW = load_picture(picture_BCHW).mean(1)
    return depth_BHW if near_white else 1 - depth_BHW


def line_values(picture_BCHW: torch.Tensor, inverted: bool = False) -> torch.Tensor:
    """Lines of a lineart or edge label as 1 on 0 (`inverted`: 0 on 1), (B, H, W) in [0, 1].

    Edges come white on black and lineart black on white; what most of a picture shows is taken for its ground.
    """
    lines_BHW = load_picture(picture_BCHW).mean(1)
    white_ground_B = lines_BHW.flatten(1).median(1).values > 0.5
    return torch.where(white_ground_B[:, None, None] != inverted, 1 - lines_BHW, lines_BHW)


def unit_normals(picture_BCHW: torch.Tensor, convention: str = OPENGL) -> torch.Tensor:
    """Unit vectors (B, 3, H, W), x right, y up, z to the viewer, of a normal label in a convention of NORMAL_AXES."""
    normals_B3HW = load_picture(picture_BCHW) * 2 - 1
    return F.normalize(normals_B3HW, dim=1) * _axes(normals_B3HW, convention)


def paint_normals(normals_B3HW: torch.Tensor, convention: str = OPENGL) -> torch.Tensor:
    """Vectors (B, 3, H, W), x right, y up, z to the viewer -> their label in a convention, in [0, 1]."""
    return (normals_B3HW * _axes(normals_B3HW, convention) + 1) / 2


def _axes(like: torch.Tensor, convention: str) -> torch.Tensor:
    return like.new_tensor([*NORMAL_AXES[convention], 1.0])[:, None, None]


def class_numbers(picture_BCHW: torch.Tensor) -> torch.Tensor:
    """Class numbers (B, H, W), int64, of a segmentation label: the nearest colour's position in SEGMENTATION_NAMES.

    Between two colours, where a resize has mixed them, this can be a third class: resize with nearest pixels.
    """
    return nearest_class(load_picture(picture_BCHW) * 2 - 1)


def class_mask(classes_BHW: torch.Tensor, name: str) -> torch.Tensor:
    """1.0 where a class of SEGMENTATION_NAMES is, (B, H, W) float32."""
    return (classes_BHW == SEGMENTATION_NAMES.index(name)).float()
