"""Layers of the Jodi transformer (spec 1.3 to 1.5). They see active domains only: x is (B, D, N, C).

B rows, D active domains, N tokens per domain, C channels, T text rows, M text tokens, H heads, K channels per head.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Bytes between the convolutions of MixFFN at once. On a CPU, larger ones are given back to the system each time.
WIDE_BYTES = {"cpu": 2 ** 24, "cuda": 2 ** 28}
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def position_table(dim: int, height: int, width: int, base: int, pe_interpolation: float = 1.0) -> Tensor:
    """(height * width, dim) float64 table; the first half encodes the column (spec 1.3).

    Both coordinates run over [0, base / pe_interpolation) whatever the aspect ratio, and are float32.
    """
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    column, row = (torch.arange(side, dtype=torch.float32) / (side / base) / pe_interpolation
                   for side in (width, height))
    u = (column.double()[:, None] * omega).expand(height, width, -1)
    v = (row.double()[:, None, None] * omega).expand(height, width, -1)
    return torch.cat([u.sin(), u.cos(), v.sin(), v.cos()], dim=-1).reshape(height * width, dim)


@lru_cache(maxsize=16)
def cached_position_table(dim, height, width, base, pe_interpolation, dtype, device) -> Tensor:
    """`position_table` keyed on the true grid: a transposed size must not get the other one's table."""
    return position_table(dim, height, width, base, pe_interpolation).to(device, dtype)


def time_features(t: Tensor) -> Tensor:
    """(B,) time in 0..1000 -> (B, 256) float32 features, cosine first (spec 1.4)."""
    frequencies = torch.exp(torch.arange(128, dtype=torch.float32, device=t.device) * (-9.210340371976184 / 128))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def table_rows(table: nn.Embedding, like: Tensor, rows: list[int] | None = None) -> Tensor:
    """Rows of a small learned table in the dtype of `like`, read through its forward so that host casting applies."""
    index = torch.arange(table.num_embeddings, device=like.device) if rows is None else \
        torch.tensor(rows, device=like.device)
    return table(index).to(like.dtype)


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x), of a linear layer."""
    return onednn_product(x, layer.weight, layer.bias) if runs_on_onednn(layer, x) else layer(x)


def pointwise(layer: nn.Module, x_BHWC: Tensor, silu: bool = False) -> Tensor:
    """A 1x1 convolution over the last axis, and SiLU if wished."""
    if runs_on_onednn(layer, x_BHWC):
        return onednn_product(x_BHWC, layer.weight, layer.bias, "swish" if silu else "none")
    x_BHWC = layer(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)    # channels-last without a copy
    return F.silu(x_BHWC) if silu else x_BHWC


def runs_on_onednn(layer: nn.Module, x: Tensor) -> bool:
    """Plain layers only: those of a host, or of an adapter, do more than the product."""
    return type(layer) in (nn.Linear, nn.Conv2d) and onednn_takes(x)


def onednn_takes(x: Tensor) -> bool:
    """Torch gives float32 products on a CPU to MKL, which takes twice as long as oneDNN on AMD's processors. The latter
    has no gradient here."""
    return (ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling())


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    """x (..., C) times weight (C', C) or (C', C, 1, 1), plus bias (C',)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight.flatten(1), bias, then, [], "")


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)    # in one pass


class TimeEmbedder(nn.Module):
    def __init__(self, hidden_size, operations, **where):
        super().__init__()
        self.mlp = nn.Sequential(operations.Linear(256, hidden_size, **where), nn.SiLU(),
                                 operations.Linear(hidden_size, hidden_size, **where))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(time_features(t).to(dtype))


class PatchEmbed(nn.Module):
    def __init__(self, config, operations, **where):
        super().__init__()
        kernel = config.patch_embed_kernel or config.patch_size
        padding = kernel // 2 if kernel % 2 else 0    # as the original does for every odd kernel
        self.proj = operations.Conv2d(config.in_channels, config.hidden_size, kernel, stride=config.patch_size,
                                      padding=padding, **where)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.proj(x_BCHW).flatten(2).transpose(1, 2)    # (B, N, C), row-major


class CaptionEmbedder(nn.Module):
    def __init__(self, config, operations, **where):
        super().__init__()
        self.register_buffer("y_embedding", torch.empty(config.model_max_length, config.caption_channels, **where))
        self.y_proj = nn.Module()
        self.y_proj.fc1 = operations.Linear(config.caption_channels, config.hidden_size, **where)
        self.y_proj.fc2 = operations.Linear(config.hidden_size, config.hidden_size, **where)

    def forward(self, y_TMC: Tensor) -> Tensor:
        return linear(self.y_proj.fc2, F.gelu(linear(self.y_proj.fc1, y_TMC), approximate="tanh"))


