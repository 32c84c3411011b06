"""Files of a Dual Diffusion model (spec 3): published folders, and single files of its parts.

A published folder has `transformer/`, `text_encoder/`, `vae/`, `tokenizer/` and `scheduler/`; each of the first three
may also be a file of its own. The transformer also comes as the trainer's `consolidated.pth`, bare or nested.
"""

import json
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from ..files import Header, WeightsError, locate, model_files, read_folder, read_header, read_tensor, read_tensors
from ..weights import METADATA_TENSOR, check_keys, described, own_metadata, part_names
from .config import DualDiffusionConfig
from .network import DualDiffusionTransformer
from .t5 import T5States
from .words import Words

# A Dual Diffusion transformer has all of these; each half of it has a counterpart in another model (spec 2.3).
FINGERPRINT = ("text_proj_out.weight", "image_proj_out.weight", "transformer_blocks.0.attn.add_q_proj.weight")
_HINT = ("Choose transformer/diffusion_pytorch_model.safetensors of JleeOfficial/dual_diff_sd3_512_base or ..._sft, or "
         "the folder of that model")
_ALIAS = "encoder.embed_tokens.weight"    # of shared.weight
_CLASS = "SD3JointModelFlexible"    # in the published config.json
_NOT_SHAPES = ("sample_size", "attention_head_dim", "num_attention_heads")


def is_dual_diffusion(names) -> bool:
    """Whether these tensor names are those of a Dual Diffusion transformer, possibly behind a host's prefix.

    A host's own detection takes it for Stable Diffusion 3.
    """
    plain = set(part_names(names, "transformer").values())
    return all(name in plain for name in FINGERPRINT)


def component(ref: Path, name: str) -> Path:
    """The folder of a part, where `ref` is the folder of a model, or else `ref` itself."""
    return ref / name if (ref / name).is_dir() else ref


def source_files(path: Path) -> list[Path]:
    """The weight files of the transformer in a file, or in the folder of a model; none if there is no such."""
    files = [path] if path.is_file() else model_files(path / "transformer") if (path / "transformer").is_dir() else []
    return files if is_dual_diffusion([name for file in files for name in read_header(file).shapes]) else []


def read_transformer(ref) -> tuple[DualDiffusionConfig, dict[str, Tensor]]:
    """Configuration and tensors (published names, as stored), checked against each other.

    ref: the folder of a model, its `transformer` folder, a .safetensors or .pth file, or hf://owner/name/file.
    WeightsError if it is another model's, or anything is missing or of another shape.
    """
    path = component(locate(ref), "transformer")
    tensors = read_folder(path) if path.is_dir() else read_tensors(path)
    tensors = {plain: tensors[name] for name, plain in part_names(tensors, "transformer").items()
               if plain != METADATA_TENSOR}
    require_dual_diffusion(tensors, path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    config = _config(path, shapes)
    expected = DualDiffusionTransformer(config, device="meta").state_dict()
    check_keys({name: tuple(tensor.shape) for name, tensor in expected.items()}, shapes, str(path))
    return config, tensors


def _config(path: Path, shapes: dict[str, tuple]) -> DualDiffusionConfig:
    beside = (path if path.is_dir() else path.parent) / "config.json"
    stored = read_json(beside) if beside.is_file() else {}
    # Beside a single file, in a host's folder for instance, it may be that of another model.
    if path.is_dir() or stored.get("_class_name") == _CLASS:
        return settings_of(shapes, stored or None, beside)
    return config_in(read_header(path))


def config_in(header: Header) -> DualDiffusionConfig:
    """The configuration of a transformer file: stored by `convert`, and held against its tensors, or told by them."""
    names = part_names(header.shapes, "transformer")
    own = own_metadata(header, names)
    return settings_of({plain: header.shapes[name] for name, plain in names.items()}, own and own["config"],
                       header.path)


def require_dual_diffusion(names, path: Path) -> None:
    """WeightsError saying what it is instead, or which head is missing."""
    if all(name in names for name in FINGERPRINT):
        return
    heads = {"text head": FINGERPRINT[0], "image head": FINGERPRINT[1]}
    missing = [head for head, name in heads.items() if name not in names]
    if len(missing) == 1:
        raise WeightsError(f"{path} is a Dual Diffusion transformer without its {missing[0]} ({heads[missing[0]]}): "
                           f"the file is incomplete. {_HINT}")
    raise WeightsError(f"{path} is {described(names)}, but a Dual Diffusion transformer is wanted. {_HINT}")


def read_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is no JSON file: {error}") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} holds no settings")
    return values


