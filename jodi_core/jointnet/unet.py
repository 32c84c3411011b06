"""A branch of JointNet for use without a host: the U-Net of diffusers, in two halves. Imported where it is needed."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import JointNetConfig

try:
    from diffusers import UNet2DConditionModel
except ImportError as error:
    raise ImportError("JointNet without ComfyUI is built on diffusers: pip install 'jodi[jointnet]'") from error


class DiffusersBranch(UNet2DConditionModel):
    """See `network.Branch`. Parameters have diffusers' names, which are those of the published files."""

    def __init__(self, config: JointNetConfig):
        super().__init__(**config.unet_settings())
        for module in self.attentions_on_text():
            module.set_processor(AttentionOnText())

    def attentions_on_text(self) -> list[nn.Module]:
        return [module for name, module in self.named_modules() if name.endswith(".attn2")]

    def embed_time(self, t_B: Tensor, dtype: torch.dtype) -> Tensor:
        return self.time_embedding(self.time_proj(t_B).to(dtype))

    def read_text(self, text_TMC: Tensor, mask_TM: Tensor | None = None) -> dict[nn.Module, tuple]:
        """Of every attention on the text keys and values (T, heads, M, width), and the rows that it may see."""
        mask_T11M = None if mask_TM is None else mask_TM[:, None, None]
        return {module: (split_heads(module.to_k(text_TMC), module.heads),
                         split_heads(module.to_v(text_TMC), module.heads), mask_T11M)
                for module in self.attentions_on_text()}

    def encode(self, x_BCHW: Tensor, temb: Tensor, text, added_BCHW: Tensor | None) -> tuple[list[Tensor], Tensor]:
        x = self.conv_in(x_BCHW)
        if added_BCHW is not None:
            x = x + added_BCHW
        skips = [x]
        for block in self.down_blocks:
            x, of_block = block(x, temb, **_text_for(block, text))
            skips += of_block
        return skips, self.mid_block(x, temb, encoder_hidden_states=text)

    def decode(self, skips: list[Tensor], middle: Tensor, temb: Tensor, text) -> Tensor:
        x = middle
        for block in self.up_blocks:
            count = len(block.resnets)
            skips, of_block = skips[:-count], tuple(skips[-count:])
            # Sides that are no multiples of the network's grow to those of the next skip connection (spec 1.3).
            grown = skips[-1].shape[-2:] if skips else None
            x = block(x, of_block, temb, upsample_size=grown, **_text_for(block, text))
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


def _text_for(block: nn.Module, text) -> dict:
    return {"encoder_hidden_states": text} if hasattr(block, "attentions") else {}


class AttentionOnText:
    """What diffusers calls a processor: attention with keys and values that were computed before.

    The blocks hand what they get as text features through, so these are `DiffusersBranch.read_text`'s.
    """

    def __call__(self, attention: nn.Module, hidden_states: Tensor, encoder_hidden_states: dict,
                 attention_mask=None) -> Tensor:
        k_THMK, v_THMK, mask_T11M = encoder_hidden_states[attention]
        q_TSC = attention.to_q(hidden_states).reshape(len(k_THMK), -1, attention.inner_dim)  # rows that share a text
        out_THSK = F.scaled_dot_product_attention(split_heads(q_TSC, attention.heads), k_THMK, v_THMK, mask_T11M)
        return attention.to_out[0](out_THSK.transpose(1, 2).reshape(hidden_states.shape))


def split_heads(x_TSC: Tensor, heads: int) -> Tensor:
    return x_TSC.unflatten(-1, (heads, -1)).transpose(1, 2)    # (T, H, S, K)
