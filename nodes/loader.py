"""Jodi Loader: transformer, text encoder and autoencoder of one joint model."""

import folder_paths
import torch
from comfy_api.latest import io

from ..jodi_core.weights import HOST_FOLDERS, tiny_bundle
from .host.model import load_model
from .host.text import load_clip
from .host.vae import load_vae

TINY = "tiny (bundled)"
NO_TEXT = "none"
WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def offered(kind: str, *first: str) -> list[str]:
    return [*first, *folder_paths.get_filename_list(HOST_FOLDERS[kind])]


def path_of(kind: str, name: str) -> str:
    """The file of a combo entry; the host refuses names that lead out of its model folders."""
    return str(tiny_bundle()[kind]) if name == TINY else folder_paths.get_full_path_or_raise(HOST_FOLDERS[kind], name)


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
                io.Combo.Input("model_name", options=offered("transformer", TINY),
                               tooltip="The transformer, from models/diffusion_models. The tiny one is built in: "
                                       "128-pixel toy pictures in seconds, even on a CPU."),
                io.Combo.Input("text_encoder_name", options=offered("text_encoder", TINY, NO_TEXT),
                               tooltip="Gemma-2-2b (instruction tuned) with its tokenizer inside, from "
                                       "models/text_encoders. 'none' saves its memory: reading labels from a picture "
                                       "(perception) needs no text."),
                io.Combo.Input("vae_name", options=offered("autoencoder", TINY),
                               tooltip="The DC-AE f32c32 autoencoder, from models/vae."),
                io.Combo.Input("weight_dtype", options=list(WEIGHT_DTYPES), advanced=True,
                               tooltip="How the transformer's matrices are kept in memory. 'default' decides by the "
                                       "file and the device; fp8 halves the memory and costs some quality."),
            ],
            outputs=[
                io.Model.Output(tooltip="Runs with KSampler and Jodi Joint Sampler alike."),
                io.Clip.Output(tooltip="For CLIP Text Encode; empty if the text encoder is 'none'."),
                io.Vae.Output(tooltip="For Jodi Role Switch, Jodi Label Decode and the host's VAE nodes."),
            ],
        )

    @classmethod
    def execute(cls, model_name, text_encoder_name, vae_name, weight_dtype) -> io.NodeOutput:
        model = load_model(path_of("transformer", model_name), WEIGHT_DTYPES[weight_dtype])
        config = model.model.diffusion_model.config
        clip = None if text_encoder_name == NO_TEXT else load_clip(path_of("text_encoder", text_encoder_name))
        vae = load_vae(path_of("autoencoder", vae_name), config)
        check_belong_together(config, clip, vae)
        model.model.latent_format.preview_with(vae)
        return io.NodeOutput(model, clip, vae)