def settings_of(shapes: dict[str, tuple], stored: dict | None, where: Path) -> DualDiffusionConfig:
    """The stored configuration, or what shapes tell. WeightsError naming `where` if the two disagree."""
    try:
        if stored is None:
            return DualDiffusionConfig.from_state_dict(shapes)
        config = DualDiffusionConfig.from_dict(stored)
        told = DualDiffusionConfig.from_state_dict(shapes, **{name: getattr(config, name) for name in _NOT_SHAPES})
    except ValueError as error:
        raise WeightsError(f"{where}: {error}") from error
    for field in fields(config):
        said, true = getattr(config, field.name), getattr(told, field.name)
        if said != true:
            raise WeightsError(f"{where} says {field.name} {said}, but the tensors have {true}")
    return config


def load_transformer(ref, *, device=None, dtype: torch.dtype | None = None,
                     operations=torch.nn) -> DualDiffusionTransformer:
    """Ready for use; ref as for `read_transformer`. dtype None: as stored."""
    config, tensors = read_transformer(ref)
    network = DualDiffusionTransformer(config, device="meta", operations=operations)
    placed = {name: tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()}
    network.load_state_dict(placed, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def load_t5(ref, config: DualDiffusionConfig, mask_embedding=None, *, device=None,
            dtype: torch.dtype | None = None) -> T5States:
    """The text encoder of a transformer with this configuration; arguments and errors as for `read_t5`."""
    tensors = read_t5(ref, config, mask_embedding)
    try:
        return T5States.from_state_dict(tensors, device=device, dtype=dtype)
    except ValueError as error:
        raise WeightsError(f"{ref}: {error}") from error


def read_t5(ref, config: DualDiffusionConfig, mask_embedding=None) -> dict[str, Tensor]:
    """Tensors of a text encoder that suits a transformer, under the published names, as stored.

    ref: the folder of a model, its `text_encoder` folder (parts with their index), or a file. mask_embedding: the file
    `mask_token_emb.00-of-01.pth`, for a T5 that does not have the learned row of the mask token. WeightsError for
    another text encoder, or one of another size than the transformer's.
    """
    path = component(locate(ref), "text_encoder")
    tensors = read_folder(path) if path.is_dir() else read_tensors(path)
    names = tensors.keys()
    tensors = {name: tensor for name, tensor in tensors.items()
               if name.startswith(("shared.", "encoder.")) and name != _ALIAS}
    if "shared.weight" not in tensors:
        raise WeightsError(f"{path} is {described(names)}, but a T5 v1.1 encoder is wanted (shared.weight and "
                           "encoder.*). Choose the folder text_encoder of the published model")
    vocabulary, width = tensors["shared.weight"].shape
    if width != config.joint_attention_dim or vocabulary < config.vocab_size:
        raise WeightsError(f"{path} is a T5 with states of width {width} and {vocabulary} tokens, but this transformer "
                           f"reads states of width {config.joint_attention_dim} of {config.vocab_size} tokens: choose "
                           "the text encoder that belongs to it (T5 v1.1 XXL for the published models)")
    if mask_embedding is not None:
        tensors["shared.weight"] = with_mask_row(tensors["shared.weight"], read_tensor(locate(mask_embedding)),
                                                 config.mask_id)
    return tensors


def with_mask_row(table_VE: Tensor, row: Tensor, mask_id: int) -> Tensor:
    """The table with another row for the mask token: (E,), (1, E) is taken, too."""
    if row.numel() != table_VE.shape[1]:
        raise WeightsError(f"the mask embedding has shape {tuple(row.shape)}, but the text encoder's rows have "
                           f"{table_VE.shape[1]} values: they do not belong together")
    return table_VE.index_copy(0, torch.tensor([mask_id]), row.view(1, -1).to(table_VE))


def load_words(ref, config: DualDiffusionConfig, tokenizer=None) -> Words:
    """The tokenizer of a transformer with this configuration.

    ref: the folder of a model, or anything else for the vocabulary of T5 v1.1; tokenizer: a folder in its place.
    WeightsError if it is not this model's.
    """
    folder = Path(tokenizer) if tokenizer else locate(ref) / "tokenizer"
    try:
        return Words(config.vocab_size, folder if tokenizer or folder.is_dir() else None)
    except ValueError as error:
        raise WeightsError(str(error)) from error


def read_shift(ref) -> float:
    """The shift of a picture's noise levels, of the folder of a model; the published one for a file."""
    file = locate(ref) / "scheduler" / "scheduler_config.json"
    settings = read_json(file) if file.is_file() else {}
    if settings.get("use_dynamic_shifting"):
        raise WeightsError(f"{file} asks for noise levels that depend on the size, which no published model does")
    return float(settings.get("shift", 3.0))
