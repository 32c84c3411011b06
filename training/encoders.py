"""The autoencoder and the text encoder of a run, loaded when they are first needed: a full cache needs neither."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch.utils.data import get_worker_info

from jodi_core.models.dcae import DCAE
from jodi_core.published import PUBLISHED
from jodi_core.text import GemmaText
from jodi_core.weights import load_autoencoder, load_text, locate, resolve

from .config import StartConfig

SANA = "hf://Efficient-Large-Model/Sana_1600M_1024px_BF16/checkpoints/Sana_1600M_1024px_BF16.pth"


def named(start: StartConfig, kind: str):
    """What the configuration names as transformer, autoencoder or text_encoder, as the loaders take it."""
    ref = start.weights if kind == "transformer" else getattr(start, kind)
    if ref != "published":
        return ref
    return SANA if kind == "transformer" and start.kind == "sana" else PUBLISHED[kind]


class Encoders:
    """Text is read in bfloat16 on a GPU, as the published pipeline does; pictures in float32."""

    def __init__(self, start: StartConfig, device: torch.device):
        self.start, self.device = start, device
        self.text_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    @property
    def place(self) -> torch.device:
        """A data loader's worker cannot use the GPU of the process that it was forked from."""
        return torch.device("cpu") if get_worker_info() else self.device

    @cached_property
    def autoencoder(self) -> DCAE:
        return load_autoencoder(named(self.start, "autoencoder"), device=self.place, dtype=torch.float32)

    @cached_property
    def text(self) -> GemmaText:
        return load_text(named(self.start, "text_encoder"), device=self.place, dtype=self.text_dtype)

    def identity(self, kind: str, digest: Callable[[Path], str]) -> str:
        """What an encoder is, without loading it: the content of its files and the precision it works in."""
        ref = named(self.start, kind)
        files = [locate(part) for part in ref] if isinstance(ref, tuple) else [resolve(ref, kind)]
        if files[0].is_dir():    # as the authors of Gemma publish it
            files = sorted(files[0].glob("*.safetensors")) + [files[0] / "tokenizer.model"]
        dtype = self.text_dtype if kind == "text_encoder" else torch.float32
        return " ".join([*map(digest, files), str(dtype)])
