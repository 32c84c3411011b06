"""Dual Diffusion: the model that a run starts from, what of it is trained, and the files that come out."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from jodi_core.dual_diffusion.network import DualDiffusionTransformer
from jodi_core.dual_diffusion.start import start_from_sd3
from jodi_core.dual_diffusion.t5 import T5States
from jodi_core.dual_diffusion.weights import component, read_transformer
from jodi_core.files import WeightsError, locate, read_folder, read_tensors, write_safetensors
from jodi_core.weights import write_model

from .config import TrainConfig
from .dual_config import DualTrainingConfig
from .dual_encoders import DualEncoders


class DualTrainee(nn.Module):
    """Network and text encoder: token numbers in, both predictions out.

    A text encoder that stays as it is is no part of the module, so that it is neither copied nor sharded nor saved.
    """

    def __init__(self, config: DualTrainingConfig, network: DualDiffusionTransformer, t5: T5States):
        super().__init__()
        self.config, self.network, self.frozen = config, network, (t5,)
        self.t5, self.mask_row_E = None, None    # if they are trained

    @property
    def blocks(self) -> nn.ModuleList:
        return self.network.transformer_blocks

    def forward(self, latents_BCHW: Tensor, ids_BL: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity (B, C, H, W) and text logits (B, L, vocab_size); see `DualDiffusionTransformer.forward`."""
        weight = self.network.null_image_embd
        return self.network(latents_BCHW.to(weight.dtype), self.states(ids_BL).to(weight.dtype), t_B)

    def states(self, ids_BL: Tensor) -> Tensor:
        """(B, L, joint_attention_dim) of the text encoder."""
        if self.t5 is not None:
            return self.t5(input_ids=ids_BL).last_hidden_state
        if self.mask_row_E is None:
            return self.frozen[0](ids_BL)
        model = self.frozen[0].model
        words_BLE = model.shared(ids_BL)
        masked_BL1 = (ids_BL == self.config.mask_id)[..., None]
        return model(inputs_embeds=torch.where(masked_BL1, self.mask_row_E.to(words_BLE), words_BLE)).last_hidden_state


def starting_config(config: TrainConfig) -> DualTrainingConfig:
    """Of the model that `make_model` gives."""
    if config.start.kind != "dual_diffusion":
        return config.model
    found, _ = read_transformer(config.start.weights)
    return replace(config.model, **found.to_dict())


def make_model(config: TrainConfig, encoders: DualEncoders) -> DualTrainee:
    """In float32, the network on the CPU. WeightsError if the autoencoder does not fit the network."""
    model_config = starting_config(config)
    autoencoder = encoders.autoencoder
    if autoencoder.channels != model_config.in_channels or model_config.side % autoencoder.factor:
        raise WeightsError(f"start.autoencoder makes latents of {autoencoder.channels} channels, factor "
                           f"{autoencoder.factor}, but the model takes {model_config.in_channels} channels of pictures "
                           f"of {model_config.side} pixels: name the autoencoder that belongs to the weights, or set "
                           "model.in_channels and model.side")
    torch.manual_seed(config.seed)
    network = DualDiffusionTransformer(model_config.network)
    network.init_weights()
    with torch.no_grad():
        for block in network.transformer_blocks:
            for modulation in (block.norm1, block.norm1_context):
                modulation.linear.bias.view(6, -1)[[2, 5]] += config.start.gate
    if config.start.kind == "dual_diffusion":
        network.load_state_dict({k: v.float() for k, v in read_transformer(config.start.weights)[1].items()})
    elif config.start.kind == "sd3":
        network.load_state_dict(start_from_sd3(read_sd3(config.start.weights), network.state_dict()))
    return DualTrainee(model_config, network, encoders.t5)


def read_sd3(ref: str) -> dict[str, Tensor]:
    """The transformer's tensors. ref: a file in diffusers naming, its folder, or that of the whole pipeline."""
    path = component(locate(ref), "transformer")
    return read_folder(path) if path.is_dir() else read_tensors(path)


def choose_trained(model: DualTrainee, config: TrainConfig) -> None:
    """The network always; the text encoder's row of the mask token, or all of it, in the modes named after them."""
    t5 = model.frozen[0].model
    if config.mode == "text_encoder":
        t5.set_input_embeddings(t5.shared)    # one parameter and not two of the same memory
        model.t5 = t5.float().requires_grad_(True)
    elif config.mode == "mask_embedding":
        model.mask_row_E = nn.Parameter(t5.shared.weight[model.config.mask_id].float().cpu())


def blocks(model: DualTrainee) -> Iterable[nn.Module]:
    return model.blocks


def write(model: DualTrainee, config: TrainConfig, target: Path, step: int, merged: bool) -> None:
    """The transformer under the published names, float16. What else is trained lies beside it: `mask_token_emb` for
    the loaders' mask embedding, or `text_encoder`."""
    network = model.config.network
    write_model(target, "dual_diffusion", network, half(model.network.state_dict()), overwrite=True)
    if model.mask_row_E is not None:
        write_safetensors(target.with_name("mask_token_emb.safetensors"), half({"mask_token_emb": model.mask_row_E}),
                          {"format": "pt"}, overwrite=True)
    if model.t5 is not None:
        tensors = model.t5.state_dict()
        del tensors["encoder.embed_tokens.weight"]    # is shared.weight
        write_safetensors(target.with_name("text_encoder.safetensors"), half(tensors), {"format": "pt"}, overwrite=True)


def half(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}


def caption_tokens(config: DualTrainingConfig) -> int:
    """Without the end token."""
    return config.length - 1


def open_encoders(config: TrainConfig, device: torch.device) -> DualEncoders:
    return DualEncoders(config.start, starting_config(config), device)
