"""The Dual Diffusion transformer: two streams, image and text, joined in every layer, and a head on each (spec 2).

Three doors lead to the same blocks:
  `forward`       the published interface: both streams in, both heads out;
  `velocity`      what the sampler of a picture uses: image head only, the text embedded once by `embed_text`;
  `text_logits`   what the sampler of a text uses: text head only, at blanks only, the picture prepared once by `look`.

What the last two leave out has no effect on what they return: the other head and, in the last block, the other stream
beyond its keys and values; a picture's time is 0, so that all that is made of the time is constant.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models.layers import linear, modulate, position_table
from .config import DualDiffusionConfig
from .layers import IMAGE, STREAMS, TEXT, JointBlock, Modulation, PatchEmbed, TimeEmbedder, norm

NULL_TOKENS = 8


@dataclass(frozen=True)
class Seen:
    """A given picture as the text sampler needs it. modulations: per block, see `JointBlock.modulations`."""

    tokens_BNC: Tensor
    modulations: list[dict[str, tuple[Tensor, ...]]]

    def rows(self, rows: Tensor) -> "Seen":
        """Some rows of the batch."""
        return Seen(self.tokens_BNC[rows.to(self.tokens_BNC.device)], self.modulations)


class DualDiffusionTransformer(nn.Module):
    """See `DualDiffusionConfig` for sizes; modules come from `operations` so that a host can bring its casting layers.

    The names of all tensors are the published ones. Without weights from a file, call `init_weights`.
    """

    def __init__(self, config: DualDiffusionConfig, *, device=None, dtype=None, operations=nn):
        super().__init__()
        self.config = config
        size, where = config.hidden_size, {"device": device, "dtype": dtype}
        self.pos_embed = PatchEmbed(config, operations, **where)
        self.null_image_embd = nn.Parameter(torch.empty(1, NULL_TOKENS, size, **where))
        self.time_text_embed = nn.Module()
        self.time_text_embed.timestep_embedder = TimeEmbedder(size, operations, **where)
        self.context_embedder = operations.Linear(config.joint_attention_dim, size, **where)
        self.transformer_blocks = nn.ModuleList(JointBlock(config, operations, **where)
                                                for _ in range(config.num_layers))
        self.image_norm_out = Modulation(size, 2, operations, **where)
        self.image_proj_out = operations.Linear(size, config.patch_size ** 2 * config.out_channels, **where)
        self.text_proj_out = operations.Linear(size, config.vocab_size, **where)

    def forward(self, latents: Tensor | None, states: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Both predictions.

        latents   (B, C, H, W); None: the learned stand-in, which no training of the original ever changed
        states    (B, L, joint_attention_dim) of T5
        t         (B,) times of the picture in 0..1000; 0 for a clean one. The text has none.
        Returns the velocity noise - data (B, C, H, W) and the text logits (B, L, vocab_size); without latents the
        first is the image stream (B, 8, hidden_size).
        """
        dtype = states.dtype
        x = self.null_image_embd.to(states).expand(len(states), -1, -1) if latents is None else \
            self.pos_embed(latents.to(dtype))
        c = self.embed_time(t, dtype)
        y = self.embed_text(states)
        for block in self.transformer_blocks:
            x, y = block(x, y, block.modulations(c))
        return x if latents is None else self.image_head(x, c, latents.shape[-2:]), self.text_head(y)

    def velocity(self, z_BCHW: Tensor, text_RLC: Tensor, t_B: Tensor) -> Tensor:
        """Velocities (R, C, H, W) of pictures under embedded texts.

        z_BCHW in the dtype of computation; text_RLC: see `embed_text`, R = guidance branches * B, branch by branch;
        t_B: (B,) or (1,), in 0..1000.
        """
        branches = len(text_RLC) // len(z_BCHW)
        x = self.pos_embed(z_BCHW).repeat(branches, 1, 1)
        c = self.embed_time(t_B.to(x.device), x.dtype).repeat(branches if len(t_B) > 1 else 1, 1)
        y = text_RLC
        for i, block in enumerate(self.transformer_blocks):
            x, y = block(x, y, block.modulations(c), self.wanted(i, IMAGE))
        return self.image_head(x, c, z_BCHW.shape[-2:])

    def look(self, z_BCHW: Tensor) -> Seen:
        """Clean latents (scaled, in the dtype of computation), ready for any number of `text_logits`."""
        c = self.embed_time(torch.zeros(1, device=z_BCHW.device), z_BCHW.dtype)
        return Seen(self.pos_embed(z_BCHW), [block.modulations(c) for block in self.transformer_blocks])

    def text_logits(self, seen: Seen, states_BLE: Tensor, places_BL: Tensor) -> Tensor:
        """(M, vocab_size) float32 logits at the M places where places_BL is true, row by row."""
        x, y = seen.tokens_BNC, self.embed_text(states_BLE)
        for i, (block, modulations) in enumerate(zip(self.transformer_blocks, seen.modulations)):
            x, y = block(x, y, modulations, self.wanted(i, TEXT))
        # Found where the places are, mostly on the CPU: a mask on a GPU would make the caller wait for its result.
        rows_M, columns_M = (index.to(y.device) for index in places_BL.nonzero(as_tuple=True))
        return self.text_head(y[rows_M, columns_M]).float()

    def wanted(self, block: int, stream: str) -> tuple[str, ...]:
        """The streams that a block carries on, when the head of one is read."""
        return (stream,) if block == self.config.num_layers - 1 else STREAMS

    # ---- parts ------------------------------------------------------------------------------------------------

    def embed_time(self, t_B: Tensor, dtype: torch.dtype) -> Tensor:
        return self.time_text_embed.timestep_embedder(t_B, dtype)

    def embed_text(self, states_BLE: Tensor) -> Tensor:
        """(B, L, joint_attention_dim) states of T5 -> (B, L, C)."""
        return linear(self.context_embedder, states_BLE)

    def image_head(self, x_BNC: Tensor, time_BC: Tensor, size: tuple[int, int]) -> Tensor:
        """Patches to latents of size (height, width). Scale comes before shift here, unlike in the blocks."""
        scale, shift = self.image_norm_out(time_BC)
        patches = linear(self.image_proj_out, modulate(norm(x_BNC), shift, scale))
        (height, width), patch, channels = size, self.config.patch_size, self.config.out_channels
        patches = patches.view(-1, height // patch, width // patch, patch, patch, channels)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, height, width)

    def text_head(self, y: Tensor) -> Tensor:
        return linear(self.text_proj_out, norm(y))

    @torch.no_grad()
    def init_weights(self) -> None:
        """The position table, and random values for what is no layer of the framework's own (which draw theirs)."""
        config = self.config
        table_NC = position_table(config.hidden_size, config.pos_embed_max_size, config.pos_embed_max_size,
                                  config.sample_size // config.patch_size)
        self.pos_embed.pos_embed.copy_(table_NC)
        nn.init.normal_(self.null_image_embd, std=config.hidden_size ** -0.5)
