"""The oldest PyTorch for the trainer, and for what of it."""

import torch

# 2.6 cannot write the checkpoint of one process; not all was tried with 2.7. With shards on a CPU, 2.7 fails, 2.8 adds
# up the gradients of processes in place of averaging them, and 2.9 is off by half a percent with CAME.
OLDEST = {"the trainer": (2, 8), "speed.shard": (2, 10)}


def require_torch(what: str, version: str = torch.__version__) -> None:
    """what: a name in OLDEST. ValueError if this PyTorch is older."""
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST[what]:
        raise ValueError(f"{what} needs PyTorch {'.'.join(map(str, OLDEST[what]))} or newer, and this is {version}: "
                         "update it, or make an environment of its own for the trainer")
