"""Micro-batches in the order of the steps, read ahead by workers. Workers that die are replaced."""

import signal

from torch.utils.data import DataLoader

from .data import MicroBatches
from .faults import Faults, WorkerDied

DEATH = "exited unexpectedly"    # in what torch raises, of a worker or of the thread that reads from it


class Batches:
    """The micro-batches of this process from a step on. Where they come from does not change what they are."""

    def __init__(self, data: MicroBatches, step: int, faults: Faults):
        self.data, self.faults = data.from_step(step), faults
        self.taken, self.deaths = 0, 0
        self.loader = self.open()

    def open(self):
        speed, on_death = self.data.config.speed, signal.getsignal(signal.SIGCHLD)
        loader = iter(DataLoader(self.data, batch_size=None, sampler=range(self.taken, len(self.data)),
                                 num_workers=speed.workers, pin_memory=self.data.processes.device.type == "cuda",
                                 worker_init_fn=leave_interrupts))
        # Torch would raise at any line of the training process, half an optimiser's step done. Here a death is noticed
        # where a batch of the dead worker is waited for.
        signal.signal(signal.SIGCHLD, on_death)
        return loader

    def __next__(self):
        while True:
            try:
                found = next(self.loader)
            except RuntimeError as error:
                if DEATH not in str(error):
                    raise
                self.replace_workers(error)
            else:
                self.taken, self.deaths = self.taken + 1, 0
                return found

    def replace_workers(self, error: RuntimeError) -> None:
        """WorkerDied if one micro-batch costs more lives than faults.restarts."""
        step, names = self.data.slots(self.taken)[0], self.data.names(self.taken)
        self.deaths += 1
        self.faults.note("worker", f"{error} before step {step}; awaited were {', '.join(names)}", step=step)
        if self.deaths > self.data.config.faults.restarts:
            raise WorkerDied(f"{self.deaths} data-loader workers died one after the other before step {step}, which reads "
                             f"{', '.join(names)}: one of these is not to be read, or memory ran out (the system's log "
                             "tells): fewer speed.workers need less; the last checkpoint is whole") from error
        self.loader = None    # ends the other workers
        self.loader = self.open()


def leave_interrupts(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the training process has still to finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
