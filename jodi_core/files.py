"""Weight files on disk: find one, look into it without loading it, read it safely, write it atomically.

Nothing here knows what a file means; `weights` does. A file is untrusted: pickles are only ever read by the
weights-only reader, which cannot execute code, and names that come from outside never leave the folder they belong to.
"""

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
HUB = "hf://"
_HUB_PART = re.compile(r'[^\\/:*?"<>|\x00-\x1f]+')
_GENERIC_STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")


class WeightsError(ValueError):
    """A weight file cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Header:
    """What a weight file holds, without its values. `dtypes` are names such as F32, BF16, U8."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]


def parse_hub_ref(ref: str) -> tuple[str, str]:
    """`hf://owner/name/path/to/file` -> ("owner/name", "path/to/file"); WeightsError if a part could leave a folder."""
    parts = ref.removeprefix(HUB).split("/")
    if len(parts) < 3 or any(part in (".", "..") or not _HUB_PART.fullmatch(part) for part in parts):
        raise WeightsError(f"{ref!r} is not a usable address: write hf://owner/name/file, without empty parts, "
                           "'.', '..' or backslashes")
    return "/".join(parts[:2]), "/".join(parts[2:])


def locate(ref: str | os.PathLike) -> Path:
    """The local file that `ref` names: a path, or `hf://owner/name/file` fetched into the hub's cache.

    An existing local path wins. One file is fetched, resumed if it was interrupted; HF_HUB_OFFLINE, HF_HOME and
    HF_TOKEN are honoured. Raises WeightsError if there is no such file or it cannot be fetched.
    """
    path = Path(ref).expanduser()
    if str(ref).startswith(HUB):
        repo, name = parse_hub_ref(str(ref))
        return path if path.is_file() else _fetch(repo, name)
    if not path.exists():
        raise WeightsError(f"{path}: no such file")
    return path


def _fetch(repo: str, name: str, **where) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError, \
        RepositoryNotFoundError

    ref = f"{HUB}{repo}/{name}"
    try:
        return Path(huggingface_hub.hf_hub_download(repo, name, **where))
    except GatedRepoError as error:
        raise WeightsError(f"{ref} needs an account that has accepted its terms: do that on the site, then log in "
                           "with `hf auth login`") from error
    except LocalEntryNotFoundError as error:
        raise WeightsError(f"{ref} is not in the cache and cannot be fetched (offline mode or no network): "
                           "connect once, unset HF_HUB_OFFLINE, or give the path of a local copy") from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise WeightsError(f"{ref} does not exist (or is private: log in with `hf auth login`)") from error
    except Exception as error:  # errors of the hub's transport libraries have no common base
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{ref} could not be fetched ({reason}): try again, it will resume") from error


def hub_file_name(ref: str) -> str:
    """Local name for `hf://...`: the file's own, or the repository's where that says nothing ("model.safetensors")."""
    repo, name = parse_hub_ref(ref)
    last = Path(name)
    return repo.split("/")[1] + last.suffix if last.stem in _GENERIC_STEMS else last.name


def refuse_existing(target: Path) -> None:
    if target.exists():
        raise WeightsError(f"{target} exists: remove it first, or choose another place")


def fetch_into(ref: str, folder: Path) -> Path:
    """Fetch `hf://...` into `folder` and return the file.

    It takes no room in the hub's cache, but uses a copy found there. Stopped downloads resume; a full disk leaves
    nothing behind.
    """
    import huggingface_hub

    repo, name = parse_hub_ref(ref)
    target, staging = folder / hub_file_name(ref), folder / ".jodi-download"
    refuse_existing(target)
    with _nothing_left(staging):
        folder.mkdir(parents=True, exist_ok=True)
        cached = huggingface_hub.try_to_load_from_cache(repo, name)
        if isinstance(cached, str):
            with atomic_target(target) as partial:
                shutil.copyfile(cached, partial)
        else:
            os.replace(_fetch(repo, name, local_dir=staging), target)
            shutil.rmtree(staging)
    return target


