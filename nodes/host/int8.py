"""The transformer in the host's own 8-bit integers (its QUANTIZATION.md), made while a file is read.

Only matrices of linear layers: the host has no quantised convolutions. One scale per matrix keeps small values, which
8-bit floating point without scales loses.
"""

import json

import torch

from ...jodi_core.weights import in_8_bits

HOST_LAYERS = {"mixed_ops": True}    # `quant_config` of a model whose layers the host builds for such weights
_DESCRIPTION = torch.tensor(list(json.dumps({"format": "int8_tensorwise"}).encode()), dtype=torch.uint8)


def to_int8(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name -> tensor: each matrix of a block's linear layers as 8-bit integers, beside it a scale and a description."""
    found = {}
    for name, tensor in state_dict.items():
        if tensor.ndim != 2 or not in_8_bits(name, tensor.shape):
            found[name] = tensor.bfloat16() if tensor.dtype.itemsize == 1 else tensor
            continue
        scale = (tensor.float().abs().max() / 127).clamp_min(1e-12)
        layer = name.removesuffix("weight")
        found |= {name: (tensor.float() / scale).round().to(torch.int8), f"{layer}weight_scale": scale,
                  f"{layer}comfy_quant": _DESCRIPTION.clone()}
    return found


def from_int8(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors in bfloat16, for files that anything can read."""
    layers = [name.removesuffix("comfy_quant") for name in state_dict if name.endswith(".comfy_quant")]
    kept = {name: tensor for name, tensor in state_dict.items()
            if not name.endswith((".comfy_quant", ".weight_scale"))}
    return kept | {f"{layer}weight": (kept[f"{layer}weight"].float() * state_dict[f"{layer}weight_scale"]).bfloat16()
                   for layer in layers}
