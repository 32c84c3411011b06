"""JointNet: the model that a run starts from, what of it is trained, and the file that comes out."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from jodi_core.files import WeightsError, locate, read_folder, read_tensors
from jodi_core.jointnet.config import BRANCHES, JointNetConfig
from jodi_core.jointnet.loading import read_jointnet, refuse_velocity
from jodi_core.jointnet.network import JointNet
from jodi_core.weights import check_keys, write_model

from .config import TrainConfig
from .encoders import Encoders
from .jointnet_start import pass_through

EXCHANGE = "jointnet_"    # names of the layers that JointNet adds to a U-Net
ADDED = {"stable_diffusion": EXCHANGE, "jointnet": "jointnet_masked_latent_conv"}    # to what a run starts from


def starting_config(config: TrainConfig) -> JointNetConfig:
    """Of the model that `make_model` gives."""
    return config.model if config.start.kind == "nothing" else read_start(config)[0]


def caption_tokens(config: JointNetConfig) -> int:
    """Of CLIP's window, without start and end."""
    return 75


def make_model(config: TrainConfig, encoders: Encoders) -> JointNet:
    """On the CPU, in float32. What the start does not have of the exchange and the mask input is zero.

    ValueError if the tasks, or the autoencoder, do not fit the model.
    """
    from jodi_core.jointnet.unet import DiffusersBranch
    model_config, tensors = (config.model, {}) if config.start.kind == "nothing" else read_start(config)
    check_tasks(config.tasks, model_config)
    check_autoencoder(encoders.autoencoder.config, model_config)
    torch.manual_seed(config.seed)
    model = JointNet(model_config, lambda: DiffusersBranch(model_config))
    if config.start.pass_through:
        pass_through(model)
    if tensors:
        own, new = model.state_dict(), ADDED[config.start.kind]
        complete = {name: value for name, value in own.items() if new in name and name not in tensors} | tensors
        check_keys(*({name: tuple(value.shape) for name, value in part.items()} for part in (own, complete)),
                   config.start.weights)
        model.load_state_dict({name: value.float() for name, value in complete.items()})
    return model.requires_grad_(True)


def read_start(config: TrainConfig) -> tuple[JointNetConfig, dict[str, Tensor]]:
    """Configuration and tensors, maybe without those that the configuration adds."""
    if config.start.kind == "jointnet":
        found, tensors = read_jointnet(config.start.weights)
    else:
        unet = read_unet(config.start.weights)
        shapes = {name: tuple(tensor.shape) for name, tensor in unet.items()}
        try:
            found = JointNetConfig.from_state_dict(shapes, domains=config.model.domains)
        except (ValueError, KeyError) as error:
            raise WeightsError(f"{config.start.weights} is no U-Net of Stable Diffusion in the layout of diffusers: "
                               f"{error}. Give the folder with `unet`, or that folder itself") from error
        tensors = {f"{branch}.{name}": tensor for branch in BRANCHES for name, tensor in unet.items()}
    return replace(found, masked_input=found.masked_input or config.model.masked_input), tensors


def read_unet(ref: str) -> dict[str, Tensor]:
    """The tensors of a plain U-Net. ref: a file, its folder, or the folder of a whole pipeline.

    WeightsError for one that predicts anything but noise, as far as the folder tells.
    """
    path = locate(ref)
    if not path.is_dir():
        return read_tensors(path)
    refuse_velocity(path)
    return read_folder(path / "unet" if (path / "unet").is_dir() else path)


def check_tasks(tasks: tuple[str, ...], model: JointNetConfig) -> None:
    others = sorted(set(tasks) - {"joint"})
    if others and not model.masked_input:
        raise ValueError(f"tasks {', '.join(others)} tell the model what is given, but it has no input for that: set "
                         'model.masked_input = true, which adds one, or tasks = ["joint"]')


def check_autoencoder(autoencoder, model: JointNetConfig) -> None:
    found = autoencoder.latent_channels, autoencoder.factor, autoencoder.scaling_factor
    wanted = model.in_channels, model.latent_factor, model.latent_scale
    if found != wanted:
        raise ValueError("start.autoencoder makes latents of {} channels, factor {}, scale {}, but the model takes "
                         "{}, {}, {}: set model.in_channels, latent_factor and latent_scale, or name the autoencoder "
                         "that belongs to the weights".format(*found, *wanted))


def choose_trained(model: JointNet, config: TrainConfig) -> None:
    """Mode "map_branch": the picture's U-Net stays as it is but for the layers of the exchange (spec 5)."""
    if config.mode == "map_branch":
        for name, param in model.unet.named_parameters():
            param.requires_grad_(name.startswith(EXCHANGE))


def blocks(model: JointNet) -> Iterable[nn.Module]:
    return [block for branch in model.branches for block in (*branch.down_blocks, branch.mid_block, *branch.up_blocks)]


def write(model: JointNet, config: TrainConfig, target: Path, step: int, merged: bool) -> None:
    """Both branches in one file, float16."""
    write_model(target, "jointnet", model.config, {k: v.half() for k, v in model.state_dict().items()},
                overwrite=True)
