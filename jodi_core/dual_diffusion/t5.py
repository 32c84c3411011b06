"""The T5 v1.1 encoder (spec 4.2), through `transformers`, which is imported only when one is built.

A host has a T5 of its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class T5Sizes:
    """Sizes of a T5 v1.1 encoder, under the names of its published configuration."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int

    @classmethod
    def from_state_dict(cls, shapes: dict[str, tuple[int, ...]]) -> "T5Sizes":
        """Everything is in the shapes. ValueError if they are not those of a T5 v1.1 encoder."""
        first = "encoder.block.0.layer."
        try:
            vocab_size, d_model = shapes["shared.weight"]
            buckets, heads = shapes[f"{first}0.SelfAttention.relative_attention_bias.weight"]
            inner = shapes[f"{first}0.SelfAttention.q.weight"][0]
            d_ff = shapes[f"{first}1.DenseReluDense.wi_1.weight"][0]
        except KeyError as missing:
            raise ValueError(f"not a T5 v1.1 encoder: it has no {missing}") from None
        layers = {name.split(".")[2] for name in shapes if name.startswith("encoder.block.")}
        return cls(vocab_size, d_model, inner // heads, d_ff, len(layers), heads, buckets)


class T5States:
    """A T5 v1.1 encoder: token numbers to states, without any attention mask (spec 4.2)."""

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.width = model.config.d_model

    @classmethod
    def from_state_dict(cls, tensors: dict[str, Tensor], *, device=None,
                        dtype: torch.dtype | None = None) -> "T5States":
        """tensors: names of the published files. ValueError if they are not exactly those of a T5 v1.1 encoder."""
        from transformers import T5Config, T5EncoderModel
        tensors = {name: tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()}
        sizes = T5Sizes.from_state_dict({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
        with torch.device("meta"):
            model = T5EncoderModel(T5Config(**vars(sizes), feed_forward_proj="gated-gelu", is_decoder=False))
        try:
            model.load_state_dict(tensors, strict=True, assign=True)
        except RuntimeError as error:
            fault = str(error).splitlines()[1].strip()
            raise ValueError(f"the tensors do not fit a T5 v1.1 encoder: {fault}") from error
        return cls(model.eval().requires_grad_(False))

    @torch.no_grad()
    def __call__(self, ids_BL: Tensor) -> Tensor:
        """(B, L) token numbers -> (B, L, width) states in the dtype of the weights."""
        return self.model(input_ids=ids_BL.to(self.model.device)).last_hidden_state
