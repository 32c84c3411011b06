"""CLIP and VAE of Stable Diffusion files, by the host's own loaders, for the joint models that are built on it."""

from pathlib import Path

import comfy.sd
import folder_paths
import torch

from ...jodi_core.files import WeightsError, read_header, read_tensors
from ...jodi_core.jointnet.config import JointNetConfig
from ...jodi_core.jointnet.pictures import finish
from ...jodi_core.weights import kind_of, part_names
from .text import load_clip
from .vae import load_vae
from .version import require


class FoldedVAE(comfy.sd.VAE):
    """The host's VAE of single pictures, for joint latents (B, C, D, h, w) too; a latent of pictures has D = 1."""

    def encode(self, pixel_samples):
        return super().encode(pixel_samples)[:, :, None]

    def encode_tiled(self, pixel_samples, *args, **kwargs):
        return super().encode_tiled(pixel_samples, *args, **kwargs)[:, :, None]

    def decode(self, samples_in, *args, **kwargs):
        return by_domain(super().decode, samples_in, *args, **kwargs)

    def decode_tiled(self, samples, *args, **kwargs):
        return by_domain(super().decode_tiled, samples, *args, **kwargs)


def by_domain(decode, samples: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """(B, D, H, W, 3) of a joint latent, (B, H, W, 3) of a latent of pictures (B, C, h, w)."""
    if samples.ndim == 4:
        return decode(samples, *args, **kwargs)
    pictures = decode(samples.movedim(2, 1).flatten(0, 1), *args, **kwargs)
    return pictures.unflatten(0, (len(samples), -1))


def is_ours(path: str, kind: str) -> bool:
    """Whether a file has the autoencoder or the text encoder of Jodi, and not one that the host knows."""
    return kind_of(part_names(read_header(Path(path)).shapes, kind).values()) == kind


def vae_of(path: str, config: JointNetConfig):
    """VAE from a file of its own, in either naming, or from a checkpoint. WeightsError if it is none that fits."""
    if is_ours(path, "autoencoder"):
        vae = load_vae(path, config)
    else:
        require("VAE")
        vae = folded(path)
        vae.patcher.cached_patcher_init = (reload_patcher, (path,))
    factor = vae.spacial_compression_encode()
    if (vae.latent_channels, factor) != (config.in_channels, config.latent_factor):
        raise WeightsError(f"{path}: this VAE makes {vae.latent_channels} channels and shrinks pictures {factor} "
                           f"times, but the model takes {config.in_channels} and {config.latent_factor}: choose that "
                           "of Stable Diffusion 2.1 (or 1.5) for the published model")
    vae.joint_config, vae.postprocess = config, finish
    return vae


def folded(path: str) -> FoldedVAE:
    names = part_names(read_header(Path(path)).shapes, "autoencoder")
    vae = FoldedVAE(sd={names[name]: tensor for name, tensor in read_tensors(Path(path), names).items()})
    if vae.first_stage_model is None:
        raise WeightsError(f"{path} is no VAE that ComfyUI knows: choose that of Stable Diffusion 2.1 (or 1.5), or a "
                           "checkpoint that has one inside")
    return vae


def reload_patcher(path: str, disable_dynamic: bool = False):
    """A patcher with weights of its own, for the host's clones on other devices."""
    return folded(path).patcher


def clip_of(path: str, in_checkpoint: bool) -> comfy.sd.CLIP:
    """CLIP from a file of its own or from a checkpoint. WeightsError if there is none inside."""
    if is_ours(path, "text_encoder"):
        return load_clip(path)
    embeddings = folder_paths.get_folder_paths("embeddings")
    if not in_checkpoint:
        return comfy.sd.load_clip([path], embedding_directory=embeddings)
    clip = comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_model=False,
                                                 embedding_directory=embeddings)[1]
    if clip is None:
        raise WeightsError(f"{path} has no text encoder: choose a checkpoint of Stable Diffusion 2.1 base with all "
                           "parts, or its text encoder by itself")
    return clip


def empty_text(clip: comfy.sd.CLIP) -> torch.Tensor:
    """Features (1, M, width) of the empty prompt, which stand in where no prompt is connected."""
    return clip.encode_from_tokens(clip.tokenize(""))
