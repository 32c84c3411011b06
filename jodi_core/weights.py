"""Weight files of joint models: what a file is, whether it fits, and loading it.

Three kinds of parts make a joint model: the transformer, the autoencoder and the text encoder, in a file each or
together in one, as a host saves them. Files written here are safetensors whose metadata entry "jodi" is JSON
{"format": 1, "kind", "config", "source_sha256"}; files published by others are recognised and configured from the
names and shapes of their tensors.
"""

import json
import os
import re
from pathlib import Path

import torch

from .files import Header, WeightsError, locate, read_header, read_tensors, write_safetensors
from .models.dcae import DCAE, DCAEConfig, from_diffusers_keys
from .models.jodi import JodiConfig, JodiTransformer
from .text import GemmaText, TextConfig, text_from_state_dict

FORMAT = 1
METADATA_TENSOR = "jodi_metadata"
TINY = Path(__file__).parent / "assets" / "tiny"
# Kind -> the folder of the host's models folder in which it looks for such files.
HOST_FOLDERS = {"transformer": "diffusion_models", "autoencoder": "vae", "text_encoder": "text_encoders"}
# What hosts put before the names of a part when they save it, alone or with the other parts.
_PREFIXES = (
    ("model.diffusion_model.", "transformer"), ("diffusion_model.", "transformer"),
    ("first_stage_model.", "autoencoder"),
    ("cond_stage_model.gemma2_2b.transformer.", "text_encoder"), ("cond_stage_model.gemma2_2b.", "text_encoder"),
    ("cond_stage_model.", "text_encoder"),
)
# Not weights: a table that is computed, our metadata, a leftover of the host's text encoders.
_DROPPED = ("pos_embed", METADATA_TENSOR, "logit_scale")

# A tensor name that gives a kind away, in the order of trial; the kinds of others are described as a user knows them.
_SIGNS = (
    (r"\.(lora_[AB]|lora_up|lora_down)\.", "a LoRA"),
    (r"domain_embedding$|x_embedders\.\d", "transformer"),
    (r"(encoder\.project_in|decoder\.project_in)\.|coder\.(down|up)_blocks\.\d+\.\d+\.", "autoencoder"),
    (r"layers\.\d+\.self_attn\.q_norm\.", "another language model (Gemma-3 or Qwen)"),
    (r"^model\.layers\.\d+\.pre_feedforward_layernorm\.", "text_encoder"),
    (r"blocks\.\d+\.mlp\.inverted_conv\.|attention_y_norm\.", "a Sana transformer (Jodi's base, without its domains)"),
    (r"transformer_blocks\.\d+\.ff\.conv_inverted\.", "a Sana transformer in diffusers naming"),
    (r"^y_embedder\.y_proj\.", "a PixArt transformer"),
    (r"double_blocks\.\d", "a Flux or Hunyuan transformer"),
    (r"(^|\.)text_proj_out\.", "dual_diffusion"),
    (r"transformer_blocks\.\d+\.attn\.add_q_proj\.", "a Stable Diffusion 3 transformer in diffusers naming"),
    (r"joint_blocks\.\d", "a Stable Diffusion 3 transformer"),
    (r"(^|\.)jointnet_mid_block\.", "jointnet"),
    (r"input_blocks\.\d|^(down|up)_blocks\.", "a Stable Diffusion UNet"),
    (r"coder\.(mid|down|up)[._]|quant_conv\.", "another autoencoder (of Stable Diffusion kind)"),
    (r"encoder\.block\.\d+\.layer\.", "a T5 text encoder"),
    (r"text_model\.encoder\.|transformer\.resblocks\.", "a CLIP text encoder"),
    (r"layers\.\d+\.self_attn\.q_proj\.", "another language model"),
)
_LABELS = {"transformer": "a Jodi transformer", "autoencoder": "a DC-AE autoencoder",
           "text_encoder": "a Gemma-2 text encoder", "jointnet": "a JointNet model",
           "dual_diffusion": "a Dual Diffusion transformer"}
