"""VAE for networks that see single pictures (B, C, h, w): that of Stable Diffusion 3, or the one of a Jodi."""

from pathlib import Path
from typing import NamedTuple

import comfy.latent_formats
import comfy.sd
from comfy.diffusers_convert import convert_vae_state_dict

from ...jodi_core.dual_diffusion.weights import component
from ...jodi_core.files import WeightsError, locate, read_folder, read_tensors
from ...jodi_core.weights import check_keys, part_names
from .stock_parts import is_ours
from .vae import JodiVAE
from .version import require


class Latents(NamedTuple):
    """channels: of a latent; factor: pixels per cell and side; a network sees (latent - shift) * scale."""

    channels: int
    factor: int
    scale: float
    shift: float


class PictureLatent(comfy.latent_formats.SD3):
    def __init__(self, latents: Latents):
        super().__init__()
        if latents.channels != self.latent_channels:
            self.latent_rgb_factors = self.taesd_decoder_name = None    # previews know 16 channels
        self.latent_channels, self.spacial_downscale_ratio, self.scale_factor, self.shift_factor = latents


class SinglePictures(JodiVAE):
    """The autoencoder of a Jodi without its domain axis."""

    def encode(self, pixel_samples):
        return super().encode(pixel_samples)[:, :, 0]

    def encode_tiled(self, pixel_samples, *args, **kwargs):
        return super().encode_tiled(pixel_samples, *args, **kwargs)[:, :, 0]

    def decode(self, samples_in, *args, **kwargs):
        return super().decode(samples_in[:, :, None], *args, **kwargs)[:, 0]

    def decode_tiled(self, samples, *args, **kwargs):
        return super().decode_tiled(samples[:, :, None], *args, **kwargs)[:, 0]


def latents_of(vae: comfy.sd.VAE) -> Latents:
    """Scale and shift are those of Stable Diffusion 3 unless the autoencoder is a Jodi's."""
    ours = isinstance(vae, SinglePictures)
    scale, shift = (vae.first_stage_model.config.scaling_factor, 0.0) if ours else (1.5305, 0.0609)
    return Latents(vae.latent_channels, vae.spacial_compression_encode(), scale, shift)


def load_picture_vae(path: str) -> comfy.sd.VAE:
    """VAE from the folder of a model or a file that the host or Jodi knows, in either naming.

    WeightsError if it is none of them, or incomplete.
    """
    require("VAE")
    place = component(locate(path), "vae")
    vae = SinglePictures(path, None) if place.is_file() and is_ours(path, "autoencoder") else stock_vae(place)
    vae.patcher.cached_patcher_init = (reload_vae_patcher, (path,))
    return vae


def reload_vae_patcher(path: str, disable_dynamic: bool = False):
    """A patcher with weights of its own, for the host's clones on other devices."""
    return load_picture_vae(path).patcher


def stock_vae(place: Path) -> comfy.sd.VAE:
    """By the host's own loader, which would only warn of what is missing."""
    tensors = read_folder(place) if place.is_dir() else read_tensors(place)
    tensors = {plain: tensors[name] for name, plain in part_names(tensors, "autoencoder").items()}
    if "decoder.mid_block.resnets.0.conv1.weight" in tensors:
        tensors = convert_vae_state_dict(tensors)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    vae = comfy.sd.VAE(sd=tensors)
    if vae.first_stage_model is None:
        raise WeightsError(f"{place} is no VAE that ComfyUI knows: choose that of Stable Diffusion 3")
    expected = {name: tuple(tensor.shape) for name, tensor in vae.first_stage_model.state_dict().items()}
    check_keys(*({name: shape for name, shape in shapes.items() if name.startswith(("encoder.", "decoder."))}
                 for shapes in (expected, found)), str(place))
    return vae
