"""VAE: the deep-compression autoencoder as a VAE of the host, for single pictures and for whole joint latents."""

from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch

from ...jodi_core import weights
from ...jodi_core.domains import JointConfig
from ...jodi_core.models.dcae import DCAE
from ...jodi_core.pictures import postprocess
from .version import require, require_attributes

# Bytes of working memory per byte and pixel: 576 are counted (benchmarks/counted_memory.py), kernels take some more.
MEMORY_PER_PIXEL = 1000
# Attributes of the host's object that get another value here.
REPLACED = ("latent_channels", "latent_dim", "not_video", "upscale_ratio", "downscale_ratio", "upscale_index_formula",
            "downscale_index_formula", "memory_used_encode", "memory_used_decode", "disable_offload", "size",
            "first_stage_model", "patcher", "vae_dtype")


class DomainwiseDCAE(DCAE):
    """DCAE on tensors with a domain axis, one domain after the other: eight pictures need the memory of one."""

    def encode(self, pictures_B3DHW: torch.Tensor) -> torch.Tensor:
        return torch.stack([super(DomainwiseDCAE, self).encode(part) for part in pictures_B3DHW.unbind(2)], dim=2)

    def decode(self, latents_BCDHW: torch.Tensor) -> torch.Tensor:
        return torch.stack([super(DomainwiseDCAE, self).decode(part) for part in latents_BCDHW.unbind(2)], dim=2)


class JodiVAE(comfy.sd.VAE):
    """The host's VAE object around our network.

    Its constructor builds a network that it recognises by the tensors it is given. It gets the smallest one that there
    is, so that every attribute of this and later versions has a value, and then ours takes its place.
    """

    def __init__(self, path: str, joint_config: JointConfig):
        require("VAE")
        super().__init__(sd={"pixel_space_vae": torch.tensor(1.0)})
        require_attributes("VAE", self, REPLACED)
        config, state_dict = weights.read_autoencoder(Path(path))
        # What role switch and decoder ask of the model that it serves: domains and sizes, and how labels are finished.
        self.joint_config, self.postprocess = joint_config, postprocess
        self.latent_channels, self.latent_dim, self.not_video = config.latent_channels, 3, True
        self.upscale_ratio = self.downscale_ratio = (lambda domains: domains, config.factor, config.factor)
        self.upscale_index_formula = self.downscale_index_formula = (1, config.factor, config.factor)
        self.memory_used_encode = lambda shape, dtype: self.memory(shape[-2] * shape[-1], dtype)
        self.memory_used_decode = lambda shape, dtype: self.memory(shape[-2] * shape[-1] * config.factor ** 2, dtype)
        self.disable_offload = False
        self.size = None
        self.place(DomainwiseDCAE(config, operations=comfy.ops.disable_weight_init), state_dict)

    def place(self, network: DomainwiseDCAE, state_dict: dict) -> None:
        """Give the network its number type, patcher and weights."""
        management = comfy.model_management
        self.vae_dtype = management.vae_dtype(self.device, self.working_dtypes)
        self.first_stage_model = network.to(self.vae_dtype).eval().requires_grad_(False)
        management.archive_model_dtypes(network)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            network, load_device=self.device, offload_device=management.vae_offload_device())
        network.load_state_dict(state_dict, assign=self.patcher.is_dynamic())

    def get_sd(self) -> dict:
        """What the host saves: the weights, and the configuration beside them."""
        dense = {name: tensor.contiguous() for name, tensor in super().get_sd().items()}    # not channels-last
        return dense | weights.metadata_tensor("autoencoder", self.first_stage_model.config)

    @staticmethod
    def memory(pixels: int, dtype: torch.dtype) -> int:
        return pixels * MEMORY_PER_PIXEL * comfy.model_management.dtype_size(dtype)


def load_vae(path: str, joint_config: JointConfig) -> JodiVAE:
    """VAE from an autoencoder file in either naming. Raises WeightsError if it is another kind of file or damaged."""
    vae = JodiVAE(path, joint_config)
    vae.patcher.cached_patcher_init = (reload_patcher, (path, joint_config))
    return vae


def reload_patcher(path: str, joint_config: JointConfig, disable_dynamic: bool = False):
    """A patcher with weights of its own, for the host's clones on other devices."""
    return JodiVAE(path, joint_config).patcher
