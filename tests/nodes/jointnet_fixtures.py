"""The recorded tiny JointNet, for the tests of this folder that need it."""

import json
import pathlib
from functools import cache

import torch
from safetensors.torch import load_file

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "jointnet"
RECORDED = json.loads((GOLDEN / "jointnet_tiny.json").read_text())
DOMAINS = ("image", "depth")
SCALE = 0.18215


@cache
def recorded_tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "jointnet_tiny.safetensors")


def of_case(name: str) -> dict[str, torch.Tensor]:
    start = f"case/{name}/"
    return {key.removeprefix(start): tensor for key, tensor in recorded_tensors().items() if key.startswith(start)}


def by_domain(latents_B8hw: torch.Tensor) -> torch.Tensor:
    """(B, 8, h, w) as recorded -> joint latent (B, 4, 2, h, w)."""
    return latents_B8hw.unflatten(1, (2, 4)).transpose(1, 2)


def recorded_weights(inpaint: bool) -> tuple:
    """(configuration, tensors under the names of files) of a variant."""
    from jodi_pack.jodi_core.jointnet.config import JointNetConfig
    tensors = {name.replace("/", ".", 1): tensor.float() for name, tensor in recorded_tensors().items()
               if name.startswith(("unet/", "jointnet/")) and (inpaint or "masked_latent" not in name)}
    return JointNetConfig.from_published(RECORDED["unet_config"], inpaint), tensors


@cache
def recorded_model(inpaint: bool):
    """MODEL."""
    from jodi_pack.nodes.host.jointnet import from_tensors
    return from_tensors(*recorded_weights(inpaint), "the recorded model", {}, False)
