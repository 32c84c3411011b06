"""A start from which a small joint model learns in an hour instead of a day.

Linear attention must discover that a token's best source is the same place in another domain. Its queries and keys
can say so from the first step: a row of weights that is positive at one place only, after the ReLU, is found by least
squares, because the position table tells rows and columns apart. Everything stays trainable.
"""

import torch
from torch import Tensor

from jodi_core.domains import JointRoles
from jodi_core.models.jodi import JodiTransformer

# A detector is (own row) + (own column) - THRESHOLD before the ReLU: linear in the table, positive at one place.
THRESHOLD = 1.3
GAIN = 4.0    # of detectors over the heads' other rows, which match every place


def attention_input(model: JodiTransformer, block: int, x_BCDHW: Tensor, t: Tensor, context) -> Tensor:
    """(tokens, C) features that enter the self-attention of a block."""
    seen = []
    handle = model.blocks[block].attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        model.velocity(x_BCDHW, t, context)
    finally:
        handle.remove()
    return seen[0]


@torch.no_grad()
def attend_own_place(model: JodiTransformer, latents_BCDHW: Tensor, ridge: float = 1e-4) -> None:
    """Set the first rows of every head's queries and keys to detectors of the places of the latents' grid.

    latents_BCDHW: scaled latents of all domains, unpatched side h = w. Needs linear_head_dim >= number of places.
    """
    config, (height, width) = model.config, (side // model.config.patch_size for side in latents_BCDHW.shape[-2:])
    places, head = height * width, config.linear_head_dim
    if head < places:
        raise ValueError(f"linear_head_dim {head} is smaller than the {places} places of a {height}x{width} grid")
    roles = JointRoles.of(config.domains, generate=config.domains)
    generator = torch.Generator().manual_seed(0)
    sigma = torch.linspace(0.05, 1, len(latents_BCDHW))
    noise = torch.randn(latents_BCDHW.shape, generator=generator)
    x = latents_BCDHW.lerp(noise, sigma.view(-1, 1, 1, 1, 1))
    context = model.prepare(model.y_embedder.y_embedding[None], None, roles, latents_BCDHW)
    row, column = torch.arange(places) // width, torch.arange(places) % width
    wanted_NP = (row == row[:, None]).double() + (column == column[:, None]).double() - THRESHOLD
    for number, block in enumerate(model.blocks):
        z_BDNC = attention_input(model, number, x, 1000 * sigma, context)
        z = z_BDNC.flatten(0, 1).double()                                  # (pictures, N, C)
        gram = torch.einsum("bnc,bnd->cd", z, z)
        gram += ridge * gram.diagonal().mean() * torch.eye(len(gram))
        detectors_PC = torch.linalg.solve(gram, z.sum(0).T @ wanted_NP).T.float()
        weight = block.attn.qkv.weight
        for first in range(0, 2 * config.hidden_size, head):               # queries, then keys, head by head
            weight[first:first + places] = GAIN * detectors_PC
            weight[first + places:first + head] *= 0.1
