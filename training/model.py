"""The model that a run starts from."""

import torch

from jodi_core.models.jodi import JodiTransformer
from jodi_core.weights import load_transformer

from .config import StartConfig, TrainConfig
from .data import Source
from .own_place import attend_own_place

PICTURES = 32    # whose latents show the own place
DEVIATION = 1024


def make_model(config: TrainConfig, source: Source, text) -> JodiTransformer:
    """On the CPU, in float32. text: a GemmaText; its empty prompt is the stored caption of a start from nothing."""
    if config.start.kind == "jodi":
        return load_transformer(config.start.weights, device="cpu", dtype=torch.float32).requires_grad_(True)
    torch.manual_seed(config.seed)
    model = JodiTransformer(config.model)
    model.init_weights()
    with torch.no_grad():
        for block in model.blocks:
            block.scale_shift_table.weight[[2, 5]] += config.start.gate
        model.y_embedder.y_embedding.copy_(text.encode_negative([""], rows=model.config.model_max_length)[0])
    if config.start.own_place:
        attend_own_place(model, latents_of(source, PICTURES))
    return model


def latents_of(source: Source, count: int) -> torch.Tensor:
    """(B, C, L, h, w) of the first samples of the first bin."""
    first = (source.bins_N == source.bins_N[0]).nonzero().flatten()[:count]
    return torch.stack([source.item(int(index), torch.Generator().manual_seed(0)).latents_CLHW for index in first])


def domain_weights(config: TrainConfig, source: Source, domains: int) -> torch.Tensor:
    """(L,) weights of the domains' errors, mean 1: alike, or the inverse standard deviation of their latents."""
    if config.loss.domains == "equal":
        return torch.ones(domains)
    deviation_L = latents_of(source, DEVIATION).std(dim=(0, 1, 3, 4))
    return (1 / deviation_L) / (1 / deviation_L).mean()
