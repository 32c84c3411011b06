"""Text by masked diffusion: all blanks at first, filled at random, a few per step (spec 6.3 and 6.4).

A network is a function (rows (R,), ids (R, L), places (R, L) bool) -> (M, V) logits at the M places, row by row; rows
say which of the batch these are. The last of V classes is the mask. Token numbers stay on the CPU; the rest is computed
where the logits are, in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

EPS = 1e-5      # time of the last step
NEVER = -1e6    # what the logit of the mask is lowered by

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
Draws = Callable[[int, Tensor, int], Tensor]
Callback = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class TextOptions:
    """Departures from the published sampler; the defaults are none.

    temperature   of the word's distribution, above 0
    top_k         only the k likeliest words; 0: all
    top_p         only the likeliest words that together have this probability; 1: all
    confident     each step fills the blanks whose drawn word is likeliest, and not random ones
    stop_at_end   a text is finished once everything before its first generated `</s>` is filled
    min_length    the first so many blanks of a text do not become `</s>`
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    confident: bool = False
    stop_at_end: bool = False
    min_length: int = 0

    def __post_init__(self):
        if self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.min_length < 0:
            raise ValueError(f"temperature {self.temperature} must be above 0, top_k {self.top_k} and min_length "
                             f"{self.min_length} at least 0, top_p {self.top_p} above 0 and at most 1")


def text_times(steps: int) -> list[float]:
    """steps + 1 times from 1 down to EPS. A blank is still one at time t with probability t."""
    if steps < 1:
        raise ValueError(f"steps {steps} must be at least 1")
    return torch.linspace(1, EPS, steps + 1).tolist()


