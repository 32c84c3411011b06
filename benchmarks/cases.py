"""What benchmarks/performance.py measures: model sizes by name, tasks, stages, and the inputs of one case.

Letters: B requests of a batch, L domains, G generated domains, C channels, h x w latent, H x W pixels, M text tokens,
W their width.
"""

import zlib
from argparse import ArgumentParser
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor, nn

from jodi_core.domains import JointRoles
from jodi_core.models.dcae_config import ATTENTION, RESIDUAL, DCAEConfig
from jodi_core.models.jodi_config import JodiConfig

STAGES = ("forward", "sample", "whole")    # one evaluation; a sampling run; with encoding and decoding
LABELS = ("lineart", "edge", "depth", "normal", "albedo", "segmentation", "openpose")
# name -> (generated, given)
TASKS = {"joint": (("image", *LABELS), ()), "control": (("image",), ("edge", "depth", "normal")),
         "perceive1": (("depth",), ("image",)), "perceive3": (("depth", "normal", "albedo"), ("image",)),
         "perceive7": (LABELS, ("image",))}
GROWING = {f"generate{count}": (("image", *LABELS[:count - 1]), ()) for count in range(1, 9)}    # active domains
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Largest difference over largest value: those of the recorded numbers (jodi_core/conformance_cases.py); looser for
# pictures in bfloat16, as a decoder of random weights magnifies the differences of its latents.
TOLERANCES = {(torch.float32, "forward"): 2e-6, (torch.float32, "sample"): 1e-4, (torch.float32, "whole"): 1e-4,
              (torch.bfloat16, "forward"): 3e-2, (torch.bfloat16, "sample"): 3e-2, (torch.bfloat16, "whole"): 1e-1}


@dataclass(frozen=True)
class Size:
    """A model and the side of its pictures, in pixels, unless another is asked for."""

    config: JodiConfig
    autoencoder: DCAEConfig
    pixels: int


SIZES = {
    "tiny": Size(JodiConfig(hidden_size=64, depth=2, num_heads=4, caption_channels=24, model_max_length=12),
                 DCAEConfig(widths=(8, 8, 16, 32, 32, 32), encoder_depths=(1,) * 6, decoder_depths=(1,) * 6,
                            kinds=(RESIDUAL,) * 3 + (ATTENTION,) * 3), 128),
    "cpu": Size(JodiConfig(hidden_size=1120, depth=4, num_heads=10), DCAEConfig(), 512),
    "600M": Size(JodiConfig(hidden_size=1152, depth=28, num_heads=16), DCAEConfig(), 1024),
    "1600M": Size(JodiConfig(), DCAEConfig(), 1024),
}


@dataclass(frozen=True)
class Setting:
    """What the contenders of a comparison have in common: the model, and where and how exactly it computes."""

    size: Size
    device: torch.device
    dtype: torch.dtype
    seed: int = 0


def add_setting(parser: ArgumentParser) -> None:
    """Options of a benchmark that runs one model in one way."""
    parser.add_argument("--size", choices=SIZES, default="cpu", help="model")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--text-tokens", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


@dataclass(frozen=True)
class Job:
    """One case. steps and guidance do not matter to the stage "forward"."""

    setting: Setting
    stage: str
    task: str
    batch: int
    pixels: int
    text_tokens: int
    steps: int
    guidance: float

    @property
    def name(self) -> str:
        return f"{self.stage} {self.task}, batch {self.batch}, {self.pixels} px"

    @cached_property
    def roles(self) -> JointRoles:
        return JointRoles.of(self.setting.size.config.domains, *(TASKS | GROWING)[self.task])

    @property
    def generated(self) -> list[int]:
        """Numbers of the generated domains."""
        return [self.roles.active[slot] for slot in self.roles.generated_slots]

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.setting.dtype, self.stage]


