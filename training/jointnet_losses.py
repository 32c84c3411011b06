"""JointNet: what a sample is asked, by chance, and the loss of the predicted noise (spec 1.8, 2, 4.2).

How the original was trained is not published. Decided here: both latents are noised to one timestep, given parts too,
as they are in sampling; the loss is the mean squared error of the noise over what is generated, because what is
predicted elsewhere is overwritten; a given domain is not decoded.
"""

import torch
from torch import Tensor

from jodi_core.domains import JointRoles
from jodi_core.jointnet.network import JointNet, known_input
from jodi_core.jointnet.schedule import noise_levels

from .config import LossConfig
from .losses import Batch, JointLoss, Question, level_index

GIVEN = {"control": 1, "perceive": 0}    # task -> the domain that is known everywhere
RECTANGLES = 3                           # at most, in a mask
UNUSED = ("up_blocks", "conv_norm_out", "conv_out", "jointnet_down_blocks", "jointnet_mid_block")


def draw_task_roles(domains: tuple[str, ...], present_L: Tensor, task: str, generator: torch.Generator) -> JointRoles:
    """Every sample has both domains, and a task says all, so nothing is drawn."""
    given = [name for place, name in enumerate(domains) if place == GIVEN.get(task)]
    return JointRoles.of(domains, generate=[name for name in domains if name not in given], condition=given)


def draw_question(model_config, loss: LossConfig, present_L: Tensor, shape, task: str,
                  generator: torch.Generator, roles: JointRoles | None = None) -> Question:
    """shape: (C, L, h, w) of a sample's latents. Its time is a timestep, 0..999."""
    roles = roles or draw_task_roles(model_config.domains, present_L, task, generator)
    draw = (torch.randn if loss.times == "logit_normal" else torch.rand)((), generator=generator)
    timestep = int(level_index(loss, draw))
    dropped = bool(torch.rand((), generator=generator) < loss.caption_dropout)
    noise_CLHW = torch.randn(shape, generator=generator)
    mask_LHW = torch.ones(shape[1:])
    if task == "inpaint":
        mask_LHW = draw_masks(shape[1:], generator)
    mask_LHW[list(roles.condition_slots)] = 0
    return Question(task, roles, float(noise_levels()[timestep]), timestep, dropped, noise_CLHW, mask_LHW)


def draw_masks(shape, generator: torch.Generator) -> Tensor:
    """(L, h, w) masks of each domain, half of the time one for all of them; 1 = generate."""
    masks = [draw_mask(shape[1:], generator) for _ in range(shape[0])]
    shared = bool(torch.randint(2, (), generator=generator))
    return torch.stack([masks[0]] * len(masks) if shared else masks)


def draw_mask(size, generator: torch.Generator) -> Tensor:
    """(h, w): 1 in a few rectangles, or everywhere but there; never 0 everywhere."""
    mask_HW = torch.zeros(size)
    for _ in range(1 + int(torch.randint(RECTANGLES, (), generator=generator))):
        spans = []
        for side in size:
            length = 1 + int(torch.randint(side, (), generator=generator))
            first = int(torch.randint(side - length + 1, (), generator=generator))
            spans.append(slice(first, first + length))
        mask_HW[tuple(spans)] = 1
    if torch.randint(2, (), generator=generator):
        mask_HW = 1 - mask_HW
    return mask_HW if mask_HW.any() else torch.ones(size)


class JointNetLoss(JointLoss):
    """empty_1MC: text features of the empty caption."""

    def __init__(self, model: JointNet, config: LossConfig, weight_L: Tensor, empty_1MC: Tensor):
        super().__init__(model, config, weight_L)
        self.register_buffer("empty_1MC", empty_1MC, persistent=False)

    def nothing(self) -> Tensor:
        """Zero that depends on what a task with a given domain does not use."""
        return 0.0 * sum(param.sum() for branch in self.model.branches for part in UNUSED
                         for param in getattr(branch, part).parameters() if param.requires_grad)

    def errors(self, batch: Batch, questions: list[Question], roles: JointRoles, rows: list[int]) -> Tensor:
        """(B, D) weighted mean squared error of the predicted noise over generated cells, 0 where there are none."""
        clean = batch.latents_BCLHW[rows]
        noise = torch.stack([question.noise_CLHW for question in questions]).to(clean)
        mask = torch.stack([question.mask_LHW for question in questions])[:, None].to(clean)
        sigma_B, time_B = (torch.tensor([getattr(question, name) for question in questions], device=clean.device)
                           for name in ("sigma", "time"))
        sigma = sigma_B.to(clean.dtype).view(-1, 1, 1, 1, 1)
        noisy = (clean + sigma * noise) / (1 + sigma ** 2).sqrt()
        known = known_input(mask, clean) if self.model.config.masked_input else None
        text = self.model.read_text(*self.captions(batch, questions, rows))
        found = self.model(noisy, time_B, text, roles, known)
        error = (found.float() - noise.float()).square().mean(dim=1) * mask[:, 0]
        weight_B = 1 + sigma_B ** 2 if self.config.weighting == "velocity" else torch.ones_like(sigma_B)
        return weight_B[:, None] * error.sum(dim=(2, 3)) / mask[:, 0].sum(dim=(2, 3)).clamp_min(1)

    def captions(self, batch: Batch, questions: list[Question], rows: list[int]) -> tuple[Tensor, Tensor]:
        """Text features (B, M, C) and which of them count, the empty caption in the place of dropped ones."""
        empty_1MC = self.empty_1MC.to(batch.text_BMC)
        length = max(batch.text_BMC.shape[1], empty_1MC.shape[1])
        text_BMC = empty_1MC.new_zeros(len(rows), length, empty_1MC.shape[2])
        mask_BM = torch.zeros(len(rows), length, dtype=torch.bool, device=text_BMC.device)
        for place, (row, question) in enumerate(zip(rows, questions)):
            features_MC = empty_1MC[0] if question.dropped else batch.text_BMC[row][batch.mask_BM[row]]
            text_BMC[place, :len(features_MC)], mask_BM[place, :len(features_MC)] = features_MC, True
        return text_BMC, mask_BM


def make_loss(model: JointNet, config: LossConfig, weight_L: Tensor, encoders) -> JointNetLoss:
    """ValueError if the text features do not fit the model."""
    empty_1MC = encoders.text.encode_negative([""])
    if empty_1MC.shape[-1] != model.config.text_width:
        raise ValueError(f"the text features are {empty_1MC.shape[-1]} wide, but the model takes "
                         f"{model.config.text_width}: name the start.text_encoder that belongs to it")
    return JointNetLoss(model, config, weight_L, empty_1MC.cpu())
