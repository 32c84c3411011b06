"""What a sample is asked, by chance, and the flow-matching loss of the answer (spec 8.3 and 8.5).

Every sample of every step has a random generator of its own, seeded by (seed, step, place in the batch): a run that
resumes, on any number of processes, asks the same.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jodi_core.domains import JointRoles
from jodi_core.models.jodi import JodiTransformer
from jodi_core.role_sampling import draw_roles

from .config import LossConfig

TASK_LETTERS = {"joint": "j", "control": "c", "perceive": "p"}
BASE_SIGMAS = 1 - torch.linspace(1, 0.001, 1000, dtype=torch.float64)


@dataclass(frozen=True)
class Batch:
    """Samples of one size. Absent domains hold zeros."""

    latents_BCLHW: Tensor    # scaled, all domains of the model
    present_BL: Tensor       # bool
    text_BMC: Tensor         # features; Dual Diffusion: token numbers and labels (B, M, 2)
    mask_BM: Tensor          # bool, True = valid
    names: tuple[str, ...] = ()
    skipped: int = 0         # unreadable samples that others stand for

    def to(self, device) -> "Batch":
        moved = (part.to(device, non_blocking=True) for part in (self.latents_BCLHW, self.present_BL, self.text_BMC,
                                                                 self.mask_BM))
        return Batch(*moved, self.names, self.skipped)


@dataclass(frozen=True)
class Question:
    """What one sample is asked."""

    task: str
    roles: JointRoles
    sigma: float             # noise level; of a text the uniform draw that its share of blanks is made of
    time: float | None       # what the model is told, 0..1000; of a text nothing
    dropped: bool            # caption
    noise_CLHW: Tensor | None         # of pictures
    mask_LHW: Tensor | None = None    # of families with masks: 1 where latents are made, 0 where they are given
    uniform_L: Tensor | None = None   # of texts: which places become blanks


def shifted_sigmas(shift: float) -> Tensor:
    """(1000,) float64 noise levels of the training schedule."""
    return shift * BASE_SIGMAS / (1 + (shift - 1) * BASE_SIGMAS)


def level_index(config: LossConfig, draws: Tensor) -> Tensor:
    """Draws -> indices 0..999 of noise levels. The draws are normal for "logit_normal", else uniform in 0..1."""
    if config.times == "logit_normal":
        u = torch.sigmoid(draws * config.std + config.mean)
    elif config.times == "mode":    # Esser et al. 2024, eq. 20
        u = 1 - draws - config.mode_scale * (torch.cos(torch.pi / 2 * draws) ** 2 - 1 + draws)
    else:
        u = draws
    return (u * 1000).long().clamp(0, 999)


def draw_time(config: LossConfig, shift: float, generator: torch.Generator) -> tuple[float, float]:
    """(noise level, time that the model is told)."""
    draw = (torch.randn if config.times == "logit_normal" else torch.rand)((), generator=generator)
    sigma = shifted_sigmas(shift)[level_index(config, draw)]
    return float(sigma), float(1000 * sigma if config.exact_time else (1000 * sigma).trunc())


def sample_generator(seed: int, step: int, slot: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 65_536 + slot)


def draw_task_roles(domains: tuple[str, ...], present_L: Tensor, task: str, generator: torch.Generator) -> JointRoles:
    return JointRoles(domains, draw_roles(present_L[1:].tolist(), TASK_LETTERS[task], generator))


def draw_question(model_config, loss: LossConfig, present_L: Tensor, shape, task: str,
                  generator: torch.Generator, roles: JointRoles | None = None) -> Question:
    """roles: given ones in place of drawn ones, for micro-batches that share a pattern."""
    if roles is None:
        roles = draw_task_roles(model_config.domains, present_L, task, generator)
    sigma, time = draw_time(loss, model_config.flow_shift, generator)
    dropped = bool(torch.rand((), generator=generator) < model_config.class_dropout_prob)
    return Question(task, roles, sigma, time, dropped, torch.randn(shape, generator=generator))


class JointLoss(nn.Module):
    """The model with its loss around it, so that what shards or copies modules sees one forward call.

    weight_L: weight of each domain's error, mean 1.
    """

    def __init__(self, model: nn.Module, config: LossConfig, weight_L: Tensor):
        super().__init__()
        self.model, self.config = model, config
        self.register_buffer("weight_L", weight_L, persistent=False)

    def forward(self, batch: Batch, questions: list[Question]) -> tuple[Tensor, list[dict]]:
        """(sum of the samples' losses, and of each sample its mean squared error per generated domain).

        A sample's loss is the mean over its generated domains times (their share of all domains) ** share.
        """
        groups = defaultdict(list)
        for row, question in enumerate(questions):
            groups[question.roles].append(row)
        total, errors = 0.0, [{} for _ in questions]
        for roles, rows in groups.items():
            error_BD = self.errors(batch, [questions[row] for row in rows], roles, rows)
            slots = list(roles.generated_slots)
            domains = [roles.active[slot] for slot in slots]
            share = (len(slots) / len(roles.domains)) ** self.config.share
            total = total + (error_BD[:, slots] * self.weight_L[domains]).mean(dim=1).sum() * share
            for row, values in zip(rows, error_BD.detach()):
                errors[row] = {roles.domains[domain]: values[slot] for slot, domain in zip(slots, domains)}
        return total + self.nothing(), errors

    def nothing(self) -> Tensor:
        """Zero that depends on every domain's own layers: ignored ones get a gradient of zero and not none, so that all
        processes exchange the same tensors."""
        layers = (self.model.x_embedders, self.model.final_layers)
        return 0.0 * sum(param.sum() for part in layers for param in part.parameters() if param.requires_grad)

    def errors(self, batch: Batch, questions: list[Question], roles: JointRoles, rows: list[int]) -> Tensor:
        """(B, D) mean squared error of the velocity of active domains, of samples with the same roles."""
        x0 = roles.keep_active(batch.latents_BCLHW[rows])
        noise = roles.keep_active(torch.stack([question.noise_CLHW for question in questions]).to(x0))
        sigma_B, time_B = (torch.tensor([getattr(question, name) for question in questions], dtype=torch.float64,
                                        device=x0.device) for name in ("sigma", "time"))
        dropped = torch.tensor([question.dropped for question in questions], device=x0.device)
        sigma = sigma_B.to(x0.dtype).view(-1, 1, 1, 1, 1)
        context = self.model.prepare(batch.text_BMC[rows], batch.mask_BM[rows], roles, x0, null_rows_T=dropped,
                                     dtype=x0.dtype)
        velocity = self.model.velocity((1 - sigma) * x0 + sigma * noise, time_B.to(x0.dtype), context)
        return (velocity.float() - (noise - x0).float()).square().mean(dim=(1, 3, 4))


def make_loss(model: JodiTransformer, config: LossConfig, weight_L: Tensor, encoders) -> JointLoss:
    """encoders: for families whose model does not hold the empty caption."""
    return JointLoss(model, config, weight_L)
