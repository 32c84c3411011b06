"""Dual Diffusion: what a sample is asked, by chance, and the losses of picture and text (spec 7.1 to 7.3).

A micro-batch is either pictures from texts or texts from pictures; those of a step together make the joint loss. Its
mean is over all samples of the step, where the original sums both halves and all micro-batches.
"""

import torch
from torch import Tensor

from jodi_core.domains import JointRoles
from jodi_core.dual_diffusion.losses import blank_places, noised, picture_loss, picture_times, text_loss, text_times
from jodi_core.dual_diffusion.roles import IMAGE, PICTURE_FROM_TEXT, TEXT, TEXT_FROM_PICTURE

from .config import LossConfig
from .dual_model import DualTrainee
from .losses import Batch, JointLoss, Question

ROLES = {"picture": PICTURE_FROM_TEXT, "text": TEXT_FROM_PICTURE}
ID, LABEL = 0, 1    # of a place in a text: its token number, and 1 where it is to be learned


def draw_task_roles(domains: tuple[str, ...], present_L: Tensor, task: str, generator: torch.Generator) -> JointRoles:
    """A task says all, so nothing is drawn."""
    return ROLES[task]


def draw_question(model_config, loss: LossConfig, present_L: Tensor, shape, task: str,
                  generator: torch.Generator, roles: JointRoles | None = None) -> Question:
    """Of a picture a time in 1..1000 and the noise; of a text the draws that its time and its blanks are made of."""
    if task == "text":
        draws = torch.rand(1 + model_config.text_length, generator=generator)
        return Question(task, ROLES[task], float(draws[0]), None, False, None, uniform_L=draws[1:])
    time = float(picture_times(torch.randn(1, generator=generator)))
    dropped = bool(torch.rand((), generator=generator) < loss.caption_dropout)
    return Question(task, ROLES[task], time / 1000, time, dropped, torch.randn(shape, generator=generator))


class DualLoss(JointLoss):
    """empty_L: token numbers of the empty caption."""

    def __init__(self, model: DualTrainee, config: LossConfig, weight_L: Tensor, empty_L: list[int]):
        super().__init__(model, config, weight_L)
        self.register_buffer("empty_L", torch.tensor(empty_L), persistent=False)

    def forward(self, batch: Batch, questions: list[Question]) -> tuple[Tensor, list[dict]]:
        """(weighted sum of the samples' losses, and of each sample its loss); one task for all of them."""
        task, = {question.task for question in questions}
        if task == "picture":
            loss_B, name, weight = self.picture_losses(batch, questions), IMAGE, 1.0
        else:
            loss_B, name, weight = self.text_losses(batch, questions), TEXT, self.config.text_weight
        return weight * loss_B.sum() + self.nothing(), [{name: value} for value in loss_B.detach()]

    def nothing(self) -> Tensor:
        return 0.0 * self.model.network.null_image_embd.sum()

    def picture_losses(self, batch: Batch, questions: list[Question]) -> Tensor:
        """(B,): a velocity for noisy latents, the text given (spec 7.3)."""
        z_BCHW = batch.latents_BCLHW[:, :, 0]
        noise_BCHW = torch.stack([question.noise_CLHW[:, 0] for question in questions]).to(z_BCHW)
        t_B = torch.tensor([question.time for question in questions], device=z_BCHW.device)
        dropped_B = torch.tensor([question.dropped for question in questions], device=z_BCHW.device)
        words_BL = torch.where(dropped_B[:, None], self.empty_L, batch.text_BMC[..., ID])
        velocity_BCHW, logits_BLV = self.model(noised(z_BCHW, noise_BCHW, t_B), words_BL, t_B)
        return picture_loss(velocity_BCHW, z_BCHW, noise_BCHW, t_B) + 0.0 * logits_BLV.sum()

    def text_losses(self, batch: Batch, questions: list[Question]) -> Tensor:
        """(B,): the words at blanks, the clean picture given (spec 7.2)."""
        words_BL, label_BL = batch.text_BMC.unbind(-1)
        t_B = text_times(torch.tensor([question.sigma for question in questions])).to(words_BL.device)
        uniform_BL = torch.stack([question.uniform_L for question in questions]).to(t_B.device)
        blank_BL = blank_places(uniform_BL, t_B, label_BL)
        noisy_BL = words_BL.masked_fill(blank_BL, self.model.config.mask_id)
        image_BCHW, logits_BLV = self.model(batch.latents_BCLHW[:, :, 0], noisy_BL, torch.zeros_like(t_B))
        return text_loss(logits_BLV[blank_BL], words_BL, blank_BL, t_B) + 0.0 * image_BCHW.sum()


def make_loss(model: DualTrainee, config: LossConfig, weight_L: Tensor, encoders) -> DualLoss:
    return DualLoss(model, config, weight_L, encoders.words.prompt("", model.config.length))