def jobs(setting: Setting, stages, tasks, batches, pixels, *, text_tokens: int, steps: int | None) -> list[Job]:
    """All combinations, with the published number of steps (20; perception 10) unless it is given."""
    made = []
    for stage, task, batch, side in product(stages, tasks, batches, pixels):
        given = TASKS.get(task, ((), ()))[1]
        made.append(Job(setting, stage, task, batch, side, text_tokens, steps or published_steps(given),
                        1.0 if "image" in given else 4.5))
    return made


def published_steps(given) -> int:
    """given: names of domains."""
    return 10 if "image" in given else 20


@dataclass(frozen=True)
class Inputs:
    """Random inputs of a job. Requests differ in everything, and in the length of their captions."""

    noise_BLChw: Tensor
    clean_BLChw: Tensor    # latents, zeros where nothing is given
    time_B: Tensor         # 0..1000
    text_BMW: Tensor
    null_BMW: Tensor       # caption of the other guidance branch
    lengths_B: Tensor      # valid tokens per request; always on the CPU, as role_BL on "meta"
    mask_BM: Tensor        # 1 where a token is valid; on the CPU on "meta"
    role_BL: Tensor
    pictures: dict[str, Tensor]    # given domain -> (B, 3, H, W) in [0, 1]; stage "whole" only

    @classmethod
    def of(cls, job: Job, null_MW: Tensor) -> "Inputs":
        """null_MW: the stored empty caption of the model."""
        setting, config = job.setting, job.setting.size.config
        generator = torch.Generator().manual_seed(setting.seed)
        rows, side = job.batch, job.pixels // setting.size.autoencoder.factor
        latents = rows, config.num_domains, config.in_channels, side, side
        text = rows, config.model_max_length, config.caption_channels
        lengths_B = torch.tensor([min(job.text_tokens + 7 * row, config.model_max_length) for row in range(rows)])
        role_BL = torch.tensor([int(role) for role in job.roles.roles]).expand(rows, -1)
        # Captions and clean latents come in the model's number type; noise, time and pictures are rounded by whoever
        # computes with them.
        clean_BLChw = torch.randn(latents, generator=generator) * (role_BL == 1)[:, :, None, None, None]
        values = {
            "noise_BLChw": torch.randn(latents, generator=generator),
            "clean_BLChw": clean_BLChw.to(setting.dtype),
            "time_B": torch.linspace(900, 300, rows),
            "text_BMW": torch.randn(text, generator=generator).to(setting.dtype),
            "null_BMW": null_MW.expand(rows, -1, -1).to(setting.dtype)}
        mask_BM = (torch.arange(config.model_max_length) < lengths_B[:, None]).long()
        pictures = {name: torch.rand(rows, 3, job.pixels, job.pixels, generator=generator).to(setting.device)
                    for name in (TASKS[job.task][1] if job.stage == "whole" else ())}
        known = "cpu" if setting.device.type == "meta" else setting.device    # what decides about the computation
        return cls(**{name: value.to(setting.device) for name, value in values.items()}, lengths_B=lengths_B,
                   mask_BM=mask_BM.to(known), role_BL=role_BL.to(known), pictures=pictures)


@torch.no_grad()
def fill(network: nn.Module, seed: int) -> nn.Module:
    """Random weights that depend on a weight's name, shape and device only, so that all contenders have the same. Each
    of them shows in the result; gains and last layers are small, so that sampling does not magnify rounding."""
    for name, value in network.state_dict().items():
        generator = torch.Generator(value.device).manual_seed(zlib.crc32(name.encode()) + seed)
        drawn = torch.randn(value.shape, generator=generator, device=value.device)
        if value.ndim == 1:
            drawn = drawn.add_(3.0 * name.endswith("weight")).mul_(0.1)
        elif "table" in name or name.endswith("embedding"):
            drawn.mul_(1.0 if name.startswith("y_") else 0.3)
        else:
            drawn.mul_(value[0].numel() ** -0.5 * (0.3 if name.startswith("final_layers") else 1.0))
        value.copy_(drawn)
    return network


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference over largest expected value; infinite for other shapes, NaN if a number is not finite."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.double(), expected.double()
    return ((found - expected).abs().max() / expected.abs().max()).item()
