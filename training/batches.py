"""Micro-batches in the order of the steps, read ahead by workers. Workers that die are replaced."""

import signal
import tempfile

from torch.utils.data import DataLoader

from .data import MicroBatches
from .faults import Faults, WorkerDied

LONGEST = 70                     # path of temporary files; with the name of a socket at most 107 letters
AHEAD = 2                        # micro-batches that a worker reads ahead
DEATH = ("exited unexpectedly", "ancillary data")    # in what torch and Python raise


class Batches:
    """The micro-batches of this process from a step on. Where they come from does not change what they are."""

    def __init__(self, data: MicroBatches, step: int, faults: Faults):
        self.data, self.faults = data.from_step(step), faults
        self.workers = self.data.config.speed.workers
        if self.workers and len(tempfile.gettempdir()) > LONGEST:
            raise ValueError(f"speed.workers = {self.workers}, but workers send batches through sockets in "
                             f"{tempfile.gettempdir()}, a path longer than {LONGEST} letters, and would wait for ever: "
                             "set the environment variable TMPDIR to a short one")
        self.taken, self.deaths, self.careful = 0, 0, 0    # careful: up to this micro-batch
        self.loader = self.open()

    def open(self):
        """After a death one worker reads one micro-batch at a time: the next death shows which it was."""
        on_death = signal.getsignal(signal.SIGCHLD)
        workers, ahead = (1, 1) if self.careful else (self.workers, AHEAD)
        loader = iter(DataLoader(self.data, batch_size=None, sampler=range(self.taken, len(self.data)),
                                 num_workers=workers, prefetch_factor=ahead if workers else None,
                                 pin_memory=self.data.processes.device.type == "cuda", worker_init_fn=leave_interrupts))
        # Torch would raise at any line of the training process, half an optimiser's step done. Here a death is noticed
        # where a batch of the dead worker is waited for.
        signal.signal(signal.SIGCHLD, on_death)
        return loader

    def __next__(self):
        if self.careful and self.taken >= self.careful:
            self.careful = 0
            self.reopen()
        while True:
            try:
                found = next(self.loader)
            except (RuntimeError, ConnectionError, EOFError) as error:
                if not (self.workers and tells_of_death(error)):
                    raise
                self.replace_workers(error)
            else:
                self.taken, self.deaths = self.taken + 1, 0
                return found

    def replace_workers(self, error: Exception) -> None:
        """WorkerDied if one micro-batch costs more lives than faults.restarts."""
        step, names = self.data.slots(self.taken)[0], self.data.names(self.taken)
        self.deaths += 1
        self.faults.note("worker", f"{error!r}; awaited for step {step} were {', '.join(names)}", step=step)
        if self.deaths > self.data.config.faults.restarts:
            raise WorkerDied(f"data-loader workers died {self.deaths} times while step {step} awaited "
                             f"{', '.join(names)}: reading one of these kills them, or memory ran out (the log of the "
                             "system tells), then fewer speed.workers help; the last checkpoint is whole") from error
        self.careful = self.taken + AHEAD * self.workers
        self.reopen()

    def reopen(self) -> None:
        self.loader = None    # ends its workers
        self.loader = self.open()


def tells_of_death(error: Exception) -> bool:
    """Whether a worker is gone, or was going while its batch was fetched."""
    told = str(error)
    if told.startswith("Caught"):    # by a living worker, which passes on what went wrong
        return False
    return isinstance(error, (ConnectionError, EOFError)) or any(sign in told for sign in DEATH)


def leave_interrupts(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the training process has still to finish its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
