"""JointNet's weights: the published folder, or one safetensors file made of it (spec 1.5 to 1.7).

Which of the two branches is which is told by their names alone: they have the same keys and shapes, and both were
made from the same U-Net. A folder whose branches were swapped loads, and paints depth where the picture belongs.
"""

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from ..files import Header, WeightsError, locate, model_files, read_folder, read_header, read_tensors
from ..weights import METADATA_TENSOR, check_keys, kind_of, own_metadata
from .config import BRANCHES, JointNetConfig
from .network import JointNet

MASKED_INPUT = "jointnet_masked_latent_conv.weight"
# A tensor by whose spread the two versions of Stable Diffusion 2 are told apart, as ComfyUI does it.
VELOCITY_SIGN = "unet.up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"
# A stored configuration that says otherwise lies.
_TOLD_BY_SHAPES = ("channels", "attention", "layers", "text_width", "linear_projection", "masked_input", "in_channels")


def load_jointnet(ref: str | os.PathLike, *, device=None, dtype: torch.dtype | None = None) -> JointNet:
    """A network ready for use, its U-Nets made by diffusers; dtype None: as stored.

    ref: a folder in the published layout, a file made by `convert`, or its hf:// address. WeightsError for anything
    that is no complete JointNet. ImportError without diffusers.
    """
    from .unet import DiffusersBranch
    config, tensors = read_jointnet(ref)
    with torch.device("meta"):
        network = JointNet(config, lambda: DiffusersBranch(config))
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    check_keys(expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, str(ref))
    network.load_state_dict({name: tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()},
                            strict=True, assign=True)
    return network.eval().requires_grad_(False)


def read_jointnet(ref: str | os.PathLike) -> tuple[JointNetConfig, dict[str, Tensor]]:
    """Configuration and tensors, under their published names after `unet.` and `jointnet.`, as stored.

    The variant follows from the tensors, as the published configuration may be wrong about it (spec 1.6). WeightsError
    for half a model, branches that do not belong together, settings that no JointNet has, and weights made from the
    768-pixel version of Stable Diffusion 2.1, which predicts velocity.
    """
    path = locate(ref)
    if path.is_dir():
        config, tensors = _read_folder(path)
    else:
        config, tensors = config_in(read_header(path)), read_tensors(path)
        tensors.pop(METADATA_TENSOR, None)
    shapes = [{name.removeprefix(f"{branch}."): tuple(tensor.shape) for name, tensor in tensors.items()
               if name.startswith(f"{branch}.")} for branch in BRANCHES]
    with_masks = [branch for branch, names in zip(BRANCHES, shapes) if MASKED_INPUT in names]
    if len(with_masks) == 1:
        raise WeightsError(f"{path} mixes the two variants: only {with_masks[0]} has {MASKED_INPUT}, the other branch "
                           "is of the base model. Take both from one checkpoint")
    check_keys(*shapes, f"{path}: {BRANCHES[1]} beside {BRANCHES[0]}")
    sign = tensors.get(VELOCITY_SIGN)
    if sign is not None and sign.float().std(correction=0) > 0.09:
        raise WeightsError(f"{path} was made from the 768 pixel version of Stable Diffusion 2.1, which predicts "
                           "velocity: only JointNets on the base version (512 pixels) are supported")
    return config, tensors


def jointnet_folder(path: Path) -> Path | None:
    """The folder with the subfolders of both branches: this one, or the only one in it that has any. None without.

    WeightsError if one of the branches is missing.
    """
    for folder in (path, *sorted(child for child in path.iterdir() if child.is_dir())):
        present = [branch for branch in BRANCHES if (folder / branch).is_dir()]
        if len(present) == 1 and present[0] == BRANCHES[0] and (folder / "text_encoder").is_dir():
            raise WeightsError(f"{folder} is a Stable Diffusion model, which has the one branch {present[0]}: give "
                               "the folder of a JointNet, and this one as its base model")
        if len(present) == 1:
            missing = next(branch for branch in BRANCHES if branch not in present)
            raise WeightsError(f"{folder} is half a JointNet: {present[0]} is there, {missing} is missing")
        if present:
            return folder
    return None


def _read_folder(path: Path) -> tuple[JointNetConfig, dict[str, Tensor]]:
    folder = jointnet_folder(path)
    if folder is None:
        raise WeightsError(f"{path} is no JointNet: it has no subfolders {' and '.join(BRANCHES)}")
    found = [_read_branch(folder / branch) for branch in BRANCHES]
    (config, first), (other, second) = found
    if config != other and config.masked_input == other.masked_input:
        raise WeightsError(f"{folder}: the branches do not belong together. {BRANCHES[0]} is {config}, {BRANCHES[1]} "
                           f"is {other}")
    return config, {f"{branch}.{name}": tensor for branch, (_, tensors) in zip(BRANCHES, found)
                    for name, tensor in tensors.items()}


def _read_branch(folder: Path) -> tuple[JointNetConfig, dict[str, Tensor]]:
    tensors = read_folder(folder)
    if "jointnet_mid_block.weight" not in tensors:
        raise WeightsError(f"{folder} has no jointnet_mid_block.weight: it is a plain U-Net, not a branch of JointNet")
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return JointNetConfig.from_published(values, MASKED_INPUT in tensors), tensors
    except FileNotFoundError as error:
        raise WeightsError(f"{folder} has no config.json, which belongs to its weights") from error
    except (ValueError, TypeError, AttributeError) as error:  # values may have any type
        raise WeightsError(f"{folder / 'config.json'} cannot be used: {error}") from error


def config_in(header: Header) -> JointNetConfig:
    """The configuration of a file with both branches: stored, and held against its tensors, or told by them."""
    absent = [branch for branch in BRANCHES if f"{branch}.jointnet_mid_block.weight" not in header.shapes]
    if absent:
        what = "no JointNet" if len(absent) == 2 else f"half a JointNet, without {absent[0]}"
        raise WeightsError(f"{header.path} is {what}: give the published folder, or a file made of it by `convert`")
    branch = {name.removeprefix("unet."): shape for name, shape in header.shapes.items() if name.startswith("unet.")}
    own = own_metadata(header, {name: name for name in header.shapes})
    try:
        stored = JointNetConfig.from_dict(own["config"]) if own else None
        told = JointNetConfig.from_state_dict(branch, **({"norm_groups": stored.norm_groups} if stored else {}))
        config = stored or told
        for name in _TOLD_BY_SHAPES:
            if getattr(config, name) != getattr(told, name):
                raise ValueError(f"it says {name} {getattr(config, name)}, but the tensors have {getattr(told, name)}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # stored values may have any type
        raise WeightsError(f"{header.path}: its configuration cannot be used: {error}") from error
    return config


def source_files(path: Path) -> list[Path]:
    """The weight files that a JointNet is read from; none if the file or folder is something else."""
    if not path.is_dir():
        return [path] if kind_of(read_header(path).shapes) == "jointnet" else []
    folder = jointnet_folder(path)
    return [file for branch in BRANCHES for file in model_files(folder / branch)] if folder else []


def refuse_velocity(base: Path) -> None:
    """WeightsError if a folder of Stable Diffusion says that its model predicts velocity."""
    told = base / "scheduler" / "scheduler_config.json"
    if told.is_file() and json.loads(told.read_text(encoding="utf-8")).get("prediction_type", "epsilon") != "epsilon":
        raise WeightsError(f"{base} predicts velocity (the 768-pixel version): JointNet is made of the base version "
                           "(512 pixels) of Stable Diffusion 2.1, which predicts noise")
