"""The commands of cli.py, on a PyTorch that is new enough for them."""

import sys

import torch

OLDEST_TORCH = (2, 9)    # shards add up their gradients on a CPU in 2.8, in place of averaging them; 2.6 cannot save


def too_old(version: str) -> str | None:
    """What to do about an older PyTorch, None if it is none."""
    if tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_TORCH:
        return None
    return f"the trainer needs PyTorch {'.'.join(map(str, OLDEST_TORCH))} or newer, and this is {version}: " \
           "update it, or make an environment of its own for the trainer (docs/training.md)"


if __name__ == "__main__":
    if told := too_old(torch.__version__):
        sys.exit(told)
    from .cli import main    # not before: it imports what an older one lacks
    sys.exit(main())