@contextmanager
def _nothing_left(partial: Path):
    """Turn a failed write (a full disk, mostly) into a WeightsError and remove the partial file or folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)
        raise WeightsError(f"could not write into {partial.parent}: {error}; nothing was left there") from error


@contextmanager
def atomic_target(target: Path, overwrite: bool = False):
    """A temporary path beside `target` which becomes `target` when the block succeeds and vanishes when it fails."""
    if not overwrite:
        refuse_existing(target)
    if not target.parent.is_dir():
        raise WeightsError(f"{target.parent}: no such folder")
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    with _nothing_left(partial):
        try:
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


# Number types that files of ours may hold -> their names in safetensors.
_STORED_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}


def write_safetensors(target: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str],
                      overwrite: bool = False, dtypes: dict[str, torch.dtype] | None = None) -> None:
    """One safetensors file, complete or not there at all, in the memory of one tensor beside those given.

    dtypes: name -> number type to write a tensor in, where it is not its own. WeightsError if a finite value does not
    fit into it, or the disk is full.
    """
    wanted = {name: (dtypes or {}).get(name, tensor.dtype) for name, tensor in tensors.items()}
    # Wide types first keeps every tensor aligned, which readers that map the file rely on.
    order = sorted(tensors, key=lambda name: (-wanted[name].itemsize, name))
    header, end = {"__metadata__": metadata}, 0
    for name in order:
        start, end = end, end + tensors[name].numel() * wanted[name].itemsize
        header[name] = {"dtype": _STORED_DTYPES[wanted[name]], "shape": list(tensors[name].shape),
                        "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with atomic_target(target, overwrite) as partial, open(partial, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in order:
            file.write(_bytes(_cast(tensors[name], wanted[name], name)))


def _cast(tensor: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    if tensor.numel() and dtype.is_floating_point and dtype.itemsize < tensor.dtype.itemsize:
        peak = tensor.abs().max().float()
        if torch.finfo(dtype).max < peak < torch.inf:    # what is infinite already is no fault of the conversion
            raise WeightsError(f"{name} has values up to {peak:.3g}, too large for {dtype}: choose bfloat16")
    return tensor.to(dtype)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def sha256(*paths: Path) -> str:
    """Hexadecimal digest of the contents, one file after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def read_header(path: Path) -> Header:
    """Names, shapes, types and metadata of a weight file. Values stay on disk (except in torch's pre-zip format)."""
    if _suffix(path) in PICKLE_SUFFIXES:
        tensors = _read_pickle(path)
        dtypes = {name: _short_dtype(tensor.dtype) for name, tensor in tensors.items()}
        return Header(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, dtypes, {})
    with _opening(path), safe_open(str(path), framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        return Header(path, {name: tuple(part.get_shape()) for name, part in slices.items()},
                      {name: part.get_dtype() for name, part in slices.items()}, file.metadata() or {})


def read_tensors(path: Path, names=None) -> dict[str, torch.Tensor]:
    """Tensors of a weight file (all, or those named), on the CPU, mapped from disk where the format allows it."""
    if _suffix(path) in PICKLE_SUFFIXES:
        tensors = _read_pickle(path)
        return tensors if names is None else {name: tensors[name] for name in names}
    with _opening(path), safe_open(str(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder that holds one model, see `model_files`; WeightsError if its index promises others."""
    tensors = {name: tensor for part in model_files(folder) for name, tensor in read_tensors(part).items()}
    absent = sorted({name for index in _indices(folder) for name in _where(index)} - tensors.keys())
    if absent:
        raise WeightsError(f"{folder}: the parts do not hold {absent[0]} and {len(absent) - 1} others that the index "
                           "promises; fetch them again")
    return tensors


def model_files(folder: Path) -> list[Path]:
    """The weight files of a folder that holds one model: those that its index names, or the only one; of a file and
    its variants (`model.fp16.safetensors`) the file. Safetensors are preferred to pickles.

    WeightsError if there is none, or more than one without an index, or the index is unusable.
    """
    if indices := _indices(folder):
        parts = sorted(set(_where(indices[0]).values()))
        foreign = [part for part in parts if not _HUB_PART.fullmatch(part) or part in (".", "..")]
        if foreign:
            raise WeightsError(f"{indices[0]} names {foreign[0]!r}, which is outside of its folder")
        return [folder / part for part in parts]
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    shortest = min((path.name.count(".") for path in found), default=0)
    parts = [path for path in found if path.name.count(".") == shortest]
    if len(parts) != 1:
        raise WeightsError(f"{folder} has {len(parts)} safetensors files and no index of them: it should have one "
                           "file, or all parts with the .index.json that came with them")
    return parts


def _indices(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors.index.json")) or (
        [] if any(folder.glob("*.safetensors")) else sorted(folder.glob("*.bin.index.json")))


def _where(index: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    try:
        return {str(name): str(part) for name, part in json.loads(index.read_text("utf-8"))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is no index of weight files: fetch it again") from error


def read_tensor(path: Path) -> torch.Tensor:
    """The one tensor of a file, bare or in a dictionary."""
    content = _unpickle(path) if _suffix(path) in PICKLE_SUFFIXES else read_tensors(path)
    found = [content] if isinstance(content, torch.Tensor) else \
        list(content.values()) if isinstance(content, dict) else []
    if len(found) != 1 or not isinstance(found[0], torch.Tensor):
        raise WeightsError(f"{path} holds no single tensor")
    return found[0]


def _short_dtype(dtype: torch.dtype) -> str:
    return _STORED_DTYPES.get(dtype, str(dtype).removeprefix("torch."))


def _suffix(path: Path) -> str:
    """The suffix that decides how to read; WeightsError for what is plainly no weight file."""
    if path.is_dir():
        raise WeightsError(f"{path} is a folder, a weight file is wanted")
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.suffix not in (".safetensors", *PICKLE_SUFFIXES):
        raise WeightsError(f"{path}: cannot read this kind of file; use .safetensors, or {', '.join(PICKLE_SUFFIXES)}")
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise WeightsError(f"{path} is empty: the download failed, fetch it again")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull`, or download it")
    if start.lstrip().startswith((b"<", b'{"')):
        raise WeightsError(f"{path} is a web page or a message, not weights: the download failed, fetch it again")
    return path.suffix


@contextmanager
def _opening(path: Path):
    try:
        yield
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a complete safetensors file ({error}): it is damaged or the download was "
                           "cut short; fetch it again") from error


def pickle_layout(path: Path) -> str:
    """Where the tensors of a torch file lie, and what lies beside them."""
    content = _unpickle(path)
    if _nested(content):
        return ", beside ".join(["under 'state_dict'", *([", ".join(map(str, content.keys() - {"state_dict"}))]
                                                          if len(content) > 1 else [])])
    return "at the top"


def _nested(content) -> bool:
    return isinstance(content, dict) and isinstance(content.get("state_dict"), dict)


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    content = _unpickle(path)
    tensors = content["state_dict"] if _nested(content) else content
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise WeightsError(f"{path} holds no plain dictionary of tensors, at the top or under 'state_dict'")
    return tensors


def _unpickle(path: Path):
    zipped = zipfile.is_zipfile(path)
    with open(path, "rb") as file:
        if not zipped and file.read(1) != b"\x80":
            raise WeightsError(f"{path} is not a complete torch file: it is damaged or the download was cut short; "
                               "fetch it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path} was refused: it is damaged, or holds Python objects besides tensors, and reading "
                           "those can execute code. Use a safetensors file, or one that its author saved with weights "
                           "alone") from error
    except Exception as error:  # the reader raises almost anything on damaged input
        raise WeightsError(f"{path} could not be read ({str(error).splitlines()[0]}): it is damaged; "
                           "fetch it again") from error