def seeded_draws(seeds: list[int]) -> Draws:
    """Uniform numbers from one generator per row, on the CPU: a row's text depends on its own seed alone."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draws(row: int, blank_L: Tensor, classes: int) -> Tensor:
        return torch.rand(int(blank_L.sum()), classes, generator=generators[row])
    return draws


def log_probabilities(logits_MV: Tensor, forbidden_MV: Tensor | None = None) -> Tensor:
    """(M, V) float32 distribution over clean words: never the mask (spec 6.3). forbidden: true where never, too."""
    logits_MV = logits_MV.float().clone()
    logits_MV[:, -1] += NEVER
    if forbidden_MV is not None:
        logits_MV = logits_MV.masked_fill(forbidden_MV, NEVER)
    return logits_MV.log_softmax(-1)


def narrowed(log_p_MV: Tensor, options: TextOptions) -> Tensor:
    """(M, V) probabilities after temperature, top-k and top-p."""
    p_MV = (log_p_MV / options.temperature).softmax(-1)
    if options.top_k:
        least_M1 = p_MV.topk(min(options.top_k, p_MV.shape[-1])).values[:, -1:]
        p_MV = p_MV.where(p_MV >= least_M1, 0)
    if options.top_p < 1:
        sorted_MV, order_MV = p_MV.sort(-1, descending=True)
        before_MV = sorted_MV.cumsum(-1) - sorted_MV
        keep_MV = torch.zeros_like(p_MV).scatter(-1, order_MV, (before_MV < options.top_p * sorted_MV.sum(-1, True)
                                                                ).to(p_MV))
        p_MV = p_MV * keep_MV
    return p_MV / p_MV.sum(-1, keepdim=True)


def race(weights_MV: Tensor, u_MV: Tensor) -> Tensor:
    """(M,) classes drawn in proportion to their weights, by the first of V exponential arrivals."""
    return (weights_MV / (1e-10 - (u_MV + 1e-10).log())).argmax(-1)


def some_blanks(p_MV: Tensor, u_MV: Tensor, t: float, s: float) -> Tensor:
    """(M,) words: a blank stays one (the last class) with probability s / t.

    The original's second update rule multiplies all weights by 0.999, and so draws the same.
    """
    weights_MV = p_MV * (t - s)
    weights_MV[:, -1] = s
    return race(weights_MV, u_MV)


def surest_blanks(p_MV: Tensor, u_MV: Tensor, filled: int) -> Tensor:
    """(M,) words: the `filled` blanks with the likeliest drawn words get them, the others stay blank."""
    words_M = race(p_MV, u_MV)
    sure_M = p_MV.gather(-1, words_M[:, None])[:, 0].argsort(descending=True, stable=True)
    words_M[sure_M[filled:]] = p_MV.shape[-1] - 1
    return words_M


class TextSampler:
    """The state of one run: token numbers (B, L), and of each row the distribution at its blanks until it changes."""

    def __init__(self, network: Network, ids_BL: Tensor, mask_id: int, end_id: int, options: TextOptions):
        self.network, self.options = network, options
        self.mask_id, self.end_id = mask_id, end_id
        self.ids_BL = ids_BL.clone()
        self.asked_BL = ids_BL == mask_id
        self.log_p: dict[int, Tensor] = {}
        self.evaluations = 0
        early_BL = self.asked_BL & (self.asked_BL.cumsum(1) <= options.min_length)
        self.no_end_BL = early_BL if options.min_length else None

    def unfinished(self) -> list[int]:
        return (self.ids_BL == self.mask_id).any(1).nonzero()[:, 0].tolist()

    def evaluate(self, rows: list[int]) -> None:
        """Distributions of those rows that changed since they were last evaluated."""
        rows = [row for row in rows if row not in self.log_p]
        if not rows:
            return
        index = torch.tensor(rows)
        blank_RL = self.ids_BL[index] == self.mask_id
        logits_MV = self.network(index, self.ids_BL[index], blank_RL)
        self.evaluations += 1
        forbidden_MV = None
        if self.no_end_BL is not None:
            forbidden_MV = torch.zeros(logits_MV.shape, dtype=torch.bool)
            forbidden_MV[:, self.end_id] = self.no_end_BL[index][blank_RL]
            forbidden_MV = forbidden_MV.to(logits_MV.device)
        parts = log_probabilities(logits_MV, forbidden_MV).split(blank_RL.sum(1).tolist())
        self.log_p.update(zip(rows, parts))

    def write(self, row: int, words_M: Tensor) -> None:
        """Words, or still the mask, into the blanks of a row."""
        blank_L = self.ids_BL[row] == self.mask_id
        words_M = words_M.cpu()
        if (words_M != self.mask_id).any():
            self.ids_BL[row, blank_L] = words_M
            del self.log_p[row]
        if self.options.stop_at_end:
            self.finish_at_end(row)

    def finish_at_end(self, row: int) -> None:
        ids_L, asked_L = self.ids_BL[row], self.asked_BL[row]
        ends = (asked_L & (ids_L == self.end_id)).nonzero()[:, 0].tolist()
        if ends and not (ids_L[:ends[0]] == self.mask_id).any():
            ids_L[ids_L == self.mask_id] = self.end_id

    def step(self, draws: Draws, t: float, s: float) -> None:
        rows = self.unfinished()
        self.evaluate(rows)
        # All draws before any result is looked at, so that they are made while a GPU computes.
        classes = self.mask_id + 1
        uniforms = [draws(row, self.ids_BL[row] == self.mask_id, classes) for row in rows]
        for row, u_MV in zip(rows, uniforms):
            log_p_MV = self.log_p[row]
            u_MV = u_MV.to(log_p_MV.device)
            p_MV = log_p_MV.exp() if self.options == TextOptions() else narrowed(log_p_MV, self.options)
            if self.options.confident:
                left = floor(int(self.asked_BL[row].sum()) * s)
                self.write(row, surest_blanks(p_MV, u_MV, max(0, len(p_MV) - left)))
            else:
                self.write(row, some_blanks(p_MV, u_MV, t, s))

    def close(self) -> None:
        """The likeliest word into every blank that is left."""
        rows = self.unfinished()
        self.evaluate(rows)
        for row in rows:
            self.write(row, self.log_p[row].argmax(-1))


def sample_text(network: Network, ids_BL: Tensor, draws: Draws, *, steps: int, mask_id: int, end_id: int,
                options: TextOptions = TextOptions(), callback: Callback | None = None) -> Tensor:
    """(B, L) token numbers with all blanks filled; given tokens never change.

    draws(row, blank (L,), classes) -> uniform numbers in [0, 1) at the blanks of a row, (blanks, classes).
    callback(step, steps, ids (B, L)) after each step; stops the run by raising. The network is evaluated at most
    steps + 1 times and only for rows that changed. ValueError without a blank.
    """
    times = text_times(steps)
    if not (ids_BL == mask_id).any():
        raise ValueError("nothing to generate: the text has no blanks")
    sampler = TextSampler(network, ids_BL.cpu(), mask_id, end_id, options)
    for k, (t, s) in enumerate(zip(times, times[1:])):
        sampler.step(draws, t, s)
        if callback:
            callback(k + 1, steps, sampler.ids_BL)
        if not sampler.unfinished():
            break
    sampler.close()
    return sampler.ids_BL
