"""One process or many: where this one computes, and how the model is spread over all of them."""

import os
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from jodi_core.dual_diffusion.layers import JointBlock
from jodi_core.models.layers import JodiBlock

from .config import SpeedConfig
from .losses import JointLoss
from .versions import require_torch

PATIENCE = timedelta(hours=2)    # for processes that wait while another one prepares data


@dataclass(frozen=True)
class Processes:
    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def start(cls, device: str) -> "Processes":
        """From the environment that torchrun sets; one process without it."""
        rank, world, local = (int(os.environ.get(name, default)) for name, default in (
            ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
        cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
        if cuda:
            torch.cuda.set_device(local)
        if world > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
        return cls(rank, world, torch.device("cuda", local) if cuda else torch.device("cpu"))

    def close(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()
            # torch's caches of sharded operations keep the group's threads alive. One that lets go of its last tensor
            # needs the interpreter, and one that asks an ending interpreter for it aborts the process.
            time.sleep(0.5)

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def gather(self, value) -> list:
        """A small value of every process, on all of them."""
        found = [value]
        if self.world > 1:
            found = [None] * self.world
            dist.all_gather_object(found, value)
        return found

    def spread(self, loss: JointLoss, speed: SpeedConfig) -> torch.nn.Module:
        """The same module, copied (DDP) or sharded (FSDP2) over the processes."""
        if self.world == 1 and not speed.shard:
            return loss
        if speed.shard:
            return shard(loss, speed)
        # Which domains take part differs from step to step and from process to process.
        return DistributedDataParallel(loss, find_unused_parameters=True)

    def gathering(self, loss: torch.nn.Module, last: bool):
        """Gradients are exchanged after the last micro-batch of a step only."""
        if isinstance(loss, DistributedDataParallel):
            return nullcontext() if last else loss.no_sync()
        if hasattr(loss, "set_requires_gradient_sync"):
            loss.set_requires_gradient_sync(last)
        return nullcontext()

    @contextmanager
    def whole(self, loss: torch.nn.Module):
        """Shards put together, for calls of the model that do not go through the loss."""
        units = [module for module in loss.modules() if isinstance(module, FSDPModule)]
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        yield
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not loss, recurse=False)

    def autocast(self, speed: SpeedConfig):
        """The context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=speed.precision != "float32")

    def kernels(self):
        """The context of forward and backward passes."""
        # Few keys: faster than the fused kernel.
        return sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()


def shard(loss: JointLoss, speed: SpeedConfig) -> JointLoss:
    """FSDP2: each block a unit, and so what of it is called before it: of Jodi the text keys, of Dual Diffusion what is
    made of the time."""
    require_torch("speed.shard")
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) \
        if speed.precision == "bf16" else MixedPrecisionPolicy()
    for block in loss.model.blocks:
        if isinstance(block, JodiBlock):
            fully_shard(block.cross_attn, mp_policy=policy)
            register_fsdp_forward_method(block.cross_attn, "keys_values")
        elif isinstance(block, JointBlock):
            fully_shard(block.norm1, mp_policy=policy)
            fully_shard(block.norm1_context, mp_policy=policy)
        fully_shard(block, mp_policy=policy)
    return fully_shard(loss, mp_policy=policy)