class LinearAttention(nn.Module):
    """ReLU linear attention over all tokens of all active domains together."""

    def __init__(self, config, operations, **where):
        super().__init__()
        size = config.hidden_size
        self.head_dim = config.linear_head_dim
        self.qkv = operations.Linear(size, 3 * size, bias=False, **where)
        self.proj = operations.Linear(size, size, **where)
        norm = (lambda: operations.RMSNorm(size, eps=1e-5, **where)) if config.qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(), norm()

    def forward(self, x_BDNC: Tensor, query_slots: list[int] | None = None) -> Tensor:
        """Attention output for all domains, or for `query_slots` of the domain axis only."""
        B, D, N, C = x_BDNC.shape
        q, k, v = linear(self.qkv, x_BDNC).chunk(3, dim=-1)
        if query_slots is not None:
            q = q[:, query_slots]
        q, k = F.relu(self.q_norm(q)), F.relu(self.k_norm(k))
        q, k, v = (part.reshape(B, -1, C // self.head_dim, self.head_dim).transpose(1, 2) for part in (q, k, v))
        out = linear_attention(q, k, v).transpose(1, 2).reshape(B, -1, N, C)
        return linear(self.proj, out)


def linear_attention(q_BHSK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> Tensor:
    """sum_n v_n (k_n . q) / (sum_n k_n . q + 1e-8): two small products in place of a score matrix (spec 1.5).

    float16 would overflow in the sums, so it is computed in float32; the division is at least that.
    """
    dtype = q_BHSK.dtype
    if dtype == torch.float16:
        q_BHSK, k_BHSK, v_BHSK = q_BHSK.float(), k_BHSK.float(), v_BHSK.float()
    state = k_BHSK.transpose(-1, -2) @ F.pad(v_BHSK, (0, 1), value=1.0)    # (B, H, K, K + 1)
    out = q_BHSK @ state
    out = out.to(torch.promote_types(out.dtype, torch.float32))
    return (out[..., :-1] / (out[..., -1:] + 1e-8)).to(dtype)


class CrossAttention(nn.Module):
    """Softmax attention from image tokens to text; the text's keys and values are computed once per caption."""

    def __init__(self, config, operations, **where):
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.q_linear = operations.Linear(size, size, **where)
        self.kv_linear = operations.Linear(size, 2 * size, **where)
        self.proj = operations.Linear(size, size, **where)
        norm = (lambda: operations.RMSNorm(size, eps=1e-6, **where)) if config.cross_norm else nn.Identity
        self.q_norm, self.k_norm = norm(), norm()

    def split(self, x_TSC: Tensor) -> Tensor:
        return x_TSC.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)    # (T, H, S, K)

    def keys_values(self, y_TMC: Tensor) -> tuple[Tensor, Tensor]:
        k, v = linear(self.kv_linear, y_TMC).chunk(2, dim=-1)
        return self.split(self.k_norm(k)), self.split(v)

    def forward(self, x_BDNC: Tensor, text: tuple[Tensor, Tensor], mask_T11M: Tensor | None) -> Tensor:
        """Rows of x that share a text row must be contiguous: B is a multiple of T, and they fold into one."""
        k, v = text
        q = self.split(self.q_norm(linear(self.q_linear, x_BDNC)).reshape(k.shape[0], -1, x_BDNC.shape[-1]))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_T11M)
        return linear(self.proj, out.transpose(1, 2).reshape(x_BDNC.shape))


class ConvLayer(nn.Module):
    """One convolution under the name `conv`, as the published keys have it."""

    def __init__(self, operations, *args, **kwargs):
        super().__init__()
        self.conv = operations.Conv2d(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class MixFFN(nn.Module):
    """Gated inverted bottleneck on each domain's own token grid."""

    def __init__(self, config, operations, **where):
        super().__init__()
        size, hidden = config.hidden_size, config.mlp_hidden
        self.width = 2 * hidden
        self.inverted_conv = ConvLayer(operations, size, 2 * hidden, 1, **where)
        self.depth_conv = ConvLayer(operations, 2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, **where)
        self.point_conv = ConvLayer(operations, hidden, size, 1, bias=False, **where)

    def forward(self, x_BDNC: Tensor, grid: tuple[int, int]) -> Tensor:
        B, D, N, C = x_BDNC.shape
        pictures_BHWC = x_BDNC.reshape(B * D, *grid, C)
        lines = self.lines_at_once(pictures_BHWC)
        if lines < grid[0]:
            mixed = [self.in_strips(one, lines) for one in pictures_BHWC.split(1)]
        else:
            mixed = [self.narrow(self.widen(some)) for some in pictures_BHWC.split(lines // grid[0])]
        return (torch.cat(mixed) if len(mixed) > 1 else mixed[0]).reshape(B, D, N, C)

    def widen(self, x_BHWC: Tensor) -> Tensor:
        return pointwise(self.inverted_conv.conv, x_BHWC, silu=True)

    def narrow(self, wide_BHWC: Tensor, lines: slice = slice(None)) -> Tensor:
        """The rest of it; `lines` of the picture only, behind the convolution that looks beyond them."""
        wide_BHWC = self.depth_conv(wide_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[:, lines]
        value, gate = wide_BHWC.chunk(2, dim=-1)
        return pointwise(self.point_conv.conv, value * F.silu(gate))

    def in_strips(self, x_BHWC: Tensor, lines: int) -> Tensor:
        """So many lines at a time. A strip's last line waits for the next strip, which keeps the two that it needs."""
        first, *others = x_BHWC.split(lines, dim=1)
        wide_BHWC = self.widen(first)
        mixed = [self.narrow(wide_BHWC, slice(0, -1))]
        for number, strip in enumerate(others, 1):
            wide_BHWC = torch.cat([wide_BHWC[:, -2:], self.widen(strip)], dim=1)
            mixed.append(self.narrow(wide_BHWC, slice(1, -1 if number < len(others) else None)))
        return torch.cat(mixed, dim=1)

    def lines_at_once(self, pictures_BHWC: Tensor) -> int:
        """How many lines of the grid: what lies between the convolutions is the largest of all, and pictures do not see
        each other. A gradient keeps everything anyway, and a compiled graph shall hold for any number."""
        B, H, W, _ = pictures_BHWC.shape
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return B * H
        line = self.width * W * pictures_BHWC.element_size()
        return max(2, WIDE_BYTES.get(pictures_BHWC.device.type, WIDE_BYTES["cuda"]) // line)


class JodiBlock(nn.Module):
    def __init__(self, config, operations, **where):
        super().__init__()
        size = config.hidden_size
        self.scale_shift_table = operations.Embedding(6, size, **where)
        self.norm1 = operations.LayerNorm(size, elementwise_affine=False, eps=1e-6, **where)
        self.attn = LinearAttention(config, operations, **where)
        self.cross_attn = CrossAttention(config, operations, **where)
        self.norm2 = operations.LayerNorm(size, elementwise_affine=False, eps=1e-6, **where)
        self.mlp = MixFFN(config, operations, **where)

    def forward(self, x_BDNC, time_B6C, role_D6C, text, mask, grid, query_slots=None, branches=1) -> Tensor:
        """One block (spec 1.5). `query_slots` keeps only those domains after the self-attention (the last block's
        condition domains matter as keys and values only); `branches` repeats the rows before text enters."""
        table = table_rows(self.scale_shift_table, x_BDNC)
        modulation = (table + time_B6C[:, None] + role_D6C)[..., None, :]    # (B or 1, D, 6, 1, C)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.unbind(2)
        attended = self.attn(modulate(self.norm1(x_BDNC), shift_a, scale_a), query_slots)
        if query_slots is not None:
            x_BDNC = x_BDNC[:, query_slots]
            gate_a, shift_m, scale_m, gate_m = (part[:, query_slots] for part in (gate_a, shift_m, scale_m, gate_m))
        x_BDNC = torch.addcmul(x_BDNC, gate_a, attended)
        if branches > 1:
            x_BDNC = x_BDNC.repeat(branches, 1, 1, 1)
        x_BDNC = x_BDNC + self.cross_attn(x_BDNC, text, mask)
        return torch.addcmul(x_BDNC, gate_m, self.mlp(modulate(self.norm2(x_BDNC), shift_m, scale_m), grid))


class FinalLayer(nn.Module):
    def __init__(self, config, operations, **where):
        super().__init__()
        self.scale_shift_table = operations.Embedding(2, config.hidden_size, **where)
        self.norm = operations.LayerNorm(config.hidden_size, elementwise_affine=False, eps=1e-6, **where)
        self.linear = operations.Linear(config.hidden_size, config.patch_size ** 2 * config.in_channels, **where)

    def forward(self, x_BNC: Tensor, condition_BC: Tensor) -> Tensor:
        shift, scale = (table_rows(self.scale_shift_table, x_BNC) + condition_BC[:, None])[..., None, :].unbind(1)
        return linear(self.linear, modulate(self.norm(x_BNC), shift, scale))