_HINTS = {
    "transformer": "Choose Jodi.pth of VIPL-GENUN/Jodi, a file made by `convert`, or the bundled tiny model",
    "autoencoder": "Choose model.safetensors of mit-han-lab/dc-ae-f32c32-sana-1.0 (or of its -diffusers repository)",
    "text_encoder": "Choose a Gemma-2-2b (instruction tuned) file with its tokenizer inside, as made for ComfyUI",
}


def tiny_bundle() -> dict[str, Path]:
    """Kind -> file of the tiny model that comes with the package."""
    return {kind: TINY / f"{kind}.safetensors" for kind in HOST_FOLDERS}


def resolve(ref: str | os.PathLike, kind: str) -> Path:
    """The file of one kind that `ref` names: "tiny", a folder in bundle layout (`{kind}.safetensors`), or a file."""
    if str(ref) == "tiny":
        return tiny_bundle()[kind]
    path = locate(ref)
    if not path.is_dir() or (kind == "text_encoder" and (path / "tokenizer.model").is_file()):
        return path
    if not (path / f"{kind}.safetensors").is_file():
        raise WeightsError(f"{path} has no {kind}.safetensors: give the file itself, or a folder with "
                           + ", ".join(f"{name}.safetensors" for name in HOST_FOLDERS))
    return path / f"{kind}.safetensors"


def part_names(names, kind: str) -> dict[str, str]:
    """Stored name -> plain name of what belongs to one kind: what has its prefix, or else what has none."""
    split = {name: next(((name.removeprefix(prefix), owner) for prefix, owner in _PREFIXES
                         if name.startswith(prefix)), (name, None)) for name in names}
    owner = kind if any(owner == kind for _, owner in split.values()) else None
    return {name: plain for name, (plain, of) in split.items() if of == owner}


def kinds_in(names) -> list[str]:
    """The parts of a joint model that a file with these tensor names holds."""
    return [kind for kind in HOST_FOLDERS if kind_of(part_names(names, kind).values()) == kind]


def kind_of(names) -> str | None:
    """A kind of our own (`transformer`, `autoencoder`, `text_encoder`, `jointnet`, `dual_diffusion`), a description of
    another model's file, or None."""
    for pattern, kind in _SIGNS:
        if any(re.search(pattern, name) for name in names):
            return kind
    return None


def described(names) -> str:
    """What a file with these tensor names is, for messages."""
    kind = kind_of(names)
    return _LABELS.get(kind, kind) or "no model file that is known here"


# 8 bits are for the matrices of the blocks, which are nearly the whole of a model. What is small and sensitive stays
# in 16: embedders, tables, norms, biases, depth-wise kernels, the last layers, the stored caption.
_BLOCK_MATRIX = re.compile(r"(^|\.)(blocks|layers)\.\d+\..*\.weight$")


def in_8_bits(name: str, shape) -> bool:
    """Whether a tensor of a transformer or text encoder (published name) is one of those that 8-bit storage is for."""
    return bool(_BLOCK_MATRIX.search(name)) and len(shape) > 1 and shape[1] > 1


