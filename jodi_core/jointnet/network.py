"""JointNet: two U-Nets side by side, and what they tell each other (spec 1.1).

The exchange is written here, once; the U-Nets come from a library (`unet.py`) or from a host, as long as each of them
is a `Branch`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..domains import JointRoles
from .config import JointNetConfig


class Branch(Protocol):
    """A U-Net (a torch module) in two halves. `text` is whatever `read_text` returns; temb is (1 or B, E)."""

    def embed_time(self, t_B: Tensor, dtype: torch.dtype) -> Tensor:
        """t_B (1 or B,) timesteps in 0..999 -> temb."""

    def read_text(self, text_TMC: Tensor, mask_TM: Tensor | None = None) -> Any:
        """What the attentions need of the text features; constant over a run. B must be a multiple of T below."""

    def encode(self, x_BCHW: Tensor, temb: Tensor, text: Any, added_BCHW: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Encoder features that become skip connections, in order, and the output of the middle block.

        added_BCHW: is added to the result of the first convolution, which is the first skip connection.
        """

    def decode(self, skips: list[Tensor], middle: Tensor, temb: Tensor, text: Any) -> Tensor:
        """(B, C, h, w) predicted noise."""


class JointNet(nn.Module):
    """Both branches, `unet` (the picture) and `jointnet` (the map), each with the exchange layers under their
    published names: parameters are called as in the files, after `unet.` and `jointnet.`.

    make_branch: makes one `Branch`, on the given device, in the given dtype.  operations: where the exchange layers
    come from, so that a host can bring its casting ones.
    """

    def __init__(self, config: JointNetConfig, make_branch: Callable[[], nn.Module], *, device=None, dtype=None,
                 operations=nn):
        super().__init__()
        self.config = config
        self.unet, self.jointnet = make_branch(), make_branch()
        for branch in self.branches:
            add_exchange(branch, config, operations, device=device, dtype=dtype)

    @property
    def branches(self) -> tuple[Branch, Branch]:
        """In the order of `config.domains`."""
        return self.unet, self.jointnet

    def read_text(self, text_TMC: Tensor, mask_TM: Tensor | None = None) -> tuple:
        """What both branches need of the text features (T, M, C), T dividing the rows of x, for `forward`.

        mask_TM: False rows are not there, for texts of different lengths; those of CLIP all count.
        """
        return tuple(branch.read_text(text_TMC, mask_TM) for branch in self.branches)

    def forward(self, x_BCDHW: Tensor, t_B: Tensor, text: tuple, roles: JointRoles,
                known_BCDHW: Tensor | None = None) -> Tensor:
        """Predicted noise of the generated domains, zeros in the slots of given ones.

        x_BCDHW      joint latent at time t, given domains noised like the others. Neighbouring rows share a text: row
                     b reads text b // (B / T)
        t_B          (1,) or (B,) timesteps in 0..999
        text         from `read_text`
        known_BCDHW  inpaint variant, from `known_input`: (1 or B, 5, D, h, w); None if nothing is known

        The decoder of a given domain is left out, which is exact: its features go to the other branch before it.
        An ignored domain leaves the other branch alone, without any exchange. That was not trained.
        ValueError if the latent does not fit the roles.
        """
        return predict_noise(self.branches, self.config.masked_input, x_BCDHW, t_B, text, roles, known_BCDHW)


def predict_noise(branches: tuple[Branch, Branch], masked_input: bool, x_BCDHW: Tensor, t_B: Tensor, text: tuple,
                  roles: JointRoles, known_BCDHW: Tensor | None = None) -> Tensor:
    """`JointNet.forward` over branches that somebody else keeps, in the order of the domains."""
    roles.check_latent(x_BCDHW)
    branches, text = [branches[i] for i in roles.active], [text[i] for i in roles.active]
    x = x_BCDHW.unbind(2)
    temb = [branch.embed_time(t_B, x_BCDHW.dtype) for branch in branches]
    if len(branches) == 1:
        skips, middle = branches[0].encode(x[0], temb[0], text[0], None)
        return branches[0].decode(skips, middle, temb[0], text[0])[:, :, None]
    if masked_input:
        known_BCDHW = nothing_known(x_BCDHW) if known_BCDHW is None else known_BCDHW.to(x_BCDHW)
        known = known_BCDHW.expand(len(x_BCDHW), -1, -1, -1, -1).unbind(2)
    encoded = []
    for own, other in ((0, 1), (1, 0)):
        added = branches[own].jointnet_rgb_in_trans(x[other])
        if masked_input:
            added = added + branches[own].jointnet_masked_latent_conv(torch.cat([known[own], known[other]], dim=1))
        encoded.append(branches[own].encode(x[own], temb[own], text[own], added))
    noise_BCDHW = torch.zeros_like(x_BCDHW)
    for own in roles.generated_slots:
        skips, middle = receive(branches[1 - own], *encoded[own], *encoded[1 - own])
        noise_BCDHW[:, :, own] = branches[own].decode(skips, middle, temb[own], text[own])
    return noise_BCDHW


def receive(sender: nn.Module, skips: list[Tensor], middle: Tensor, sent_skips: list[Tensor],
            sent_middle: Tensor) -> tuple[list[Tensor], Tensor]:
    """Encoder features of a branch with those of the other one, `sender`, added through the sender's projections."""
    skips = [own + project(sent) for own, project, sent in zip(skips, sender.jointnet_down_blocks, sent_skips)]
    return skips, middle + sender.jointnet_mid_block(sent_middle)


def add_exchange(branch: nn.Module, config: JointNetConfig, operations=nn, *, device=None, dtype=None) -> None:
    """Gives a U-Net the layers of spec 1.5, at zero, which leave it as it was until they are trained or loaded."""
    where = {"device": device, "dtype": dtype}
    first, last = config.channels[0], config.channels[-1]
    branch.jointnet_rgb_in_trans = operations.Conv2d(config.in_channels, first, 3, padding=1, **where)
    branch.jointnet_down_blocks = nn.ModuleList(operations.Conv2d(width, width, 1, **where)
                                                for width in config.skip_channels)
    branch.jointnet_mid_block = operations.Conv2d(last, last, 1, **where)
    if config.masked_input:
        known = 2 * (1 + config.in_channels)
        branch.jointnet_masked_latent_conv = operations.Conv2d(known, first, 3, padding=1, **where)
    for name, parameter in branch.named_parameters():
        if name.startswith("jointnet_") and not parameter.is_meta:
            nn.init.zeros_(parameter)


def known_input(mask_B1DHW: Tensor, clean_BCDHW: Tensor) -> Tensor:
    """The inpaint variant's input (B, 5, D, h, w): mask (1 = generate), and the clean latents where it is 0."""
    return torch.cat([mask_B1DHW, clean_BCDHW * (1 - mask_B1DHW)], dim=1)


def nothing_known(like_BCDHW: Tensor) -> Tensor:
    """The inpaint variant's input (1, 5, D, h, w) for generation without any given latents."""
    like_BCDHW = like_BCDHW[:1]
    return known_input(torch.ones_like(like_BCDHW[:, :1]), torch.zeros_like(like_BCDHW))
