"""The deep-compression autoencoder (DC-AE, Sana variant): pictures <-> latents, deterministic in both directions.

`DCAE` has the parameter names of the originally published file; `from_diffusers_keys` renames a diffusers
`AutoencoderDC` file to them. Shapes in this file: B batch, C channels, H and W picture sides, h and w latent sides
(h = H / factor), G attention groups, D their width, N positions.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from .dcae_config import ATTENTION, RESIDUAL, DCAEConfig, from_diffusers_keys
from .tiling import run_tiled

__all__ = ["ATTENTION", "RESIDUAL", "DCAE", "DCAEConfig", "from_diffusers_keys"]

_ATTENTION_EPS = 1e-15
_GLU_RATIO = 4


class ChannelNorm(nn.Module):
    """RMS norm over the channels of (B, C, H, W): statistics in float32, then weight and bias in the input's type.

    The two vectors are cast where they are used, so the module also works next to operations that cast their own
    weights and leave other parameters as they are stored.
    """

    def __init__(self, width, eps, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(width, device=device, dtype=dtype))

    def forward(self, x_BCHW):
        length_B1HW = torch.linalg.vector_norm(x_BCHW, dim=1, keepdim=True, dtype=torch.float32)
        scale_B1HW = torch.rsqrt(length_B1HW.square() / x_BCHW.shape[1] + self.eps)
        weight, bias = (value.to(x_BCHW)[:, None, None] for value in (self.weight, self.bias))
        if torch.is_grad_enabled():
            return torch.addcmul(bias, (x_BCHW * scale_B1HW).to(x_BCHW.dtype), weight)
        # The same in one new tensor: at full size these are the largest of all, in float32 twice as large.
        out = torch.mul(x_BCHW, scale_B1HW, out=torch.empty_like(x_BCHW))
        return torch.addcmul(bias, out, weight, out=out)


class _Maker:
    """Makes the layers of one model; operations, device and number type are given once."""

    def __init__(self, config, device, dtype, operations):
        self.config, self.operations, self.place = config, operations, {"device": device, "dtype": dtype}

    def conv(self, c_in, c_out, kernel=3, **options):
        return self.operations.Conv2d(c_in, c_out, kernel, padding=kernel // 2, **options, **self.place)

    def norm(self, width):
        return ChannelNorm(width, self.config.norm_eps, **self.place)

    def unit(self, c_in, c_out, kernel=3, norm=False, **options):
        """A convolution and perhaps a norm, under the names `conv` and `norm`."""
        parts = OrderedDict(conv=self.conv(c_in, c_out, kernel, **options))
        if norm:
            parts["norm"] = self.norm(c_out)
        return nn.Sequential(parts)


class ResidualBlock(nn.Module):
    """x + norm(conv(SiLU(conv(x))))."""

    def __init__(self, make: _Maker, width: int):
        super().__init__()
        self.main = nn.Sequential(OrderedDict(
            conv1=make.unit(width, width), act=nn.SiLU(), conv2=make.unit(width, width, norm=True, bias=False)))

    def forward(self, x_BCHW):
        conv1, act, conv2 = self.main
        # Layer by layer: a module of modules would keep what goes in until what comes out is there.
        return x_BCHW + conv2.norm(conv2.conv(act(conv1(x_BCHW))))


class _LinearAttention(nn.Module):
    """ReLU attention over all positions, on the features and on a 5x5 neighbourhood of them."""

    def __init__(self, make: _Maker, width: int):
        super().__init__()
        head = self.head_dim = make.config.head_dim
        wide = 3 * width
        self.main = nn.ModuleDict({
            "qkv": make.unit(width, wide, 1, bias=False),
            "aggreg": nn.ModuleList([nn.Sequential(
                make.conv(wide, wide, 5, groups=wide, bias=False),
                make.conv(wide, wide, 1, groups=wide // head, bias=False))]),
            "proj": make.unit(2 * width, width, 1, norm=True, bias=False)})

    def forward(self, x_BCHW):
        qkv = self.main["qkv"](x_BCHW)
        qkv = torch.cat([qkv, self.main["aggreg"][0](qkv)], dim=1)
        # Each consecutive group of 3 * head_dim channels is one head: q, k, v. Sums over positions need float32.
        q_BGDN, k_BGDN, v_BGDN = qkv.flatten(2).unflatten(1, (-1, 3, self.head_dim)).float().unbind(2)
        mixed_BGDN = relu_attention(q_BGDN.relu(), k_BGDN.relu(), v_BGDN)
        return self.main["proj"](mixed_BGDN.flatten(1, 2).unflatten(2, x_BCHW.shape[-2:]).to(x_BCHW.dtype))


def relu_attention(q_BGDN, k_BGDN, v_BGDN):
    """Attention with weights q . k / sum(q . k), for non-negative q and k; same result in both branches but for
    rounding and the place of the epsilon (spec 6)."""
    if q_BGDN.shape[-1] > q_BGDN.shape[-2]:
        sums = F.pad(v_BGDN, (0, 0, 0, 1), value=1.0) @ k_BGDN.transpose(-1, -2) @ q_BGDN
        return sums[:, :, :-1] / (sums[:, :, -1:] + _ATTENTION_EPS)
    weight_BGNN = k_BGDN.transpose(-1, -2) @ q_BGDN
    return v_BGDN @ (weight_BGNN / (weight_BGNN.sum(2, keepdim=True) + _ATTENTION_EPS))


class _GatedMix(nn.Module):
    """Gated feed-forward with a 3x3 depth-wise convolution."""

    def __init__(self, make: _Maker, width: int):
        super().__init__()
        hidden = _GLU_RATIO * width
        self.main = nn.ModuleDict({
            "inverted_conv": make.unit(width, 2 * hidden, 1),
            "depth_conv": make.unit(2 * hidden, 2 * hidden, groups=2 * hidden),
            "point_conv": make.unit(hidden, width, 1, norm=True, bias=False)})

    def forward(self, x_BCHW):
        value, gate = self.main["depth_conv"](F.silu(self.main["inverted_conv"](x_BCHW))).chunk(2, dim=1)
        return self.main["point_conv"](value * F.silu(gate))


class AttentionBlock(nn.Module):
    """x + linear attention, then x + gated feed-forward, each normed before it is added."""

    def __init__(self, make: _Maker, width: int):
        super().__init__()
        self.context_module = _LinearAttention(make, width)
        self.local_module = _GatedMix(make, width)

    def forward(self, x_BCHW):
        x_BCHW = x_BCHW + self.context_module(x_BCHW)
        return x_BCHW + self.local_module(x_BCHW)


def average_groups(x_BCHW, channels: int):
    """Shortcut to fewer channels: the mean of each run of C / channels neighbours."""
    return x_BCHW.unflatten(1, (channels, -1)).mean(2)


class DownBlock(nn.Module):
    """Half the side: strided convolution plus averaged 2x2 cells."""

    def __init__(self, make: _Maker, c_in: int, c_out: int):
        super().__init__()
        self.c_out = c_out
        self.main = nn.ModuleDict({"conv": make.conv(c_in, c_out, stride=2)})

    def forward(self, x_BCHW):
        return self.main["conv"](x_BCHW) + average_groups(F.pixel_unshuffle(x_BCHW, 2), self.c_out)


class UpBlock(nn.Module):
    """Twice the side: convolution of the enlarged features plus channels dealt out to 2x2 cells."""

    def __init__(self, make: _Maker, c_in: int, c_out: int):
        super().__init__()
        self.repeats = 4 * c_out // c_in
        self.main = nn.ModuleDict({"conv": make.unit(c_in, c_out)})

    def forward(self, x_BCHW):
        shortcut = F.pixel_shuffle(x_BCHW.repeat_interleave(self.repeats, dim=1), 2)
        return self.main["conv"](F.interpolate(x_BCHW, scale_factor=2, mode="nearest")) + shortcut


class _LatentOut(nn.Module):
    """Last encoder layer: convolution plus averaged channels."""

    def __init__(self, make: _Maker, width: int, channels: int):
        super().__init__()
        self.channels = channels
        self.main = nn.ModuleDict({"op_list": nn.ModuleList([make.unit(width, channels)])})

    def forward(self, x_BCHW):
        return self.main["op_list"][0](x_BCHW) + average_groups(x_BCHW, self.channels)


class _LatentIn(nn.Module):
    """First decoder layer: convolution plus repeated channels."""

    def __init__(self, make: _Maker, channels: int, width: int):
        super().__init__()
        self.repeats = width // channels
        self.main = nn.ModuleDict({"conv": make.conv(channels, width)})

    def forward(self, latent_BChw):
        return self.main["conv"](latent_BChw) + latent_BChw.repeat_interleave(self.repeats, dim=1)


class _Stage(nn.Module):
    """A list of blocks, run in order, under the name `op_list`."""

    def __init__(self, blocks):
        super().__init__()
        self.op_list = nn.ModuleList(blocks)

    def forward(self, x_BCHW):
        for block in self.op_list:
            x_BCHW = block(x_BCHW)
        return x_BCHW


_BLOCKS = {RESIDUAL: ResidualBlock, ATTENTION: AttentionBlock}


def _stage_blocks(make, stage, depth):
    return [_BLOCKS[make.config.kinds[stage]](make, make.config.widths[stage]) for _ in range(depth)]


class Encoder(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> (B, latent channels, h, w)."""

    def __init__(self, make: _Maker):
        super().__init__()
        config, widths = make.config, make.config.widths
        self.project_in = make.unit(config.in_channels, widths[0])
        downs = [[DownBlock(make, fine, coarse)] for fine, coarse in zip(widths, widths[1:])] + [[]]
        self.stages = nn.Sequential(*(
            _Stage(_stage_blocks(make, stage, depth) + downs[stage])
            for stage, depth in enumerate(config.encoder_depths)))
        self.project_out = _LatentOut(make, widths[-1], config.latent_channels)

    def forward(self, pictures_BCHW):
        return self.project_out(self.stages(self.project_in(pictures_BCHW)))


