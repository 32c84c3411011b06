"""How well pictures of a domain agree with the truth.

Every function compares two batches of 8-bit pictures (N, 3, H, W), post-processed as the product writes them, and
pools all pixels of all pictures unless it says otherwise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .segmentation import SEGMENTATION_NAMES, nearest_class

DEPTH_FLOOR = 0.05  # of the full range: the farthest mountains have 0.06
DELTA = 1.25
POSE_LIT = 0.3      # a pixel belongs to the skeleton if any channel is brighter
_CHUNK = 32         # pictures


def unit(picture_N3HW: Tensor) -> Tensor:
    return picture_N3HW.float() / 255


def to_bytes(picture_N3HW: Tensor) -> Tensor:
    """[0, 1] -> uint8, rounded to nearest."""
    return (picture_N3HW.clamp(0, 1) * 255).round().byte().cpu()


def depth(found_N3HW: Tensor, truth_N3HW: Tensor) -> dict[str, float]:
    """Of disparity maps stretched to their full range, outside the true sky (0), both raised to DEPTH_FLOOR:
    `delta1`, share of pixels with max(found / truth, truth / found) below 1.25, and `abs_rel`, mean of
    |found - truth| / truth."""
    land = truth_N3HW[:, 0] > 0
    found_P, truth_P = (unit(picture[:, 0][land]).clamp_min(DEPTH_FLOOR) for picture in (found_N3HW, truth_N3HW))
    ratio_P = torch.maximum(found_P / truth_P, truth_P / found_P)
    return {"delta1": (ratio_P < DELTA).float().mean().item(),
            "abs_rel": ((found_P - truth_P).abs() / truth_P).mean().item()}


def normal(found_N3HW: Tensor, truth_N3HW: Tensor) -> dict[str, float]:
    """`mean` and `median` angle between unit normals in degrees."""
    angles = []
    for found, truth in zip(found_N3HW.split(_CHUNK), truth_N3HW.split(_CHUNK)):
        found, truth = (F.normalize(unit(picture) * 2 - 1, dim=1) for picture in (found, truth))
        # The chord keeps small angles exact where the arc cosine does not.
        angles.append(torch.rad2deg(2 * torch.asin(((found - truth).norm(dim=1) / 2).clamp_max(1))).flatten())
    angles_P = torch.cat(angles)
    return {"mean": angles_P.mean().item(), "median": angles_P.median().item()}


def classes(picture_N3HW: Tensor) -> Tensor:
    """Class numbers (N, H, W) of segmentation pictures."""
    return torch.cat([nearest_class(unit(part) * 2 - 1) for part in picture_N3HW.split(_CHUNK)])


def segmentation(found_N3HW: Tensor, truth_N3HW: Tensor) -> dict[str, float]:
    """`miou`, mean over the classes present in the truth of intersection / union, and `accuracy` of pixels."""
    count = len(SEGMENTATION_NAMES)
    pairs = (classes(truth_N3HW) * count + classes(found_N3HW)).flatten().bincount(minlength=count ** 2)
    confusion_KK = pairs.view(count, count).double()  # rows: truth
    hit_K, true_K, found_K = confusion_KK.diagonal(), confusion_KK.sum(1), confusion_KK.sum(0)
    present = true_K > 0
    return {"miou": (hit_K / (true_K + found_K - hit_K))[present].mean().item(),
            "accuracy": (hit_K.sum() / true_K.sum()).item()}


def lines(found_N3HW: Tensor, truth_N3HW: Tensor) -> dict[str, float]:
    """`f1` of pixels brighter than one half; a line pixel counts as met by one of the other picture within 1 pixel."""
    found, truth = (picture[:, :1] > 127 for picture in (found_N3HW, truth_N3HW))
    met = [_met(found, truth), _met(truth, found)]
    precision, recall = met
    return {"f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0}


def _met(pixels_N1HW, others_N1HW):
    near_N1HW = F.max_pool2d(others_N1HW.float(), 3, 1, 1) > 0
    return (pixels_N1HW & near_N1HW).sum().item() / max(1, pixels_N1HW.sum().item())


def pose(found_N3HW: Tensor, truth_N3HW: Tensor) -> dict[str, float]:
    """`iou` of the pixels lit in any channel."""
    found, truth = (picture.amax(1) > 255 * POSE_LIT for picture in (found_N3HW, truth_N3HW))
    return {"iou": (found & truth).sum().item() / max(1, (found | truth).sum().item())}


def mask(found_N3HW: Tensor, truth_N3HW: Tensor) -> dict[str, float]:
    """`iou` of the pixels brighter than one half."""
    found, truth = (picture[:, 0] > 127 for picture in (found_N3HW, truth_N3HW))
    return {"iou": (found & truth).sum().item() / max(1, (found | truth).sum().item())}


def psnr(found_N3HW: Tensor, truth_N3HW: Tensor) -> dict[str, float]:
    """`psnr` in dB, the mean over the pictures of each one's (of at least one level's error in all)."""
    error_N = (unit(found_N3HW) - unit(truth_N3HW)).square().mean((1, 2, 3))
    return {"psnr": (-10 * error_N.clamp_min(1e-7).log10()).mean().item()}


METRICS = {"image": psnr, "lineart": lines, "edge": lines, "depth": depth, "normal": normal, "albedo": psnr,
           "segmentation": segmentation, "openpose": pose, "shadow": mask}


def compare(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[tuple[str, str], float]:
    """(domain, metric) -> value for every domain that was found; `psnr` of those that have no metric of their own."""
    return {(name, metric): value for name in found
            for metric, value in METRICS.get(name, psnr)(found[name], truth[name]).items()}


def share(value: float, baseline: float, ceiling: float) -> float:
    """Of the distance from baseline to ceiling, how much is covered; works in either direction."""
    return (value - baseline) / (ceiling - baseline)
