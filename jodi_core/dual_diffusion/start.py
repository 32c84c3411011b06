"""A Dual Diffusion transformer that begins as Stable Diffusion 3 medium (spec 2.5)."""

import torch
from torch import Tensor

from ..files import WeightsError
from ..weights import described

_HEADS = {"image_norm_out.linear.": "norm_out.linear.", "image_proj_out.": "proj_out."}
_NOT_USED = "time_text_embed.text_embedder."    # of the pooled text features


def start_from_sd3(sd3: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors to begin training with.

    sd3: of the transformer of Stable Diffusion 3 medium, in the naming of diffusers. new: the state dict of an
    initialised network of the same size; what Stable Diffusion 3 does not have stays as it is there, but for the gates
    of the last block's text stream, which are 0. At first pictures are then those of Stable Diffusion 3 without its
    pooled text features. WeightsError if sd3 is something else, or of another size.
    """
    if "proj_out.weight" not in sd3 or not any(name.endswith("attn.add_q_proj.weight") for name in sd3):
        raise WeightsError(f"this is {described(sd3)}, but a Stable Diffusion 3 transformer in diffusers naming is "
                           "wanted")
    last = max(int(name.split(".")[1]) for name in new if name.startswith("transformer_blocks."))
    begun = {}
    for name, fresh in new.items():
        known = sd3.get(_sd3_name(name))
        if name.startswith(f"transformer_blocks.{last}.norm1_context.linear.") and known is not None:
            scale, shift = known.chunk(2)
            known = torch.cat([shift, scale, *torch.zeros_like(shift).expand(4, *shift.shape)])
        if known is not None and known.shape != fresh.shape:
            raise WeightsError(f"{name} is {tuple(fresh.shape)} in the new network and {tuple(known.shape)} in Stable "
                               "Diffusion 3: the two are not of one size")
        begun[name] = fresh if known is None else known.to(fresh)
    foreign = sorted(sd3.keys() - {_sd3_name(name) for name in new} - {name for name in sd3 if _NOT_USED in name})
    if foreign:
        raise WeightsError(f"Stable Diffusion 3 medium has no {foreign[0]}: this is another version of it, or larger")
    return begun


def _sd3_name(name: str) -> str:
    return next((theirs + name.removeprefix(ours) for ours, theirs in _HEADS.items() if name.startswith(ours)), name)

