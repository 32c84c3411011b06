"""Texts for pictures, several of each if wished, of which the one that fits best is kept (spec 6.7, 7.2, 11.4).

A network here is that of `text_sampling`; rows are the pictures'.
"""

import torch
from torch import Tensor

from .losses import blank_places, text_loss, text_times
from .text_sampling import Callback, Network, TextOptions, sample_text, seeded_draws

SCORE_DRAWS, SCORE_SEED = 8, 0


@torch.no_grad()
def write_texts(network: Network, starts_PL: Tensor, *, seed: int, steps: int, mask_id: int, end_id: int,
                samples: int = 1, options: TextOptions = TextOptions(), callback: Callback | None = None) -> Tensor:
    """(P, L) token numbers for P pictures, from starts with blanks.

    seed: of the first picture's first text; each further text has the next one, so that it does not matter with which
    others it is made. samples: texts made of each picture, of which the one with the best score is returned.
    ValueError for a seed outside of 0..2^64 - 1, samples or steps below 1.
    """
    if samples < 1 or not 0 <= seed < 2 ** 64:
        raise ValueError(f"samples {samples} must be at least 1, and seed {seed} between 0 and 2^64 - 1")
    starts_BL = starts_PL.repeat_interleave(samples, dim=0)

    def of_samples(rows: Tensor, ids_RL: Tensor, places_RL: Tensor) -> Tensor:
        return network(rows // samples, ids_RL, places_RL)

    draws = seeded_draws([(seed + row) % 2 ** 64 for row in range(len(starts_BL))])
    ids_BL = sample_text(of_samples, starts_BL, draws, steps=steps, mask_id=mask_id, end_id=end_id, options=options,
                         callback=callback)
    if samples == 1:
        return ids_BL
    losses_B = score_texts(of_samples, ids_BL, starts_BL == mask_id, mask_id)
    best_P = losses_B.view(-1, samples).argmin(1)
    return ids_BL.unflatten(0, (-1, samples))[torch.arange(len(best_P)), best_P]


@torch.no_grad()
def score_texts(network: Network, ids_BL: Tensor, asked_BL: Tensor, mask_id: int) -> Tensor:
    """(B,) mean losses of training over draws that are the same for all rows and calls; lower fits better.

    asked_BL: true for the tokens that count; the others are given. Texts of the same picture compare, and of the same
    length.
    """
    generator, (rows, length) = torch.Generator().manual_seed(SCORE_SEED), ids_BL.shape
    total_B = torch.zeros(rows)
    for time in text_times(torch.rand(SCORE_DRAWS, generator=generator)):
        t_B = time.expand(rows)
        blank_BL = blank_places(torch.rand(1, length, generator=generator), t_B, asked_BL)
        logits_MV = network(torch.arange(rows), ids_BL.masked_fill(blank_BL, mask_id), blank_BL)
        total_B += text_loss(logits_MV, ids_BL, blank_BL, t_B).cpu()
    return total_B / SCORE_DRAWS
