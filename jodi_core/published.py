"""The published files: where they are, where a ComfyUI looks for them, and fetching them when somebody asks."""

import shutil
from pathlib import Path

from .convert import convert
from .files import (WeightsError, atomic_target, fetch_into, hub_file_name, parse_hub_ref, read_header,
                    refuse_existing)
from .weights import HOST_FOLDERS, kind_of, kinds_in

_GEMMA = "hf://Efficient-Large-Model/gemma-2-2b-it/"
PUBLISHED = {
    "transformer": "hf://VIPL-GENUN/Jodi/Jodi.pth",
    "autoencoder": "hf://mit-han-lab/dc-ae-f32c32-sana-1.0/model.safetensors",
    "text_encoder": tuple(_GEMMA + name for name in (
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.model")),
}
# JointNet's authors publish two folders, zipped, and no text encoder and autoencoder: those of its base belong to it.
_JOINTNET = "https://docs-assets.developer.apple.com/ml-research/models/iclr24-jointnet/"
JOINTNET_LINKS = (
    {"name": "rgbd_inpaint_sd21b.zip", "url": f"{_JOINTNET}rgbd_inpaint_sd21b.zip", "directory": "diffusers"},
    {"name": "rgbd_finetune_sd21b.zip", "url": f"{_JOINTNET}rgbd_finetune_sd21b.zip", "directory": "diffusers"},
    {"name": "v2-1_512-ema-pruned.safetensors", "directory": "checkpoints",
     "url": "https://huggingface.co/stabilityai/stable-diffusion-2-1-base/resolve/main/v2-1_512-ema-pruned.safetensors"},
)
# Dual Diffusion: folders with all parts; "base" makes pictures and captions, "sft" pictures and answers.
DUAL_DIFFUSION = ("JleeOfficial/dual_diff_sd3_512_base", "JleeOfficial/dual_diff_sd3_512_sft")
TEXT_ENCODER_FILE = "gemma-2-2b-it.safetensors"  # made of its published files, which ComfyUI does not read
ARRIVALS = ".jodi-arrivals"  # in the models folder, while a download is on its way


def model_links() -> list[dict[str, str]]:
    """Entries for a workflow's `properties.models`: name, url and directory of the files that serve as published.

    The text encoder is not among them: it is made of three files by `download_published`.
    """
    return [{"name": hub_file_name(PUBLISHED[kind]), "url": web_address(PUBLISHED[kind]),
             "directory": HOST_FOLDERS[kind]} for kind in ("transformer", "autoencoder")]


def web_address(ref: str) -> str:
    """Where a browser gets `hf://owner/name/file`."""
    repo, name = parse_hub_ref(ref)
    return f"https://huggingface.co/{repo}/resolve/main/{name}"


def how_to_get(kind: str) -> str:
    """One sentence, without its full stop: where the published file of this kind is, and where it belongs."""
    folder = f"models/{HOST_FOLDERS[kind]}"
    if kind == "text_encoder":
        return (f"Run `python -m jodi_core download published --comfyui DIR` in the pack's folder: it makes "
                f"{folder}/{TEXT_ENCODER_FILE}")
    return f"Save {web_address(PUBLISHED[kind])} as {folder}/{hub_file_name(PUBLISHED[kind])}"


def how_to_get_jointnet(model: bool) -> str:
    """One sentence, without its full stop: where a JointNet is (model) or its base, and where it belongs."""
    link = JOINTNET_LINKS[0 if model else -1]
    unpacked = "Unpack" if model else "Save"
    return f"{unpacked} {link['url']} into models/{link['directory']}"


def how_to_get_dual_diffusion() -> str:
    """One sentence, without its full stop: how the published folders come to where a ComfyUI looks for them."""
    repo = DUAL_DIFFUSION[0]
    return (f"Run `hf download {repo} --local-dir models/diffusers/{repo.partition('/')[2]}` in ComfyUI's folder "
            "(..._sft in place of ..._base answers questions)")


def download(ref: str, *, folder: Path | None = None, comfyui: Path | None = None) -> Path:
    """Fetch `hf://owner/name/file` into `folder`, or into that folder of a ComfyUI where it looks for such a file.

    Raises WeightsError if the file is there already, cannot be fetched or written, or is of no kind used here.
    """
    if folder is not None:
        return fetch_into(ref, Path(folder))
    models = _models_folder(comfyui)
    for name in HOST_FOLDERS.values():
        refuse_existing(models / name / hub_file_name(ref))
    arrived = fetch_into(ref, models / ARRIVALS)
    names = read_header(arrived).shapes
    kinds = kinds_in(names)
    if not kinds:
        raise WeightsError(f"{ref} is {kind_of(names) or 'no model file that is known here'}; it was left as {arrived}")
    target = models / HOST_FOLDERS[kinds[0]] / arrived.name
    target.parent.mkdir(exist_ok=True)
    with atomic_target(target) as partial:
        shutil.move(arrived, partial)  # a copy where the folder is a link to another disk
    arrived.parent.rmdir()
    return target


def download_published(comfyui: Path) -> list[Path]:
    """The three files of the published 1.6B model where a ComfyUI looks for them; those that are there are kept."""
    models = _models_folder(comfyui)
    paths = []
    for kind in ("transformer", "autoencoder"):
        path = models / HOST_FOLDERS[kind] / hub_file_name(PUBLISHED[kind])
        paths.append(path if path.exists() else download(PUBLISHED[kind], comfyui=comfyui))
    target, parts = models / "text_encoders" / TEXT_ENCODER_FILE, models / ARRIVALS / "gemma-2-2b-it"
    if not target.exists():
        for ref in PUBLISHED["text_encoder"]:
            if not (parts / hub_file_name(ref)).exists():
                fetch_into(ref, parts)
        target.parent.mkdir(exist_ok=True)
        convert(parts, target)
        shutil.rmtree(parts.parent)
    return [*paths, target]


def _models_folder(comfyui: Path) -> Path:
    models = Path(comfyui) / "models"
    if not models.is_dir():
        raise WeightsError(f"{comfyui} has no folder 'models': give the folder in which ComfyUI is installed")
    return models