def check_keys(expected: dict[str, tuple], found: dict[str, tuple], what: str) -> None:
    """WeightsError listing the first few missing, unexpected and mis-shaped tensors; both map names to shapes."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shaped = [f"{name} is {_times(found[name])} instead of {_times(shape)}" for name, shape in expected.items()
              if name in found and tuple(found[name]) != tuple(shape)]
    faults = ("missing", missing), ("unexpected", unexpected), ("of a wrong shape", shaped)
    told = [f"{len(names)} {fault}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for fault, names in faults if names]
    if told:
        raise WeightsError(f"{what}: the tensors do not fit. " + "; ".join(told)
                           + ". The file is damaged, incomplete or of another version")


def _times(shape) -> str:
    return "x".join(map(str, shape)) or "a single number"


def metadata_entry(kind: str, config, source_sha256: str = "") -> str:
    """The metadata entry "jodi" of a file of ours; `config` is the configuration object of that kind."""
    return json.dumps({"format": FORMAT, "kind": kind, "config": config.to_dict(), "source_sha256": source_sha256})


def metadata_tensor(kind: str, config) -> dict[str, torch.Tensor]:
    """The metadata entry as a tensor of bytes under its name, for hosts that save tensors and drop metadata."""
    return {METADATA_TENSOR: torch.frombuffer(bytearray(metadata_entry(kind, config).encode()), dtype=torch.uint8)}


def own_metadata(header: Header, names: dict[str, str]) -> dict | None:
    """The metadata entry that this project writes, None without one, WeightsError if it is unusable.

    names: of the part in question, see `part_names`.
    """
    in_tensor = [stored for stored, plain in names.items() if plain == METADATA_TENSOR]
    if "jodi" not in header.metadata and not in_tensor:
        return None
    try:
        own = json.loads(header.metadata["jodi"] if "jodi" in header.metadata else
                         bytes(read_tensors(header.path, in_tensor)[in_tensor[0]].tolist()))
        newer, usable = own["format"] > FORMAT, own["kind"] in _LABELS and isinstance(own["config"], dict)
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{header.path}: its metadata entry 'jodi' cannot be read ({error!r}); convert it again "
                           "from the original file") from error
    if newer:
        raise WeightsError(f"{header.path} was written by a newer version (format {own['format']}): update this one")
    if not usable:
        raise WeightsError(f"{header.path}: its metadata names no known kind of model ({own['kind']!r})")
    return own


def part_of(path: Path, kind: str) -> tuple[Header, dict[str, str], dict | None]:
    """Header, names (stored -> plain) and stored configuration of a file's part; WeightsError if it has no such."""
    header = read_header(path)
    names = part_names(header.shapes, kind)
    found = kind_of(names.values()) or kind_of(header.shapes)
    if found != kind:
        known = _LABELS.get(found, found) or "no model file that is known here"
        raise WeightsError(f"{path} is {known}, but {_LABELS[kind]} is wanted. {_HINTS[kind]}")
    own = own_metadata(header, names)
    if own and own["kind"] != kind:
        raise WeightsError(f"{path}: its metadata says {own['kind']}, but its tensors are {_LABELS[kind]}")
    return header, {stored: plain for stored, plain in names.items() if plain not in _DROPPED}, own and own["config"]


# What tensor shapes tell: a stored configuration that says otherwise lies.
_TOLD_BY_SHAPES = {
    "transformer": ("num_domains", "hidden_size", "depth", "in_channels", "patch_size", "caption_channels",
                    "model_max_length", "qk_norm", "cross_norm", "y_norm"),
    "autoencoder": ("in_channels", "latent_channels", "widths", "encoder_depths", "decoder_depths"),
}


def settings_of(kind: str, shapes: dict[str, tuple], stored: dict | None):
    """The stored configuration, held against the shapes, or the one that the shapes imply. ValueError if it lies."""
    if kind == "text_encoder":
        parts = {name: shape for name, shape in shapes.items() if name not in ("spiece_model", "lm_head.weight")}
        return TextConfig.from_state_dict(parts, stored)
    cls = {"transformer": JodiConfig, "autoencoder": DCAEConfig}[kind]
    if stored is None:
        return cls.from_state_dict(shapes)
    original = "num_conditions" in stored or "width_list" in stored
    config = cls.from_reference(stored) if original else cls.from_dict(stored)
    unseen = {"num_heads": 1, "linear_head_dim": 1} if kind == "transformer" else {"head_dim": config.head_dim}
    told = cls.from_state_dict(shapes, **unseen)
    for name in _TOLD_BY_SHAPES[kind]:
        said, true = getattr(config, name), getattr(told, name)
        if said != true:
            raise ValueError(f"it says {name} {said}, but the tensors have {true}")
    return config


def read_part(path: Path, kind: str, given: dict | None = None):
    """(configuration, tensors by published name) of a file's part, checked against each other.

    given: a configuration that stands in for the file's own. WeightsError if anything does not fit.
    """
    header, names, stored = part_of(path, kind)
    try:
        config = settings_of(kind, {plain: header.shapes[name] for name, plain in names.items()}, given or stored)
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # stored values may have any type
        raise WeightsError(f"{path}: its configuration cannot be used: {error}") from error
    tensors = {names[name]: tensor for name, tensor in read_tensors(path, names).items()}
    tensors = original_names(kind, tensors)
    if kind != "text_encoder":
        check_keys(expected_shapes(kind, config), {name: tuple(tensor.shape) for name, tensor in tensors.items()},
                   str(path))
    return config, tensors


