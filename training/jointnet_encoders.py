"""The autoencoder and the text encoder of a JointNet run: those of Stable Diffusion 2.1 base, or of a tiny Jodi."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from jodi_core.files import locate, model_files
from jodi_core.jointnet.text import ClipText, load_clip_text
from jodi_core.kl import KLAutoencoder, load_kl
from jodi_core.models.dcae import DCAE
from jodi_core.text import GemmaText

from .config import TrainConfig
from .encoders import Encoders

FOLDERS = {"autoencoder": "vae", "text_encoder": "text_encoder"}    # of a pipeline in the layout of diffusers


class StableAutoencoder(nn.Module):
    """With the interface of `DCAE`. A picture's latent is the mean of what it could be, so that a cache can keep it."""

    def __init__(self, kl: KLAutoencoder):
        super().__init__()
        self.kl, self.model = kl, kl.model
        self.config = SimpleNamespace(latent_channels=kl.channels, factor=kl.factor, scaling_factor=kl.scale)

    def encode(self, picture_BCHW: Tensor) -> Tensor:
        return self.kl.encode(picture_BCHW)

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        return self.kl.decode(latent_BCHW)


class StableText:
    """With the interface of `GemmaText`: all tokens of the window count."""

    def __init__(self, clip: ClipText):
        self.clip = clip

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        features_PMC = self.clip.encode(prompts).float()
        return features_PMC, torch.full((len(prompts),), features_PMC.shape[1])

    def encode_negative(self, prompts: list[str]) -> Tensor:
        return self.clip.encode(prompts).float()


class JointNetEncoders(Encoders):
    """start.autoencoder, start.text_encoder: the folder of Stable Diffusion 2.1 base, or what a Jodi has."""

    @cached_property
    def autoencoder(self) -> DCAE | StableAutoencoder:
        folder = self.folder("autoencoder")
        if folder is None:
            return super().autoencoder
        return StableAutoencoder(load_kl(folder, device=self.place, dtype=torch.float32))

    @cached_property
    def text(self) -> GemmaText | StableText:
        folder = self.folder("text_encoder")
        if folder is None:
            return super().text
        return StableText(load_clip_text(folder.parent, device=self.place, dtype=self.text_dtype))

    def folder(self, kind: str) -> Path | None:
        """The subfolder of Stable Diffusion, None if another file or "tiny" is named."""
        ref = getattr(self.start, kind)
        found = None if ref == "tiny" else locate(ref) / FOLDERS[kind]
        return found if found is not None and found.is_dir() else None

    def identity(self, kind: str, digest: Callable[[Path], str]) -> str:
        folder = self.folder(kind)
        if folder is None:
            return super().identity(kind, digest)
        dtype = self.text_dtype if kind == "text_encoder" else torch.float32
        return " ".join([*map(digest, model_files(folder)), str(dtype)])


def open_encoders(config: TrainConfig, device: torch.device) -> JointNetEncoders:
    return JointNetEncoders(config.start, device)
