"""Blocks of the Dual Diffusion transformer (spec 2.4); the names of their parts are those of the published files.

B rows, N image tokens, L text tokens, C channels, H heads, K channels per head. x is the image stream, y the text's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.layers import linear, modulate, time_features

IMAGE, TEXT = STREAMS = ("image", "text")


def norm(x_BNC: Tensor) -> Tensor:
    """LayerNorm without parameters."""
    return F.layer_norm(x_BNC, x_BNC.shape[-1:], eps=1e-6)


class TimeEmbedder(nn.Module):
    def __init__(self, size: int, operations, **where):
        super().__init__()
        self.linear_1 = operations.Linear(256, size, **where)
        self.linear_2 = operations.Linear(size, size, **where)

    def forward(self, t_B: Tensor, dtype: torch.dtype) -> Tensor:
        """(B,) times in 0..1000 -> (B, C). The sinusoids are float32, the rest is of the given dtype."""
        return self.linear_2(F.silu(self.linear_1(time_features(t_B).to(dtype))))


class Modulation(nn.Module):
    """`parts` vectors per row made of the time: (B, C) -> tuple of (B, 1, C)."""

    def __init__(self, size: int, parts: int, operations, **where):
        super().__init__()
        self.parts = parts
        self.linear = operations.Linear(size, parts * size, **where)

    def forward(self, time_BC: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(time_BC))[:, None].chunk(self.parts, dim=-1)


class FeedForward(nn.Module):
    def __init__(self, size: int, operations, **where):
        super().__init__()
        wide = nn.Module()
        wide.proj = operations.Linear(size, 4 * size, **where)
        self.net = nn.ModuleList([wide, nn.Identity(), operations.Linear(4 * size, size, **where)])

    def forward(self, x_BNC: Tensor) -> Tensor:
        return linear(self.net[2], F.gelu(linear(self.net[0].proj, x_BNC), approximate="tanh"))


class JointAttention(nn.Module):
    """One softmax attention over both streams together, without a mask; each stream has projections of its own."""

    def __init__(self, config, operations, **where):
        super().__init__()
        size, self.heads = config.hidden_size, config.num_attention_heads
        self.to_q = operations.Linear(size, size, **where)
        self.to_k = operations.Linear(size, size, **where)
        self.to_v = operations.Linear(size, size, **where)
        self.add_q_proj = operations.Linear(size, size, **where)
        self.add_k_proj = operations.Linear(size, size, **where)
        self.add_v_proj = operations.Linear(size, size, **where)
        self.to_out = nn.ModuleList([operations.Linear(size, size, **where)])
        self.to_add_out = operations.Linear(size, size, **where)

    def split(self, streams: list[Tensor]) -> Tensor:
        """Streams (B, N, C), one after the other -> (B, H, tokens, K)."""
        return torch.cat(streams, dim=1).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x_BNC: Tensor, y_BLC: Tensor, wanted: tuple[str, ...]) -> dict[str, Tensor]:
        """Stream -> what it attended to, projected; of the wanted streams. The others are keys and values only."""
        queries = {IMAGE: (self.to_q, x_BNC), TEXT: (self.add_q_proj, y_BLC)}
        q_BHNK = self.split([linear(*queries[stream]) for stream in wanted])
        k_BHNK = self.split([linear(self.to_k, x_BNC), linear(self.add_k_proj, y_BLC)])
        v_BHNK = self.split([linear(self.to_v, x_BNC), linear(self.add_v_proj, y_BLC)])
        out_BNC = F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK).transpose(1, 2).flatten(2)
        parts = out_BNC.split([queries[stream][1].shape[1] for stream in wanted], dim=1)
        outputs = {IMAGE: self.to_out[0], TEXT: self.to_add_out}
        return {stream: linear(outputs[stream], part) for stream, part in zip(wanted, parts)}


class JointBlock(nn.Module):
    """A full block on both streams, the last one included."""

    def __init__(self, config, operations, **where):
        super().__init__()
        size = config.hidden_size
        self.norm1 = Modulation(size, 6, operations, **where)
        self.norm1_context = Modulation(size, 6, operations, **where)
        self.attn = JointAttention(config, operations, **where)
        self.ff = FeedForward(size, operations, **where)
        self.ff_context = FeedForward(size, operations, **where)

    def modulations(self, time_BC: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Stream -> shift and scale before attention, gate after it; the same three for the feed-forward."""
        return {IMAGE: self.norm1(time_BC), TEXT: self.norm1_context(time_BC)}

    def forward(self, x_BNC: Tensor, y_BLC: Tensor, modulations: dict, wanted=STREAMS) -> tuple[Tensor, Tensor]:
        """Both streams, of which only the `wanted` ones are carried on."""
        streams = {IMAGE: x_BNC, TEXT: y_BLC}
        inputs = [modulate(norm(streams[stream]), *modulations[stream][:2]) for stream in STREAMS]
        feed_forwards = {IMAGE: self.ff, TEXT: self.ff_context}
        for stream, attended in self.attn(*inputs, wanted).items():
            gate_a, shift_f, scale_f, gate_f = modulations[stream][2:]
            z = streams[stream] + gate_a * attended
            streams[stream] = z + gate_f * feed_forwards[stream](modulate(norm(z), shift_f, scale_f))
        return streams[IMAGE], streams[TEXT]


class PatchEmbed(nn.Module):
    def __init__(self, config, operations, **where):
        super().__init__()
        self.side, self.patch = config.pos_embed_max_size, config.patch_size
        self.proj = operations.Conv2d(config.in_channels, config.hidden_size, self.patch, stride=self.patch, **where)
        self.register_buffer("pos_embed", torch.empty(1, self.side ** 2, config.hidden_size, **where))

    def forward(self, z_BCHW: Tensor) -> Tensor:
        """(B, N, C), row by row, with the middle of the position table added. ValueError for sizes that cannot be."""
        height, width = z_BCHW.shape[-2:]
        if height % self.patch or width % self.patch or not 0 < max(height, width) <= self.side * self.patch:
            raise ValueError(f"latents of {height}x{width}: both sides must be divisible by {self.patch} and at most "
                             f"{self.side * self.patch}")
        tokens_BNC = self.proj(z_BCHW).flatten(2).transpose(1, 2)
        return tokens_BNC + self.middle(height // self.patch, width // self.patch).to(tokens_BNC)

    def middle(self, height: int, width: int) -> Tensor:
        """(1, height * width, C): the position table cut to a grid of this size."""
        top, left = (self.side - height) // 2, (self.side - width) // 2
        table_1SSC = self.pos_embed.unflatten(1, (self.side, self.side))
        return table_1SSC[:, top:top + height, left:left + width].flatten(1, 2)
