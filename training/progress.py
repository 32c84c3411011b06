"""How far a run is: a bar on a terminal, else a line per log interval."""

import math
import sys
import time
from datetime import timedelta

from tqdm import tqdm

COLUMNS = "{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"


class Progress:
    """From a step to the last one. The bar writes to stderr, lines go to stdout."""

    def __init__(self, step: int, steps: int):
        self.first, self.steps, self.started = step, steps, time.monotonic()
        self.bar = tqdm(total=steps, initial=step, bar_format=COLUMNS, dynamic_ncols=True, file=sys.stderr) \
            if sys.stderr.isatty() else None

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def show(self, step: int, values: dict[str, float]) -> None:
        """Of a line of the log: loss, throughput, memory."""
        text = (f"loss {values.get('loss', math.nan):.4g}, {values['samples_per_s']:.3g} samples/s, "
                f"{values['memory_gb']:.2f} GB")
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            print(f"step {step}/{self.steps}: {text}, {self.left(step)} left", flush=True)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self.bar is not None:
            self.bar.clear()
        print(text, flush=True)

    def left(self, step: int) -> timedelta:
        """At the mean speed so far."""
        seconds = (time.monotonic() - self.started) / (step - self.first) * (self.steps - step)
        return timedelta(seconds=round(seconds))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
