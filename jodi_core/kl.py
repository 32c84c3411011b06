"""The autoencoder of Stable Diffusion (any version), by diffusers, which is imported only when one is built.

For use without a host, which has its own.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from .files import WeightsError, read_folder, read_tensors

# Settings of a file without a config.json beside it, by its latent channels: Stable Diffusion 1 and 2, and 3.
_COMMON = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32,
           "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
_SETTINGS = {4: _COMMON | {"latent_channels": 4, "scaling_factor": 0.18215},
             16: _COMMON | {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609,
                            "use_quant_conv": False, "use_post_quant_conv": False}}


class KLAutoencoder:
    """Pictures to latents and back.

    channels: of a latent; factor: pixels per latent cell and side; scale, shift: a network sees
    (latent - shift) * scale.
    """

    def __init__(self, model: torch.nn.Module):
        self.model, settings = model, model.config
        self.channels, self.factor = settings.latent_channels, 2 ** (len(settings.block_out_channels) - 1)
        self.scale, self.shift = settings.scaling_factor, settings.shift_factor or 0.0

    def encode(self, picture_BCHW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, channels, h, w), not scaled: the mean of what it could be, always the same,
        or a sample of it by noise of that shape."""
        found = self.model.encode(picture_BCHW.to(self.model.device, self.model.dtype)).latent_dist
        return found.mean if noise_BCHW is None else found.mean + found.std * noise_BCHW.to(found.mean)

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Latents, not scaled -> (B, 3, H, W) in about [-1, 1]."""
        return self.model.decode(latent_BCHW.to(self.model.device, self.model.dtype)).sample


def load_kl(path: Path, *, device=None, dtype: torch.dtype | None = None) -> KLAutoencoder:
    """From a folder of diffusers (config.json and the weights), or a weight file in its naming; dtype None: as stored.

    WeightsError if it is another kind of file.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ImportError("this autoencoder is built on diffusers: pip install diffusers") from error
    path = Path(path)
    tensors = read_folder(path) if path.is_dir() else read_tensors(path)
    if "decoder.conv_in.weight" not in tensors or "decoder.mid_block.resnets.0.conv1.weight" not in tensors:
        raise WeightsError(f"{path} is no autoencoder of Stable Diffusion in the naming of diffusers: choose the "
                           "folder `vae` of the published model")
    beside = (path if path.is_dir() else path.parent) / "config.json"
    channels = tensors["decoder.conv_in.weight"].shape[1]
    if beside.is_file():
        settings = json.loads(beside.read_text(encoding="utf-8"))
    elif channels in _SETTINGS:
        settings = _SETTINGS[channels]
    else:
        raise WeightsError(f"{path} has {channels} latent channels and no config.json beside it: give the folder")
    with torch.device("meta"):
        model = AutoencoderKL.from_config(settings)
    try:
        model.load_state_dict({name: tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()},
                              strict=True, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit its config.json: {str(error).splitlines()[1].strip()}") from error
    return KLAutoencoder(model.eval().requires_grad_(False))
