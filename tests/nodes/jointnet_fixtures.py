"""The recorded tiny JointNet, for the tests of this folder that need it."""

import json
import math
import pathlib
from functools import cache

import torch
from safetensors.torch import load_file, save_file

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "jointnet"
RECORDED = json.loads((GOLDEN / "jointnet_tiny.json").read_text())
DOMAINS = ("image", "depth")
SCALE = 0.18215


@cache
def recorded_tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "jointnet_tiny.safetensors")


def of_case(name: str) -> dict[str, torch.Tensor]:
    start = f"case/{name}/"
    return {key.removeprefix(start): tensor for key, tensor in recorded_tensors().items() if key.startswith(start)}


def by_domain(latents_B8hw: torch.Tensor) -> torch.Tensor:
    """(B, 8, h, w) as recorded -> joint latent (B, 4, 2, h, w)."""
    return latents_B8hw.unflatten(1, (2, 4)).transpose(1, 2)


def recorded_weights(inpaint: bool) -> tuple:
    """(configuration, tensors under the names of files) of a variant."""
    from jodi_pack.jodi_core.jointnet.config import JointNetConfig
    tensors = {name.replace("/", ".", 1): tensor.float() for name, tensor in recorded_tensors().items()
               if name.startswith(("unet/", "jointnet/")) and (inpaint or "masked_latent" not in name)}
    return JointNetConfig.from_published(RECORDED["unet_config"], inpaint), tensors


@cache
def recorded_model(inpaint: bool):
    """MODEL."""
    from jodi_pack.nodes.host.jointnet import from_tensors
    return from_tensors(*recorded_weights(inpaint), "the recorded model", {}, False)


def random_like(shapes: dict[str, tuple], spread: float = 1.0) -> dict[str, torch.Tensor]:
    """Weights of a network that neither vanish nor explode: norms are one, biases zero, matrices scaled by width."""
    def value(name, shape):
        if len(shape) < 2:
            return torch.full(shape, float("norm" in name and name.endswith("weight")))
        return torch.randn(shape) * spread / math.prod(shape[1:]) ** 0.5
    return {name: value(name, shape) for name, shape in shapes.items()}


def write_stock_parts(folder: pathlib.Path, monkeypatch) -> None:
    """Files in the layout of Stable Diffusion 2.1 where the host looks, below `folder`: its text encoder but 16 wide,
    its VAE but with a thin decoder, and both in a checkpoint; the recorded JointNet as one file and as a folder."""
    from comfy import sd1_clip
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.supported_models import SD20
    from comfy.text_encoders import sd2_clip
    settings = json.loads((pathlib.Path(sd2_clip.__file__).parent / "sd2_clip_config.json").read_text())
    settings |= {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    (folder / "sd2_clip_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(sd2_clip, "__file__", str(folder / "sd2_clip.py"))    # beside which it finds its settings
    shared = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
              "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    with torch.device("meta"):
        vae = AutoencoderKL(ddconfig=shared, embed_dim=4, decoder_ddconfig=shared | {"ch": 32})
        text = sd1_clip.SDClipModel(device="meta", textmodel_json_config=settings, layer="last").transformer
    torch.manual_seed(0)
    clip, vae = (random_like({name: tuple(value.shape) for name, value in part.state_dict().items()})
                 for part in (text, vae))
    # As much of the U-Net as the host needs to see what kind of checkpoint it is.
    unet = {"input_blocks.0.0": (320, 4, 3, 3), "input_blocks.1.0.in_layers.0": (320,), "out.2": (4, 320, 1, 1),
            "input_blocks.1.0.out_layers.3": (320, 320, 1, 1), "input_blocks.1.1.proj_in": (320, 320),
            "input_blocks.1.1.transformer_blocks.0.attn2.to_k": (320, 1024)}
    stored_clip = SD20.process_clip_state_dict_for_saving(
        None, {f"clip_h.transformer.{name}": value for name, value in clip.items()})
    checkpoint = {f"model.diffusion_model.{name}.weight": torch.zeros(shape) for name, shape in unet.items()}
    checkpoint |= {name: value.contiguous() for name, value in stored_clip.items()}
    checkpoint |= {f"first_stage_model.{name}": value for name, value in vae.items()}
    for path, tensors in (("text_encoders/clip_h", clip), ("vae/kl", vae), ("checkpoints/sd21", checkpoint)):
        (folder / path).parent.mkdir()
        save_file(tensors, folder / f"{path}.safetensors")


def write_published(folder: pathlib.Path, inpaint: bool) -> None:
    """The recorded JointNet in the published layout."""
    _, tensors = recorded_weights(inpaint)
    for branch in ("unet", "jointnet"):
        (folder / branch).mkdir(parents=True)
        (folder / branch / "config.json").write_text(json.dumps(RECORDED["unet_config"]))
        save_file({name.removeprefix(f"{branch}."): tensor for name, tensor in tensors.items()
                   if name.startswith(f"{branch}.")}, folder / branch / "diffusion_pytorch_model.safetensors")
