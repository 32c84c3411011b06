"""What a run has learned, on samples that it does not train on: losses, pictures of all tasks, and how well labels
agree with the true ones. Everything is drawn from fixed seeds, so that evaluations can be compared.
"""

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from jodi_core.domains import JointConfig

from .config import TrainConfig
from .data import collate
from .families import FAMILY
from .gallery import Shown, agreement, sheets, show
from .losses import Batch, JointLoss, Question
from .parallel import Processes
from .pictures import PictureSource
from .tally import Tally

SEED = 20_260_101    # of everything that is drawn here


class Evaluator:
    """All processes call it after the same step; they share the work."""

    def __init__(self, config: TrainConfig, source: PictureSource, processes: Processes):
        self.config, self.source, self.processes = config, source, processes
        self.tasks = tuple(dict.fromkeys(config.tasks))
        order = torch.randperm(len(source.bins_N), generator=generator(0))
        self.chosen = order[:config.evaluation.samples].tolist()

    def due(self, step: int) -> bool:
        return step % self.config.evaluation.every == 0 or step == self.config.steps

    @torch.no_grad()
    def evaluate(self, run) -> tuple[dict[str, float], dict[str, Image.Image]]:
        """Numbers, and a contact sheet per task (on process 0), by name. Of averaged weights, if the run averages."""
        with standing_in(run), self.processes.whole(run.loss):
            values = self.losses(run.inner)
            shown = self.pictures(run) if self.config.evaluation.pictures else []
        return values | agreement(shown), sheets(shown)

    def losses(self, loss: JointLoss) -> dict[str, float]:
        """Means of the errors over the fixed samples: of all, per task, per domain and per band of times."""
        tally = Tally()
        for task, samples in self.passes()[self.processes.rank::self.processes.world]:
            batch, questions = self.ask(task, samples, loss.model.config)
            with self.processes.autocast(self.config.speed):
                _, errors = loss(batch.to(self.processes.device), questions)
            for question, error in zip(questions, errors):
                tally.sample(question, error)
        values = tally.means(self.processes)
        return {"loss": sum(values[task] for task in self.tasks) / len(self.tasks)} | values

    def passes(self) -> list[tuple[str, list[int]]]:
        """All samples with all tasks, grouped by size: what one forward pass evaluates."""
        bins, micro = defaultdict(list), self.config.micro_batch
        for index in self.chosen:
            bins[int(self.source.bins_N[index])].append(index)
        return [(task, members[start:start + micro]) for task in self.tasks for members in bins.values()
                for start in range(0, len(members), micro)]

    def ask(self, task: str, samples: list[int], model: JointConfig) -> tuple[Batch, list[Question]]:
        """One pattern of roles over the domains that all samples have; no caption is left out."""
        generators = [generator(index) for index in samples]
        batch = collate([self.source.item(index, own) for index, own in zip(samples, generators)])
        common_L = batch.present_BL.all(dim=0)
        family = FAMILY[self.config.family]
        roles = family.draw_roles(model.domains, common_L, task, generators[0])
        questions = [family.draw_question(model, self.config.loss, common_L, batch.latents_BCLHW.shape[1:], task, own,
                                          roles) for own in generators]
        return batch, [replace(question, dropped=False) for question in questions]

    def pictures(self, run) -> list[Shown]:
        """Of the first samples what each task makes of them; on process 0, an empty list on the others."""
        chosen = self.chosen[:self.config.evaluation.pictures]
        pipeline = FAMILY[self.config.family].pipeline(run.model, self.source.encoders)
        with self.processes.autocast(self.config.speed):
            own = [show(pipeline, self.config, *self.truth(index), seed=index)
                   for index in chosen[self.processes.rank::self.processes.world]]
        parts = self.processes.gather(own)
        if self.processes.rank:
            return []
        return [parts[place % len(parts)][place // len(parts)] for place in range(len(chosen))]

    def truth(self, index: int) -> tuple[dict[str, Tensor], str]:
        """Pictures (3, H, W) in [-1, 1] of the domains that a sample has, and a caption."""
        sample, target = self.source.samples.sample(index), self.source.samples.target(index)
        return self.source.load(sample, target), sample.choose_caption(generator(index))


def generator(index: int) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + index)


@contextmanager
def standing_in(run):
    """The averaged weights in the place of the trained ones."""
    if run.ema is None:
        yield
        return
    trained = {name: param.detach().clone() for name, param in run.model.named_parameters() if param.requires_grad}
    run.ema.copy_to(run.model)
    try:
        yield
    finally:
        for name, param in run.model.named_parameters():
            if name in trained:
                param.detach().copy_(trained[name])
