"""The host's layers, with float32 products on a CPU by oneDNN: twice as fast as its own on AMD's processors.

Weights come through the host's cast, so that LoRA and offloading apply as ever.
"""

import comfy.ops
import torch

from ...jodi_core.models.layers import onednn_product, onednn_takes

CAST = comfy.ops.manual_cast


def product(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Of the last axis of x with the weight as the host casts and patches it."""
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
    out = onednn_product(x, weight, bias)
    comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
    return out


class CPULayers(CAST):
    """`operations` of a model that computes in float32 on a CPU."""

    class Linear(CAST.Linear):
        def forward_comfy_cast_weights(self, input):
            return product(self, input) if onednn_takes(input) else super().forward_comfy_cast_weights(input)

    class Conv2d(CAST.Conv2d):
        def forward_comfy_cast_weights(self, input):
            x_BHWC = input.permute(0, 2, 3, 1)
            if self.is_pointwise() and x_BHWC.is_contiguous() and onednn_takes(input):    # others are oneDNN's already
                return product(self, x_BHWC).permute(0, 3, 1, 2)
            return super().forward_comfy_cast_weights(input)

        def is_pointwise(self) -> bool:
            return self.kernel_size == (1, 1) == self.stride and self.groups == 1 and self.padding == (0, 0)
