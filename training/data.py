"""Samples to micro-batches with their questions. Runs in the workers of a data loader; no randomness of its own."""

from dataclasses import dataclass, replace

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from jodi_core.domains import JointConfig

from .config import TrainConfig
from .families import FAMILY
from .losses import Batch, Question, sample_generator
from .order import BatchOrder, share_of
from .parallel import Processes
from .source import Item, Source

PATTERNS = 60_000    # above the places of samples in a batch: generators of what a micro-batch shares


@dataclass(frozen=True)
class MicroBatches(Dataset):
    """Micro-batch number n of this process, counted over all steps from `first`: (batch, questions)."""

    source: Source
    order: BatchOrder
    config: TrainConfig
    model_config: JointConfig
    processes: Processes
    first: int = 0          # step

    @property
    def accumulation(self) -> int:
        return self.config.accumulation(self.processes.world)

    def from_step(self, step: int) -> "MicroBatches":
        return replace(self, first=step)

    def __len__(self) -> int:
        return (self.config.steps - self.first) * self.accumulation

    def __getitem__(self, number: int) -> tuple[Batch, list[Question]]:
        config, (step, slots) = self.config, self.slots(number)
        generators = [sample_generator(config.seed, step, slot) for slot in slots]
        samples = self.order.samples(step)
        batch = collate([self.source.item(samples[slot], generator) for slot, generator in zip(slots, generators)])
        return batch, (self.shared_questions if config.in_turn else self.own_questions)(batch, generators, step, slots)

    def slots(self, number: int) -> tuple[int, range]:
        """(step, places in its batch) of a micro-batch."""
        if number >= len(self):
            raise IndexError(number)
        later, micro = divmod(number, self.accumulation)
        return self.first + later, share_of(micro, self.processes.rank, self.processes.world, self.config.micro_batch)

    def names(self, number: int) -> list[str]:
        """Of the samples of a micro-batch."""
        step, slots = self.slots(number)
        samples = self.order.samples(step)
        return [self.source.name(samples[slot]) for slot in slots]

    def own_questions(self, batch: Batch, generators, step: int, slots: range) -> list[Question]:
        """Each sample draws its task and its roles."""
        tasks, family = self.config.tasks, FAMILY[self.config.family]
        return [family.draw_question(self.model_config, self.config.loss, present_L, batch.latents_BCLHW.shape[1:],
                                     tasks[int(torch.randint(len(tasks), (), generator=generator))], generator)
                for present_L, generator in zip(batch.present_BL, generators)]

    def shared_questions(self, batch: Batch, generators, step: int, slots: range) -> list[Question]:
        """One task, whose turn it is, and one role pattern over the domains that all samples have."""
        config, family = self.config, FAMILY[self.config.family]
        place = (step * config.batch + slots.start) // config.micro_batch
        task = config.tasks[place % len(config.tasks)]
        common_L = batch.present_BL.all(dim=0)
        shared = sample_generator(config.seed, step, PATTERNS + slots.start)
        roles = family.draw_roles(self.model_config.domains, common_L, task, shared)
        return [family.draw_question(self.model_config, config.loss, common_L, batch.latents_BCLHW.shape[1:], task,
                                     generator, roles) for generator in generators]


def collate(items: list[Item]) -> Batch:
    text_BMC = pad_sequence([item.text_MC for item in items], batch_first=True)
    lengths_B = torch.tensor([len(item.text_MC) for item in items])
    return Batch(torch.stack([item.latents_CLHW for item in items]), torch.stack([item.present_L for item in items]),
                 text_BMC, torch.arange(text_BMC.shape[1]) < lengths_B[:, None], tuple(item.name for item in items),
                 sum(item.skipped for item in items))
