"""The autoencoder, the text encoder and the tokenizer of a Dual Diffusion run, loaded when they are first needed."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from jodi_core.autoencoders import DeepAutoencoder, open_autoencoder
from jodi_core.dual_diffusion.t5 import T5States
from jodi_core.dual_diffusion.weights import load_t5, load_words
from jodi_core.dual_diffusion.words import Words
from jodi_core.files import locate, model_files
from jodi_core.kl import KLAutoencoder
from jodi_core.weights import tiny_bundle

from .dual_config import DualTrainingConfig


class DualEncoders:
    """Text is read in bfloat16 on a GPU, as in the original; pictures in float32."""

    def __init__(self, start, model: DualTrainingConfig, device: torch.device):
        self.start, self.model, self.device = start, model, device

    @property
    def place(self) -> torch.device:
        """A data loader's worker cannot use the GPU of the process that it was forked from."""
        return torch.device("cpu") if get_worker_info() else self.device

    @cached_property
    def autoencoder(self) -> KLAutoencoder | DeepAutoencoder:
        return open_autoencoder(self.start.autoencoder, device=self.place, dtype=torch.float32)

    @cached_property
    def t5(self) -> T5States:
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return load_t5(self.start.text_encoder, self.model, self.start.mask_embedding or None, device=self.place,
                       dtype=dtype)

    @cached_property
    def words(self) -> Words:
        """Of the text encoder's folder, if it holds one; else that of T5 v1.1."""
        return load_words(self.start.text_encoder, self.model)

    @torch.no_grad()
    def latents(self, picture_B3HW: Tensor) -> Tensor:
        """Pictures in [-1, 1] -> scaled latents (B, C, h, w), float32 on the CPU."""
        latent_BCHW = self.autoencoder.encode(picture_B3HW.to(self.place)).float().cpu()
        return (latent_BCHW - self.autoencoder.shift) * self.autoencoder.scale

    def identity(self, kind: str, digest: Callable[[Path], str]) -> str:
        """What the autoencoder is, without loading it: the content of its files."""
        ref = getattr(self.start, kind)
        path = tiny_bundle()[kind] if ref == "tiny" else locate(ref)
        return " ".join(map(digest, model_files(path) if path.is_dir() else [path]))