class Decoder(nn.Module):
    """(B, latent channels, h, w) -> (B, 3, H, W), about [-1, 1]."""

    def __init__(self, make: _Maker):
        super().__init__()
        config, widths = make.config, make.config.widths
        self.project_in = _LatentIn(make, config.latent_channels, widths[-1])
        ups = [[UpBlock(make, coarse, fine)] for fine, coarse in zip(widths, widths[1:])] + [[]]
        # Stored finest first; run from the coarsest.
        self.stages = nn.ModuleList(
            _Stage(ups[stage] + _stage_blocks(make, stage, depth))
            for stage, depth in enumerate(config.decoder_depths))
        self.project_out = _Stage([make.norm(widths[0]), nn.ReLU(), make.unit(widths[0], config.in_channels)])

    def forward(self, latent_BChw):
        x_BCHW = self.project_in(latent_BChw)
        for stage in reversed(self.stages):
            x_BCHW = stage(x_BCHW)
        return self.project_out(x_BCHW)


class DCAE(nn.Module):
    """The autoencoder. Its state dict has the original key layout; load others through `from_diffusers_keys`.

    Args:
        config: sizes, see `DCAEConfig`.
        operations: namespace with `Conv2d`; a host's own operations may cast or move their weights.
    """

    def __init__(self, config: DCAEConfig, *, device=None, dtype=None, operations=nn):
        super().__init__()
        self.config = config
        make = _Maker(config, device, dtype, operations)
        self.encoder = Encoder(make)
        self.decoder = Decoder(make)
        self.to(memory_format=torch.channels_last)    # convolutions on CPU and GPU are faster so

    def encode(self, pictures_BCHW: torch.Tensor) -> torch.Tensor:
        """Pictures in [-1, 1], sides multiples of `config.factor` -> unscaled latents (B, latent channels, h, w)."""
        self._check_pictures(pictures_BCHW)
        return self.encoder(pictures_BCHW.to(memory_format=torch.channels_last))

    def decode(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        """Unscaled latents -> pictures (B, 3, H, W), about [-1, 1], not clamped."""
        self._check_latents(latents_BChw)
        return self.decoder(latents_BChw.to(memory_format=torch.channels_last))

    def encode_tiled(self, pictures_BCHW: torch.Tensor, tile: int = 1024, overlap: int = 256) -> torch.Tensor:
        """`encode` with bounded memory; `tile` and `overlap` in pixels, multiples of `config.factor`.

        Equal to `encode` for convolutions that reach no further than a quarter of the overlap; attention stays inside
        a tile, so attention stages make it an approximation.
        """
        self._check_pictures(pictures_BCHW)
        self._check_tiles(tile, overlap)
        return run_tiled(self.encode, pictures_BCHW, tile, overlap, 1 / self.config.factor)

    def decode_tiled(self, latents_BChw: torch.Tensor, tile: int = 1024, overlap: int = 256) -> torch.Tensor:
        """`decode` with bounded memory, see `encode_tiled`; `tile` and `overlap` in pixels as well."""
        self._check_latents(latents_BChw)
        self._check_tiles(tile, overlap)
        factor = self.config.factor
        return run_tiled(self.decode, latents_BChw, tile // factor, overlap // factor, factor)

    def _check_pictures(self, pictures_BCHW):
        factor, channels = self.config.factor, self.config.in_channels
        if pictures_BCHW.ndim != 4 or pictures_BCHW.shape[1] != channels or any(
                side % factor for side in pictures_BCHW.shape[-2:]):
            raise ValueError(f"this autoencoder takes pictures (batch, {channels}, height, width) with sides that are "
                             f"multiples of {factor}, not {tuple(pictures_BCHW.shape)}: resize them to a size bin")

    def _check_latents(self, latents_BChw):
        channels = self.config.latent_channels
        if latents_BChw.ndim != 4 or latents_BChw.shape[1] != channels:
            raise ValueError(f"this autoencoder decodes latents (batch, {channels}, h, w), not "
                             f"{tuple(latents_BChw.shape)}: they come from another model")

    def _check_tiles(self, tile, overlap):
        if tile % self.config.factor or overlap % self.config.factor:
            raise ValueError(f"tile {tile} and overlap {overlap} must be multiples of {self.config.factor}")
