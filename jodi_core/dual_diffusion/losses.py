"""What both halves of the model are trained with (spec 7.2 and 7.3), as functions of the random draws.

B samples, L places, V classes, M blanks.
"""

import torch
from torch import Tensor

from .text_sampling import log_probabilities

SAMPLING_EPS, NOISE_EPS = 1e-3, 1e-3
DROPOUT = 0.1    # of the caption of a picture


def text_times(u_B: Tensor) -> Tensor:
    """(B,) times in 0.001..1 from uniform draws, spread evenly over the batch."""
    count = len(u_B)
    even_B = (u_B / count + torch.arange(count, device=u_B.device) / count) % 1
    return (1 - SAMPLING_EPS) * even_B + SAMPLING_EPS


def blank_places(u_BL: Tensor, t_B: Tensor, label_BL: Tensor) -> Tensor:
    """(B, L) bool: places that become blanks, each with probability 0.999 t; never where the label is 0."""
    return (u_BL < (1 - NOISE_EPS) * t_B[:, None]) & label_BL.bool()


def text_loss(logits_MV: Tensor, words_BL: Tensor, blank_BL: Tensor, t_B: Tensor) -> Tensor:
    """(B,) losses: -log p of the true words at the blanks / t, over *all* L places of the sequence.

    logits_MV: at the blanks, row by row; words_BL: the true token numbers.
    """
    loss_M = -log_probabilities(logits_MV).gather(-1, words_BL[blank_BL][:, None].to(logits_MV.device))[:, 0]
    loss_BL = loss_M.new_zeros(words_BL.shape).masked_scatter(blank_BL.to(loss_M.device), loss_M)
    return (loss_BL / t_B[:, None].to(loss_M.device)).sum(1) / words_BL.shape[1]


def picture_times(normal_B: Tensor) -> Tensor:
    """(B,) times in 1..1000 from normal draws: logit-normal, in whole numbers, without a shift."""
    return 1000 - (1000 * torch.sigmoid(normal_B)).floor()


def noised(z_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
    sigma_B111 = t_B.view(-1, 1, 1, 1) / 1000
    return (1 - sigma_B111) * z_BCHW + sigma_B111 * noise_BCHW


def picture_loss(velocity_BCHW: Tensor, z_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """(B,) mean squared errors of the clean latents that a velocity implies."""
    sigma_B111 = t_B.view(-1, 1, 1, 1) / 1000
    return (sigma_B111 * (velocity_BCHW.float() - (noise_BCHW - z_BCHW))).square().flatten(1).mean(1)
