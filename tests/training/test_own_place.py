"""The start at which attention already looks at the same place of the other domains."""

import pytest
import torch
import torch.nn.functional as F

from jodi_core.domains import JointRoles
from jodi_core.models.jodi import JodiConfig, JodiTransformer
from training.own_place import attend_own_place, attention_input

SIDE = 4


def fresh_model(**changes):
    torch.manual_seed(0)
    model = JodiTransformer(JodiConfig(**dict(
        domains=("image", "depth", "edge"), hidden_size=128, depth=3, num_heads=2, in_channels=4, input_size=SIDE,
        pe_interpolation=0.5, caption_channels=8, model_max_length=6, y_norm_scale_factor=1.0) | changes))
    model.init_weights()
    return model


@torch.no_grad()
def own_place_share(model, block):
    """Mean share of a token's attention that goes to its own place, of any domain, on unseen latents."""
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn(4, 4, 3, SIDE, SIDE, generator=generator)
    roles = JointRoles.of(model.config.domains, generate=model.config.domains)
    context = model.prepare(model.y_embedder.y_embedding[None], None, roles)
    z_BSC = attention_input(model, block, latents, torch.full((4,), 400.0), context).flatten(1, 2)
    q, k, _ = model.blocks[block].attn.qkv(z_BSC).chunk(3, dim=-1)
    q, k = (F.relu(part.unflatten(-1, (-1, model.config.linear_head_dim))).transpose(1, 2) for part in (q, k))
    score = (q @ k.mT).unflatten(-1, (3, -1)).sum(-2).unflatten(-2, (3, -1))    # (B, H, domain, place, place)
    return (score.diagonal(dim1=-2, dim2=-1).sum(-1) / score.sum((-2, -1))).mean().item()


def test_attention_starts_at_the_own_place_in_every_block():
    model = fresh_model()
    before = [own_place_share(model, block) for block in range(3)]
    attend_own_place(model, torch.randn(32, 4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))
    after = [own_place_share(model, block) for block in range(3)]
    assert max(before) < 2 / SIDE ** 2
    assert min(after) > 0.5


def test_a_grid_with_more_places_than_a_head_has_channels():
    with pytest.raises(ValueError, match="linear_head_dim 32 is smaller than the 64 places of a 8x8 grid"):
        attend_own_place(fresh_model(), torch.zeros(2, 4, 3, 8, 8))
