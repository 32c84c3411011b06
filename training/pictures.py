"""Pictures and captions of data sets as a training source: from the cache, or encoded on the spot."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from jodi_core.domains import JointConfig
from jodi_core.text import clean_prompt

from .caches import Store, key_of
from .config import TrainConfig
from .encoders import Encoders
from .faults import Faults, Unreadable
from .samples import Sample, Samples, load_for_training
from .shards import Member
from .source import Item

TRIES = 20    # samples of a bin that may be unreadable one after the other


def open_pictures(config: TrainConfig, model: JointConfig, encoders: Encoders, rank: int) -> "PictureSource":
    return PictureSource(config, Samples(config.data, model.domains, model.bins), encoders, rank)


class PictureSource:
    """Samples of folders, encoded by an autoencoder and a text encoder; both results are kept in a store.

    Without a cache they are encoded whenever they are read, in the process that reads them.
    """

    def __init__(self, config: TrainConfig, samples: Samples, encoders: Encoders, rank: int = 0):
        self.data, self.samples, self.domains = config.data, samples, samples.domains
        self.bins_N, self.weights_N, self.encoders = samples.bins_N, samples.weights_N, encoders
        self.faults = Faults(config.output)
        self.store = Store(Path(config.data.cache), rank) if config.data.cache else None
        if self.store:
            self.picture_encoder, self.text_encoder = (encoders.identity(kind, self.store.digest)
                                                       for kind in ("autoencoder", "text_encoder"))

    # ---- one sample -------------------------------------------------------------------------------------------

    def item(self, index: int, generator: torch.Generator) -> Item:
        """A sample that cannot be read is named, and the next one of its bin takes its place (data.on_error)."""
        members = (self.bins_N == self.bins_N[index]).nonzero().flatten()
        place = int((members == index).nonzero())
        for offset in range(min(TRIES, len(members))):
            try:
                return replace(self.read(int(members[(place + offset) % len(members)]), generator), skipped=offset)
            except (OSError, ValueError) as error:
                self.faults.note("skipped" if self.data.on_error == "skip" else "unreadable", str(error),
                                 sample=self.name(int(members[(place + offset) % len(members)])))
                if self.data.on_error == "stop":
                    raise Unreadable(f'{error}; data.on_error = "skip" takes another sample instead') from error
        raise Unreadable(f"{TRIES} samples one after the other cannot be read; `python -m training check-data CONFIG` "
                         "lists them")

    def name(self, index: int) -> str:
        """Of a sample, or what is wrong with its entry."""
        try:
            return self.samples.sample(index).name
        except (OSError, ValueError) as error:
            return str(error)

    def read(self, index: int, generator: torch.Generator) -> Item:
        sample, target = self.samples.sample(index), self.samples.target(index)
        self.check(sample)
        latents = {domain: self.latent(sample, domain, target) for domain in self.domains}
        some = next(latent for latent in latents.values() if latent is not None)
        filled = [torch.zeros_like(some) if latent is None else latent for latent in latents.values()]
        return Item(torch.stack(filled, 1), torch.tensor([latent is not None for latent in latents.values()]),
                    self.caption(sample.choose_caption(generator)), sample.name)

    def check(self, sample: Sample) -> None:
        """ValueError for a sample without what every sample has."""
        if self.domains[0] not in sample.pictures:
            raise ValueError(f"{sample.name}: it has no image")

    def latent(self, sample: Sample, domain: str, target: tuple[int, int]) -> Tensor | None:
        """(C, h, w) scaled, float32; None if the sample lacks the domain."""
        path = sample.pictures.get(domain)
        if path is None and not (domain == "openpose" and self.data.empty_pose):
            return None
        return self.kept(self.picture_key(path, domain, target),
                         lambda: self.encode(self.picture(path, domain, target)[None])[0])

    def picture_key(self, path: Path | Member | None, domain: str, target: tuple[int, int]) -> str | None:
        if self.store is None:
            return None
        content = "empty" if path is None else path.sha256 if isinstance(path, Member) else self.store.digest(path)
        way = self.data.segmentation if domain == "segmentation" else "bicubic"
        return key_of("picture", content, target, way, self.picture_encoder)

    def caption(self, caption: str) -> Tensor:
        """(M, width) float32, valid rows only."""
        prompt = clean_prompt(caption)
        key = None if self.store is None else key_of("text", prompt, self.text_encoder)
        return self.kept(key, lambda: self.encode_caption(prompt))

    def kept(self, key: str | None, make) -> Tensor:
        """From the store, made and stored if it is not there. Through float16 in any case, so that both are equal."""
        found = None if key is None else self.store.get(key)
        if found is None:
            found = make().half()
            if key is not None:
                self.store.put({key: found})
        return found.float()

    def load(self, sample: Sample, target: tuple[int, int]) -> dict[str, Tensor]:
        """Domain -> (3, H, W) in [-1, 1], of the domains that a sample has."""
        return {domain: self.picture(sample.pictures.get(domain), domain, target) for domain in self.domains
                if domain in sample.pictures or (domain == "openpose" and self.data.empty_pose)}

    def picture(self, path: Path | None, domain: str, target: tuple[int, int]) -> Tensor:
        """None: the empty picture."""
        if path is None:
            return torch.full((3, *target), -1.0)
        return load_for_training(domain, path, target, self.data.segmentation)

    # ---- encoders ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, picture_B3HW: Tensor) -> Tensor:
        """Pictures in [-1, 1] -> scaled latents (B, C, h, w), float32 on the CPU."""
        autoencoder = self.encoders.autoencoder
        weight = next(autoencoder.parameters())
        return autoencoder.encode(picture_B3HW.to(weight)).float().cpu() * autoencoder.config.scaling_factor

    @torch.no_grad()
    def encode_caption(self, prompt: str) -> Tensor:
        features_1MC, length = self.encoders.text.encode([prompt])
        return features_1MC[0, :int(length)].cpu()
