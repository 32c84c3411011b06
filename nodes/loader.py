"""Jodi Loader: transformer, text encoder and autoencoder of one joint model."""

import folder_paths
import torch
from comfy_api.latest import io

from ..jodi_core.published import how_to_get
from ..jodi_core.weights import HOST_FOLDERS, tiny_bundle
from .host.model import load_model
from .host.text import load_clip
from .host.vae import load_vae

TINY = "tiny (bundled)"
NO_TEXT = "none"
SAME_FILE = "in the model file"
CHECKPOINT = "checkpoints: "    # before names of that folder, where CheckpointSave puts a model with all its parts
WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
    "int8": {"int8": True},
}


def offered(kind: str) -> list[str]:
    """The choices for one kind of part; those of later versions go last."""
    files = folder_paths.get_filename_list(HOST_FOLDERS[kind])
    if kind == "transformer":
        return [TINY, *files, *(CHECKPOINT + name for name in folder_paths.get_filename_list("checkpoints"))]
    return [TINY, *([NO_TEXT] if kind == "text_encoder" else []), *files, SAME_FILE]


def path_of(kind: str, name: str) -> str:
    """The file of a choice; FileNotFoundError with what to do for what is none, so that no name leads elsewhere."""
    if name not in offered(kind):
        raise FileNotFoundError(missing(kind, name))
    if name == TINY:
        return str(tiny_bundle()[kind])
    if name.startswith(CHECKPOINT):
        return folder_paths.get_full_path_or_raise("checkpoints", name.removeprefix(CHECKPOINT))
    return folder_paths.get_full_path_or_raise(HOST_FOLDERS[kind], name)


def missing(kind: str, name: str) -> str:
    """What to do about a choice that is not there."""
    stem, _, suffix = f"{name}"[:200].rpartition(".")
    other = f"{stem}.pth" if suffix == "safetensors" else f"{stem}.safetensors"
    told = f"{name!r:.100} is not in models/{HOST_FOLDERS[kind]}. "
    if other in offered(kind):
        return told + f"Choose {other}, which is there (`python -m jodi_core convert` makes .safetensors of .pth)"
    return told + f"{how_to_get(kind)}, then reload the page; or choose tiny for all parts"


def check_belong_together(config, clip, vae) -> None:
    """ValueError if the text encoder or the autoencoder was made for another transformer."""
    width = config.caption_channels if clip is None else clip.tokenizer.config.hidden_size
    if width != config.caption_channels:
        raise ValueError(f"this text encoder gives {width} numbers per token, but the model takes "
                         f"{config.caption_channels}: use Gemma-2-2b with the published model, tiny with tiny")
    side, factor = config.input_size, vae.spacial_compression_encode()
    if (side * factor, side * factor) not in config.bins.values():
        raise ValueError(f"this autoencoder shrinks pictures {factor} times, which does not suit the model: "
                         "use DC-AE f32c32 with the published model, tiny with tiny")


class JodiLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiLoader",
            display_name="Jodi Loader",
            category="model/loaders/jodi",
            description="Loads a joint model: one network for a picture and its labels (depth, normals, albedo, "
                        "edges, line art, segmentation, pose), its text encoder and its autoencoder. "
                        "A tiny model comes with the pack.",
            search_aliases=["joint model", "depth estimation", "normal estimation", "controlnet", "intrinsic images",
                            "albedo", "segmentation", "preprocessor", "sana", "dc-ae"],
            inputs=[
                io.Combo.Input("model_name", options=offered("transformer"),
                               tooltip="The transformer, from models/diffusion_models. The tiny one is built in: "
                                       "128-pixel toy pictures in seconds, even on a CPU. Names after "
                                       "'checkpoints:' are files with all parts, as CheckpointSave writes them."),
                io.Combo.Input("text_encoder_name", options=offered("text_encoder"),
                               tooltip="Gemma-2-2b (instruction tuned) with its tokenizer inside, from "
                                       "models/text_encoders. 'none' saves its memory: reading labels from a picture "
                                       "(perception) needs no text. 'in the model file' is for files with all "
                                       "parts."),
                io.Combo.Input("vae_name", options=offered("autoencoder"),
                               tooltip="The DC-AE f32c32 autoencoder, from models/vae or in the model file."),
                io.Combo.Input("weight_dtype", options=list(WEIGHT_DTYPES), advanced=True,
                               tooltip="How the transformer's matrices are kept in memory. 'default' decides by the "
                                       "file and the device. int8 and the fp8 choices save memory and cost some "
                                       "quality (int8 least); measured in the help."),
            ],
            outputs=[
                io.Model.Output(tooltip="Runs with KSampler and Jodi Joint Sampler alike."),
                io.Clip.Output(tooltip="For CLIP Text Encode; empty if the text encoder is 'none'."),
                io.Vae.Output(tooltip="For Jodi Role Switch, Jodi Label Decode and the host's VAE nodes."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name, text_encoder_name, vae_name):
        """In place of the host's check, which only says that a value is not in a list. None: by a link."""
        chosen = {"transformer": model_name, "text_encoder": text_encoder_name, "autoencoder": vae_name}
        if model_name == TINY and SAME_FILE in (text_encoder_name, vae_name):
            return f"the tiny model is not one file: choose {TINY!r} for the text encoder and the autoencoder too"
        return next((missing(kind, name) for kind, name in chosen.items()
                     if name is not None and name not in offered(kind)), True)

    @classmethod
    def execute(cls, model_name, text_encoder_name, vae_name, weight_dtype) -> io.NodeOutput:
        model_path = path_of("transformer", model_name)
        text_path, vae_path = (model_path if name == SAME_FILE else name != NO_TEXT and path_of(kind, name)
                               for kind, name in (("text_encoder", text_encoder_name), ("autoencoder", vae_name)))
        model = load_model(model_path, WEIGHT_DTYPES[weight_dtype])
        config = model.model.diffusion_model.config
        clip = load_clip(text_path) if text_path else None
        vae = load_vae(vae_path, config)
        check_belong_together(config, clip, vae)
        model.model.latent_format.preview_with(vae)
        return io.NodeOutput(model, clip, vae)
