"""The latent format: scale, sizes, and the colours in which the host previews a latent while it is sampled."""

import math
from functools import cached_property

import torch
import torch.nn.functional as F
from comfy.latent_formats import LatentFormat

from ...jodi_core.domains import JointConfig, nearest_bin


class JointLatent(LatentFormat):
    latent_dimensions = 3
    temporal_downscale_ratio = 1

    def __init__(self, config: JointConfig):
        self.latent_channels = config.in_channels
        self.scale_factor = config.latent_scale
        # So that the host's empty latents, made for 8 pixels per cell, are brought to the right size.
        self.spacial_downscale_ratio = nearest_bin(1, 1, config.bins)[0] // config.input_size
        self.latent_rgb_factors_reshape = lay_out_domains
        self.vae = None

    def preview_with(self, vae) -> None:
        """The autoencoder that belongs to the model; without one there are no previews."""
        self.vae = vae

    @property
    def latent_rgb_factors(self):
        return self.colours[:-1].tolist() if self.vae else None

    @property
    def latent_rgb_factors_bias(self):
        return self.colours[-1].tolist()

    @cached_property
    def colours(self) -> torch.Tensor:
        return fit_colours(self.vae, self.scale_factor)


def lay_out_domains(x_BCDHW: torch.Tensor) -> torch.Tensor:
    """The domains of the first sample side by side, more than four in two rows: (1, C, rows * h, columns * w)."""
    count = x_BCDHW.shape[2]
    columns = count if count <= 4 else math.ceil(count / 2)
    rows = math.ceil(count / columns)
    x_CDHW = F.pad(x_BCDHW[0], (0, 0, 0, 0, 0, rows * columns - count))
    return x_CDHW.unflatten(1, (rows, columns)).permute(0, 1, 3, 2, 4).flatten(3, 4).flatten(1, 2)[None]


def fit_colours(vae, scale: float, cells: int = 16) -> torch.Tensor:
    """(C + 1, 3): the linear map, bias last, from a scaled latent cell to the mean colour (-1..1) of its pixels.

    Least squares over two random pictures, one of flat squares and one of soft colours. The host's model files carry
    such numbers for the autoencoders that it knows; fitting suits any.
    """
    factor = vae.spacial_compression_encode()
    generator = torch.Generator().manual_seed(0)
    squares, soft = (torch.rand(1, 3, side, side, generator=generator) for side in (cells // 2, cells // 4))
    size = (cells * factor, cells * factor)
    pictures_B3HW = torch.cat([F.interpolate(squares, size), F.interpolate(soft, size, mode="bilinear")])
    latents_BCDhw = vae.encode(pictures_B3HW.movedim(1, -1)).float() * scale
    cells_NC = latents_BCDhw[:, :, 0].movedim(1, -1).flatten(0, 2).cpu()
    colours_N3 = F.avg_pool2d(pictures_B3HW * 2 - 1, factor).movedim(1, -1).flatten(0, 2)
    cells_NC = torch.cat([cells_NC, torch.ones(len(cells_NC), 1)], dim=1)
    # A little ridge: channels that do not matter to colour stay at zero.
    gram_CC = cells_NC.T @ cells_NC + 1e-3 * len(cells_NC) * torch.eye(cells_NC.shape[1])
    return torch.linalg.solve(gram_CC, cells_NC.T @ colours_N3)
