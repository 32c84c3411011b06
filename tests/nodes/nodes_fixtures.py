"""Helpers that several test files of this folder import."""

import json
import pathlib

import torch
from safetensors.torch import load_file

from jodi_core.domains import JODI_DOMAINS

PICTURE = torch.linspace(0, 1, 40 * 60 * 3).reshape(1, 40, 60, 3)
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "jodi"


def golden(name: str) -> dict:
    """What was recorded from the original: a JSON file or a file of tensors."""
    return json.loads((GOLDEN / name).read_text()) if name.endswith(".json") else load_file(GOLDEN / name)


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute reference value."""
    return float((value - reference).abs().max() / reference.abs().max())


def choices(generate=(), condition=(), picture=PICTURE):
    """Inputs of the role switch as the host hands them over."""
    roles = {name: "generate" if name in generate else "condition" if name in condition else "ignore"
             for name in JODI_DOMAINS}
    return {name: {name: role} | ({f"{name}_picture": picture} if role == "condition" else {})
            for name, role in roles.items()}


def switch(vae, positive=None, negative=None, batch_size=1, size=None, **roles):
    """(positive, negative, latent) of the role switch; roles as for `choices`."""
    from jodi_pack.nodes.roles import JodiRoleSwitch
    return JodiRoleSwitch.execute(vae, size or {"size": "automatic"}, batch_size, positive, negative,
                                  **choices(**roles)).result


def text(clip, prompt):
    import nodes
    return nodes.CLIPTextEncode().encode(clip, prompt)[0]
