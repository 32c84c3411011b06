"""The recorded Dual Diffusion model as MODEL, CLIP and VAE, for the tests of this folder that need it."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from dual_diffusion_files import GOLDEN, write_whole_folder
from safetensors.torch import load_file


@cache
def recorded() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "golden.safetensors")


@cache
def folder() -> Path:
    """In the published layout; the autoencoder is a small one that ComfyUI knows."""
    root = Path(tempfile.mkdtemp()) / "dual"
    write_whole_folder(root)
    return root


@cache
def loaded() -> tuple:
    """(MODEL, CLIP, VAE)."""
    from jodi_pack.nodes.host.dual_diffusion import load_dual_diffusion
    from jodi_pack.nodes.host.dual_diffusion_text import load_t5_clip
    from jodi_pack.nodes.host.picture_vae import latents_of, load_picture_vae
    vae = load_picture_vae(str(folder()))
    model = load_dual_diffusion(str(folder()), latents_of(vae))
    return model, load_t5_clip(str(folder()), str(folder()), model.model.diffusion_model.config), vae