def original_names(kind: str, values: dict) -> dict:
    """Tensors, or their shapes, under the names of the original, if an autoencoder has those of diffusers."""
    if kind != "autoencoder" or not any(".down_blocks." in name for name in values):
        return values
    if isinstance(next(iter(values.values())), tuple):
        meta = {name: torch.empty(shape, device="meta") for name, shape in values.items()}
        return {name: tuple(tensor.shape) for name, tensor in from_diffusers_keys(meta).items()}
    return from_diffusers_keys(values)


def expected_shapes(kind: str, config) -> dict[str, tuple]:
    """Published name -> shape of all tensors of a transformer or an autoencoder."""
    network = _NETWORKS[kind](config, device="meta")
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


_NETWORKS = {"transformer": JodiTransformer, "autoencoder": DCAE}


def read_transformer(path: Path) -> tuple[JodiConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors (published names, as stored) of a transformer file, checked against each other."""
    return read_part(path, "transformer")


def read_autoencoder(path: Path) -> tuple[DCAEConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors (original names, as stored) of an autoencoder file in either naming, checked."""
    return read_part(path, "autoencoder")


def read_text_encoder(path: Path) -> tuple[TextConfig, dict[str, torch.Tensor]]:
    """Configuration and tensors (with the tokenizer, `spiece_model`) of a text encoder file."""
    return read_part(path, "text_encoder")


def load_transformer(ref, *, device=None, dtype: torch.dtype | None = None, operations=torch.nn) -> JodiTransformer:
    """A transformer ready for use. ref: "tiny", file, bundle folder or hf:// address; dtype None: as stored."""
    return _load("transformer", ref, device, dtype, operations)


def load_autoencoder(ref, *, device=None, dtype: torch.dtype | None = None, operations=torch.nn) -> DCAE:
    """An autoencoder ready for use; arguments as for `load_transformer`."""
    return _load("autoencoder", ref, device, dtype, operations)


def load_text(ref, *, device=None, dtype: torch.dtype | None = None) -> GemmaText:
    """A text encoder with its tokenizer ready for use.

    ref: as for `load_transformer`, or a Gemma-2 folder as its authors publish it, or the addresses of its files.
    """
    path = [locate(part) for part in ref][0].parent if isinstance(ref, tuple) else resolve(ref, "text_encoder")
    if path.is_dir():
        tensors, metadata = gemma_folder(path), {}
    else:
        config, tensors = read_text_encoder(path)
        metadata = {"jodi": metadata_entry("text_encoder", config)}
    try:
        return text_from_state_dict(tensors, metadata, device=device, dtype=dtype)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error


def _load(kind, ref, device, dtype, operations):
    config, tensors = read_part(resolve(ref, kind), kind)
    if dtype is None and any(tensor.dtype.itemsize == 1 for tensor in tensors.values()):
        dtype = torch.bfloat16    # nothing here computes in the 8 bits that a file is stored in
    network = _NETWORKS[kind](config, device="meta", operations=operations)
    placed = {name: tensor.to(device=device, dtype=dtype) for name, tensor in tensors.items()}
    network.load_state_dict(placed, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def gemma_folder(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors and the tokenizer of a Gemma-2 folder, as one file of the host has them."""
    parts = sorted(folder.glob("*.safetensors"))
    if not parts or not (folder / "tokenizer.model").is_file():
        raise WeightsError(f"{folder} needs tokenizer.model and *.safetensors, as google/gemma-2-2b-it has them")
    tensors = {name: tensor for part in parts for name, tensor in read_tensors(part).items()}
    tokenizer = bytearray((folder / "tokenizer.model").read_bytes())
    return tensors | {"spiece_model": torch.frombuffer(tokenizer, dtype=torch.uint8)}


def write_model(target: Path, kind: str, config, tensors: dict[str, torch.Tensor], *, source_sha256: str = "",
                overwrite: bool = False) -> None:
    """One safetensors file with everything that loading needs; `config` is the configuration object of that kind."""
    metadata = {"format": "pt", "jodi": metadata_entry(kind, config, source_sha256)}
    write_safetensors(Path(target), tensors, metadata, overwrite)
