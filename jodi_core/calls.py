"""What the pipelines of all families ask of their arguments and of the machine."""

from collections.abc import Callable

import torch
from torch import Tensor

_PIXELS_AT_ONCE = 2 ** 22  # through an autoencoder


def place_of(device=None, dtype: torch.dtype | None = None) -> dict:
    """{"device", "dtype"} as `torch.nn.Module.to` takes them. Default: the GPU if there is one; bfloat16 there,
    float32 elsewhere. ValueError for a device that cannot be used here."""
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # a device that torch does not know, or cannot use here
        raise ValueError(f"device {str(name)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return {"device": device, "dtype": dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)}


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU, so that a seed means the same everywhere. ValueError for a seed that it does not take."""
    if not 0 <= seed < 2 ** 64:
        raise ValueError(f"seed {seed} must be between 0 and 2^64 - 1")
    return torch.Generator().manual_seed(seed)


def rows_of(prompts: list[str], pictures: dict[str, Tensor]) -> int:
    """Rows that prompts and picture batches make together; ValueError if they disagree."""
    if not prompts:
        raise ValueError("the list of prompts is empty; an empty prompt is written \"\"")
    sizes = {"prompts": len(prompts)} | {name: len(picture) for name, picture in pictures.items()}
    if len({size for size in sizes.values() if size > 1}) > 1:
        raise ValueError("batch sizes disagree: " + ", ".join(f"{size} {name}" for name, size in sizes.items())
                         + "; each must be the same number or 1")
    return max(sizes.values())


def in_parts(function: Callable[[Tensor], Tensor], batch_BCHW: Tensor, factor: int = 1) -> Tensor:
    """function over a batch in parts of bounded size; factor: pixels per side of one element."""
    rows = max(1, _PIXELS_AT_ONCE // (batch_BCHW[0, 0].numel() * factor ** 2))
    return torch.cat([function(part) for part in batch_BCHW.split(rows)])
