"""Jodi: the model that a run starts from, what of it is trained, and the file that comes out."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from jodi_core import JodiPipeline
from jodi_core.files import write_safetensors
from jodi_core.models.jodi import JodiConfig, JodiTransformer
from jodi_core.weights import load_transformer, read_transformer, resolve, write_model

from .adapters import adapter_tensors, adapters_of, add_adapters, merge_adapters
from .config import SpeedConfig, TrainConfig
from .encoders import Encoders, named
from .extend import extend, train_new_only
from .own_place import attend_own_place
from .sana import load_sana
from .source import Source

PICTURES = 32    # whose latents show the own place
DEVIATION = 1024


def starting_config(config: TrainConfig) -> JodiConfig:
    """Of the model that `make_model` gives, without loading its weights."""
    start = config.start
    if start.kind != "jodi":
        model = config.model
    elif start.weights == "published":
        model = JodiConfig()    # so that it is not fetched
    else:
        model = read_transformer(resolve(start.weights, "transformer"))[0]
    return replace(model, domains=(*model.domains, *start.extend))


def caption_tokens(config: JodiConfig) -> int:
    """Without the start token."""
    return config.model_max_length - 1


def make_model(config: TrainConfig, encoders: Encoders) -> JodiTransformer:
    """On the CPU, in float32. The empty prompt of the text encoder is the stored caption of a new joint model."""
    start = config.start
    if start.kind == "jodi":
        model = load_transformer(named(start, "transformer"), device="cpu", dtype=torch.float32)
    else:
        torch.manual_seed(config.seed)
        model = JodiTransformer(config.model)
        model.init_weights()
        if start.kind == "sana":
            load_sana(model, resolve(named(start, "transformer"), "transformer"))
        with torch.no_grad():
            for block in model.blocks:
                block.scale_shift_table.weight[[2, 5]] += start.gate
            empty_1MC = encoders.text.encode_negative([""], rows=model.config.model_max_length)
            model.y_embedder.y_embedding.copy_(empty_1MC[0])
    if start.extend:
        torch.manual_seed(config.seed)
        model = extend(model, start.extend)
    return model.requires_grad_(True)


def choose_trained(model: JodiTransformer, config: TrainConfig) -> None:
    """Freeze what the mode does not train, put adapters in."""
    if config.mode == "domains":
        train_new_only(model, len(config.start.extend))
    elif config.mode in ("lora", "dora"):
        torch.manual_seed(config.seed)
        add_adapters(model, config.adapter, magnitudes=config.mode == "dora")
        if config.speed.precision == "bf16":    # frozen matrices need no more, they are read in bf16 anyway
            for adapter in adapters_of(model).values():
                adapter.layer.to(torch.bfloat16)


def blocks(model: JodiTransformer) -> Iterable[nn.Module]:
    return model.blocks


def save_memory_and_time(blocks: Iterable[nn.Module], speed: SpeedConfig) -> None:
    """Recomputed and compiled blocks; the results are the same."""
    for number, block in enumerate(blocks):
        if speed.compile:
            block.compile()
        if speed.recompute and number % speed.recompute == 0:
            recompute(block)


def recompute(block: nn.Module) -> None:
    forward = block.forward
    block.forward = lambda *arguments, **options: checkpoint(forward, *arguments, use_reentrant=False, **options)


def start_at_own_place(model: JodiTransformer, source: Source) -> None:
    attend_own_place(model, latents_of(source, PICTURES))


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


def pipeline(model: JodiTransformer, encoders: Encoders) -> JodiPipeline:
    return JodiPipeline(model, encoders.autoencoder, lambda: encoders.text)


def write(model: JodiTransformer, config: TrainConfig, target: Path, step: int, merged: bool) -> None:
    """A transformer in float16; in the modes lora and dora the changes alone, unless `merged`."""
    if config.mode in ("lora", "dora") and not merged:
        write_safetensors(target, adapter_tensors(model), {"jodi_steps": str(step)}, overwrite=True)
    else:
        merge_adapters(model)
        write_model(target, "transformer", model.config, {k: v.half() for k, v in model.state_dict().items()},
                    overwrite=True)
