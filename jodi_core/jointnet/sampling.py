"""Sampling JointNet: guidance, windows, and areas that are given (spec 1.8, 2, 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..domains import JointRoles
from ..sampling import Callback, guided, sample_flow_euler
from ..tiles import Tiling, merge
from .network import JointNet, known_input
from .schedule import sigmas, timesteps


@dataclass(frozen=True)
class Known:
    """What is given of a joint latent: clean latents (1 or B, 4, D, h, w), and masks (1 or B, 1, D, h, w) that are 1
    where they are made anew."""

    clean_BCDHW: Tensor
    mask_B1DHW: Tensor

    def put_back(self, x_BCDHW: Tensor, noise_BCDHW: Tensor | float = 0.0) -> Tensor:
        """x with the known areas replaced by the clean latents and this noise."""
        return self.mask_B1DHW * x_BCDHW + (1 - self.mask_B1DHW) * (self.clean_BCDHW + noise_BCDHW)

    def for_rows(self, rows: int) -> "Known":
        """Each of several rows repeated for as many neighbours of a larger batch."""
        if len(self.clean_BCDHW) in (1, rows):
            return self
        times = rows // len(self.clean_BCDHW)
        return Known(*(part.repeat_interleave(times, dim=0) for part in (self.clean_BCDHW, self.mask_B1DHW)))


@dataclass(frozen=True)
class Sampling:
    """How to sample. The defaults are those of the published scripts but for `clean_end`.

    strength      share of the steps that is made, from a start that holds the given latents; at 1 it is pure noise
    guidance      above 1; other values evaluate the prompt alone. rescale: see `jodi_core.sampling.guided`
    tiling        evaluate windows instead of the whole; offsets: cells by which they move, one per executed step
    noised_start  known areas start at their noise level, and not as pure noise, as published at strength 1
    clean_end     no noise is left at the end. The published scripts leave 0.029 of it
    """

    steps: int = 50
    strength: float = 1.0
    guidance: float = 7.5
    rescale: float = 0.0
    tiling: Tiling | None = None
    offsets: Sequence[int] | None = None
    noised_start: bool = False
    clean_end: bool = True

    def __post_init__(self):
        count = len(self.timesteps)
        if self.offsets is not None and len(self.offsets) != count:
            raise ValueError(f"{len(self.offsets)} offsets of windows for {count} executed steps")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale {self.rescale} must be from 0 to 1")

    @property
    def timesteps(self) -> list[int]:
        return timesteps(self.steps, self.strength)


@torch.no_grad()
def sample(network: JointNet, noise_BCDHW: Tensor, text_TMC: Tensor, roles: JointRoles, how: Sampling,
           known: Known | None = None, callback: Callback | None = None, mask_TM: Tensor | None = None) -> Tensor:
    """Joint latent (B, 4, D, h, w) float32, known areas as they were given.

    noise_BCDHW  of the active domains. Neighbouring rows share a text, see `JointNet.forward`
    text_TMC     text features in the dtype of computation; with guidance above 1 the negative prompts' come first
    known        given domains have mask 0 there
    callback     its x and x0 are clean latents plus noise, see `schedule`
    mask_TM      which rows of a text count, see `JointNet.read_text`
    """
    levels = sigmas(how.timesteps, how.clean_end)
    noise_BCDHW = noise_BCDHW.float()
    predict = predictor(network, network.read_text(text_TMC, mask_TM), text_TMC.dtype, roles, how, known)
    x_BCDHW = noise_BCDHW * (1 + levels[0] ** 2).sqrt().item()
    keep = None
    if known is not None:
        def keep(x_BCDHW, sigma):
            return known.put_back(x_BCDHW, sigma * noise_BCDHW)
        if how.strength < 1:
            x_BCDHW = known.clean_BCDHW + levels[0].item() * noise_BCDHW
        elif how.noised_start:
            x_BCDHW = keep(x_BCDHW, levels[0].item())
    x_BCDHW = sample_flow_euler(predict, x_BCDHW, levels, callback, keep)
    x_BCDHW = x_BCDHW / (1 + levels[-1] ** 2).sqrt().item()
    return x_BCDHW if known is None else known.put_back(x_BCDHW)


def predictor(network: JointNet, text: tuple, dtype: torch.dtype, roles: JointRoles, how: Sampling,
              known: Known | None):
    """A function (x, sigma) -> predicted noise (B, 4, D, h, w): the network with guidance and windows.

    text: from `JointNet.read_text`; dtype: of computation.
    """
    grid, levels, branches = how.timesteps, sigmas(how.timesteps), 2 if how.guidance > 1 else 1
    given_BCDHW = None
    if known is not None and network.config.masked_input:
        given_BCDHW = known_input(known.mask_B1DHW, known.clean_BCDHW)
        given_BCDHW = given_BCDHW.repeat(branches if len(given_BCDHW) > 1 else 1, 1, 1, 1, 1)

    def predict(x_BCDHW, sigma):
        step = int((levels > sigma).sum())
        t_1 = torch.tensor([grid[step]], device=x_BCDHW.device)
        z_BCDHW = (x_BCDHW / (1 + sigma.item() ** 2) ** 0.5).to(dtype)

        def evaluate(part):
            def rows(z_BCDHW, t_1):
                given = None if given_BCDHW is None else given_BCDHW[part]
                return network(z_BCDHW.repeat(branches, 1, 1, 1, 1), t_1, text, roles, given)
            return (guided(rows, how.guidance, how.rescale) if branches == 2 else rows)(z_BCDHW[part], t_1)

        if how.tiling is None:
            return evaluate(...)
        windows = how.tiling.windows(x_BCDHW.shape[-2:], offset=how.offsets[step] if how.offsets else 0,
                                     full=how.tiling.full_at(step, len(grid)))
        return merge(evaluate, x_BCDHW, windows)
    return predict


def latent_mask(mask_B1HW: Tensor, factor: int, any_unknown: bool = False) -> Tensor:
    """A mask at pixel size, 1 = generate, at latent size, `factor` times smaller: zeros and ones (B, 1, h, w).

    Values from 0.5 on are 1. Of each block the top left pixel counts, as published; any_unknown: all of them, so that
    thin strokes are not lost.
    """
    mask_B1HW = (mask_B1HW >= 0.5).float()
    return F.max_pool2d(mask_B1HW, factor) if any_unknown else mask_B1HW[..., ::factor, ::factor]
