"""Weight files rewritten: any known file as one safetensors file with its configuration, in another number type."""

import math
from collections import Counter
from pathlib import Path

import torch

from .dual_diffusion import weights as dual_diffusion
from .files import WeightsError, locate, read_header, sha256, write_safetensors
from .jointnet import loading as jointnet
from .weights import described, gemma_folder, in_8_bits, kind_of, kinds_in, metadata_entry, part_of, read_part
from .weights import settings_of

# Families that are read whole -> where their weights are, how they are read, and what a file's header tells.
_WHOLE = {"jointnet": (jointnet.source_files, jointnet.read_jointnet, jointnet.config_in),
          "dual_diffusion": (dual_diffusion.source_files, dual_diffusion.read_transformer, dual_diffusion.config_in)}
# Relative error (root mean square) beyond which a matrix stays in 16 bits. Three bits of mantissa cost 0.03; more comes
# from values below the smallest normal number, 1/64, as there is no scale beside the numbers.
_LARGEST_ERROR = 0.06


def stored_dtypes(kind: str, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Name -> number type of every floating-point tensor of a file of this kind that is converted to `dtype`.

    WeightsError for an autoencoder in 8 bits: it is small, and its pictures would show it; and for the families that
    were not tried in 8 bits.
    """
    if dtype.itemsize == 1 and kind in ("autoencoder", *_WHOLE):
        raise WeightsError(f"the {kind} loses too much in 8 bits: choose bfloat16")
    return {name: torch.bfloat16 if dtype.itemsize == 1 and not _suits_8_bits(name, tensor, dtype) else dtype
            for name, tensor in tensors.items() if tensor.is_floating_point()}


def _suits_8_bits(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    if not in_8_bits(name, tensor.shape):
        return False
    exact = tensor.float()
    return bool((tensor.to(dtype).float() - exact).norm() <= _LARGEST_ERROR * exact.norm())


def convert(source, target, *, dtype: torch.dtype | None = None, config: dict | None = None, part: str | None = None,
            overwrite: bool = False) -> str:
    """Rewrite any known file, or a folder of Gemma-2, JointNet or Dual Diffusion (of which the transformer), as one
    safetensors file with its configuration; returns its kind.

    dtype: of floating-point tensors, default as stored; of an 8-bit one, see `stored_dtypes`. config: configuration
    (names of ours or of the original) for a file that has none and whose shapes do not tell enough. part: which one of
    a file that holds several.
    """
    kind, sources, settings, tensors = _read(locate(source), part, config)
    dtypes = stored_dtypes(kind, tensors, dtype) if dtype is not None else {}
    metadata = {"format": "pt", "jodi": metadata_entry(kind, settings, sha256(*sources))}
    write_safetensors(Path(target), tensors, metadata, overwrite, dtypes)
    return kind


def _read(path: Path, part: str | None, config: dict | None) -> tuple:
    """(kind, files that were read, configuration, tensors)."""
    for kind, (source_files, read, _) in _WHOLE.items():
        if sources := source_files(path):
            return kind, sources, *read(path)
    if path.is_dir():
        tensors = gemma_folder(path)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return "text_encoder", sorted(path.glob("*.safetensors")), settings_of("text_encoder", shapes, config), tensors
    kind = part or _only_kind(path)
    return kind, [path], *read_part(path, kind, config)


def _only_kind(path: Path) -> str:
    names = read_header(path).shapes
    kinds = kinds_in(names)
    if not kinds:
        raise WeightsError(f"{path} is {described(names)}: nothing to convert")
    if len(kinds) > 1:
        raise WeightsError(f"{path} holds {', '.join(kinds)}: choose one with --part")
    return kinds[0]


def inspect(ref) -> dict:
    """What a file is, from its header: file, bytes, kind (several joined by " + "), config (or why there is none; one
    per kind if there are several), tensors, parameters, dtypes (name -> number of tensors) and metadata."""
    header = read_header(locate(ref))
    kinds = kinds_in(header.shapes) or [kind for kind in _WHOLE if kind == kind_of(header.shapes)]
    about = {"file": str(header.path), "bytes": header.path.stat().st_size,
             "kind": " + ".join(kinds) or kind_of(header.shapes) or "unknown", "tensors": len(header.shapes),
             "parameters": sum(math.prod(shape) for shape in header.shapes.values()),
             "dtypes": dict(Counter(header.dtypes.values())), "metadata": header.metadata}
    configs = {kind: _config(header.path, kind) for kind in kinds}
    return about | ({"config": configs if len(kinds) > 1 else configs[kinds[0]]} if kinds else {})


def _config(path: Path, kind: str) -> dict | str:
    try:
        if kind in _WHOLE:
            return _WHOLE[kind][2](read_header(path)).to_dict()
        header, names, stored = part_of(path, kind)
        return settings_of(kind, {plain: header.shapes[name] for name, plain in names.items()}, stored).to_dict()
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        return f"unusable: {error}"
