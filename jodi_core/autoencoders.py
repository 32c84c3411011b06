"""Autoencoders of either kind behind one interface, for networks that are trained on one or the other."""

from pathlib import Path

from torch import Tensor

from .files import locate, read_header
from .kl import KLAutoencoder, load_kl
from .models.dcae import DCAE
from .weights import kinds_in, load_autoencoder, tiny_bundle


class DeepAutoencoder:
    """That of a Jodi with the interface of `kl.KLAutoencoder`."""

    shift = 0.0

    def __init__(self, model: DCAE):
        self.model, config = model, model.config
        self.channels, self.factor, self.scale = config.latent_channels, config.factor, config.scaling_factor
        self.weight = next(model.parameters())

    def encode(self, picture_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, channels, h, w), not scaled."""
        return self.model.encode(picture_BCHW.to(self.weight))

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Latents, not scaled -> (B, 3, H, W) in about [-1, 1]."""
        return self.model.decode(latent_BCHW.to(self.weight))


def open_autoencoder(ref: str | Path, **place) -> KLAutoencoder | DeepAutoencoder:
    """ref: "tiny" or the file of a Jodi's, or else what `kl.load_kl` takes; place: device and dtype.

    WeightsError if it is another kind of file.
    """
    path = tiny_bundle()["autoencoder"] if str(ref) == "tiny" else locate(ref)
    if path.is_file() and "autoencoder" in kinds_in(read_header(path).shapes):
        return DeepAutoencoder(load_autoencoder(path, **place))
    return load_kl(path, **place)
