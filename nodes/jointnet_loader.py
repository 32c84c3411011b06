"""JointNet Loader: both U-Nets of a JointNet, with the text encoder and the autoencoder of Stable Diffusion 2.1."""

import folder_paths
from comfy_api.latest import io

from ..jodi_core.jointnet.config import BRANCHES
from ..jodi_core.published import how_to_get_jointnet
from ..jodi_core.weights import TINY as TINY_FOLDER
from ..jodi_core.weights import tiny_bundle
from .host.jointnet import load_jointnet
from .host.stock_parts import clip_of, empty_text, vae_of
from .loader import CHECKPOINT, NO_TEXT, TINY, WEIGHT_DTYPES
from .model_folders import FOLDER, model_folders

TINY_MODEL = TINY_FOLDER / "jointnet.safetensors"
LAYOUT = {BRANCHES[1]}    # of a published folder, or of what is left of one
DTYPES = {name: options for name, options in WEIGHT_DTYPES.items() if "int8" not in options}
PARTS = {"model_name": "diffusion_models", "text_encoder_name": "text_encoders", "vae_name": "vae"}
TINY_KINDS = {"text_encoder_name": "text_encoder", "vae_name": "autoencoder"}


def offered(part: str) -> list[str]:
    """The choices for one input."""
    files = folder_paths.get_filename_list(PARTS[part])
    if part == "model_name":
        return [TINY, *model_folders(LAYOUT), *files]
    checkpoints = [CHECKPOINT + name for name in folder_paths.get_filename_list("checkpoints")]
    return [TINY, *([NO_TEXT] if part == "text_encoder_name" else []), *checkpoints, *files]


def path_of(part: str, name: str) -> str:
    """The file or folder of a choice; FileNotFoundError for what is none, so that no name leads elsewhere."""
    if name not in offered(part):
        raise FileNotFoundError(missing(part, name))
    if name == TINY:
        return str(TINY_MODEL if part == "model_name" else tiny_bundle()[TINY_KINDS[part]])
    if name.startswith(FOLDER):
        return model_folders(LAYOUT)[name]
    if name.startswith(CHECKPOINT):
        return folder_paths.get_full_path_or_raise("checkpoints", name.removeprefix(CHECKPOINT))
    return folder_paths.get_full_path_or_raise(PARTS[part], name)


def missing(part: str, name: str) -> str:
    """What to do about a choice that is not there."""
    where = "diffusion_models or models/diffusers" if part == "model_name" else f"{PARTS[part]} or models/checkpoints"
    return f"{name!r:.100} is not in models/{where}. {how_to_get_jointnet(part == 'model_name')}, then reload the page"


class JodiJointNetLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiJointNetLoader",
            display_name="JointNet Loader",
            category="model/loaders/jodi",
            description="Loads JointNet: Stable Diffusion 2.1 for a picture and its depth at once. Two U-Nets that "
                        "exchange features, with the text encoder and the VAE of any Stable Diffusion 2.1 file.",
            search_aliases=["jointnet", "rgbd", "joint model", "depth estimation", "depth to image", "inpaint depth",
                            "stable diffusion 2.1", "panorama"],
            inputs=[
                io.Combo.Input("model_name", options=offered("model_name"),
                               tooltip="A JointNet: the published folder with unet/ and jointnet/ in models/diffusers, "
                                       "or one file made of it in models/diffusion_models. The inpaint variant is best "
                                       "for conditions and masks, and does everything else too. The tiny one is built "
                                       "in, for 128-pixel toy pictures."),
                io.Combo.Input("text_encoder_name", options=offered("text_encoder_name"),
                               tooltip="That of Stable Diffusion 2.1 (OpenCLIP ViT-H): in a checkpoint, or by itself "
                                       "in models/text_encoders. 'none': connect conditioning of another loader. The "
                                       "tiny one belongs to the tiny model, as does the tiny VAE."),
                io.Combo.Input("vae_name", options=offered("vae_name"),
                               tooltip="That of Stable Diffusion 2.1: in a checkpoint, or by itself in models/vae."),
                io.Combo.Input("weight_dtype", options=list(DTYPES), advanced=True,
                               tooltip="How the U-Nets are kept in memory. 'default' decides by the file and the "
                                       "device; fp8 halves the memory and costs some quality."),
            ],
            outputs=[
                io.Model.Output(tooltip="For KSampler and Jodi Joint Sampler. LoRA of Stable Diffusion 2.1 act on the "
                                        "picture's U-Net."),
                io.Clip.Output(tooltip="For CLIP Text Encode; empty if the text encoder is 'none'."),
                io.Vae.Output(tooltip="For Jodi Role Switch, Jodi Label Decode and the host's VAE nodes."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name, text_encoder_name, vae_name):
        """In place of the host's check, which only says that a value is not in a list. None: by a link."""
        chosen = {"model_name": model_name, "text_encoder_name": text_encoder_name, "vae_name": vae_name}
        return next((missing(part, name) for part, name in chosen.items()
                     if name is not None and name not in offered(part)), True)

    @classmethod
    def execute(cls, model_name, text_encoder_name, vae_name, weight_dtype) -> io.NodeOutput:
        model_path, vae_path = path_of("model_name", model_name), path_of("vae_name", vae_name)
        clip = None
        if text_encoder_name != NO_TEXT:
            clip = clip_of(path_of("text_encoder_name", text_encoder_name), text_encoder_name.startswith(CHECKPOINT))
        model = load_jointnet(model_path, DTYPES[weight_dtype], None if clip is None else empty_text(clip))
        vae = vae_of(vae_path, model.model.diffusion_model.config)
        model.model.latent_format.preview_with(vae)
        return io.NodeOutput(model, clip, vae)
