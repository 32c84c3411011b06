"""Load Dual Diffusion: the transformer with both heads, its T5 and its autoencoder."""

import folder_paths
from comfy_api.latest import io

from ..jodi_core.published import how_to_get_dual_diffusion
from ..jodi_core.weights import TINY as TINY_FOLDER
from ..jodi_core.weights import tiny_bundle
from .host.dual_diffusion import load_dual_diffusion
from .host.dual_diffusion_text import load_t5_clip
from .host.picture_vae import latents_of, load_picture_vae
from .loader import TINY
from .model_folders import FOLDER, model_folders

TINY_MODEL = TINY_FOLDER / "dual_diffusion"    # but for its autoencoder, which is that of the tiny Jodi
LAYOUT = {"transformer", "tokenizer"}    # of a published folder, among others
SAME_FOLDER = "in the model folder"
IN_TEXT_ENCODER = "in the text encoder"
PARTS = {"model_name": "diffusion_models", "text_encoder_name": "text_encoders", "vae_name": "vae",
         "mask_embedding": "text_encoders"}
BY_ITSELF = {"text_encoder_name": SAME_FOLDER, "vae_name": SAME_FOLDER, "mask_embedding": IN_TEXT_ENCODER}


def offered(part: str) -> list[str]:
    """The choices for one input."""
    files = folder_paths.get_filename_list(PARTS[part])
    if part == "model_name":
        return [*([TINY] if TINY_MODEL.is_dir() else []), *model_folders(LAYOUT), *files]
    return [BY_ITSELF[part], *files, *([TINY] if part == "vae_name" else [])]


def path_of(part: str, name: str, model_name: str = "") -> str | None:
    """The file or folder of a choice, None for no file of its own; model_name: the choice for the model.

    FileNotFoundError for what is no choice, so that no name leads elsewhere.
    """
    if name not in offered(part):
        raise FileNotFoundError(missing(part, name))
    if name == SAME_FOLDER and (part, model_name) != ("vae_name", TINY):
        return path_of("model_name", model_name)
    if name in (TINY, SAME_FOLDER):
        return str(TINY_MODEL if part == "model_name" else tiny_bundle()["autoencoder"])
    if name.startswith(FOLDER):
        return model_folders(LAYOUT)[name]
    return None if name == IN_TEXT_ENCODER else folder_paths.get_full_path_or_raise(PARTS[part], name)


def missing(part: str, name: str) -> str:
    """What to do about a choice that is not there."""
    other = " or models/diffusers" if part == "model_name" else ""
    return f"{name!r:.100} is not in models/{PARTS[part]}{other}. {how_to_get_dual_diffusion()}, then reload the page"


class JodiDualDiffusionLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiDualDiffusionLoader",
            display_name="Load Dual Diffusion",
            category="model/loaders/jodi",
            description="Loads Dual Diffusion (D-DiT): one network that makes pictures from text, and captions or "
                        "answers from pictures. The host's own loaders take its file for Stable Diffusion 3 and build "
                        "a broken model.",
            search_aliases=["d-dit", "dual diffusion", "dual_diff_sd3", "caption", "vqa", "image to text", "sd3", "t5"],
            inputs=[
                io.Combo.Input("model_name", options=offered("model_name"),
                               tooltip="The folder of a published model in models/diffusers, or its transformer alone "
                                       "in models/diffusion_models. The tiny one is built in: a toy world at 128 "
                                       "pixels. 'base' makes pictures and captions, and ignores questions; 'sft' makes "
                                       "pictures and answers questions. The file does not tell which of them it is."),
                io.Combo.Input("text_encoder_name", options=offered("text_encoder_name"),
                               tooltip="The T5 v1.1 XXL encoder: that of the model's folder, or a file of "
                                       "models/text_encoders. Captions and answers need the learned row of the mask "
                                       "token, which the folder's has."),
                io.Combo.Input("vae_name", options=offered("vae_name"),
                               tooltip="The autoencoder of Stable Diffusion 3: that of the model's folder, or a file "
                                       "of models/vae."),
                io.Combo.Input("mask_embedding", options=offered("mask_embedding"), optional=True, advanced=True,
                               tooltip="The learned row of the mask token (mask_token_emb.00-of-01.pth in "
                                       "models/text_encoders), for a T5 that does not come from the model's folder."),
            ],
            outputs=[
                io.Model.Output(tooltip="For KSampler (euler, normal, cfg 7, 28 steps), and for the nodes that write "
                                        "text."),
                io.Clip.Output(tooltip="For Dual Diffusion Text Encode, and for the nodes that write text."),
                io.Vae.Output(tooltip="For VAE Decode, and for the nodes that write text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name, text_encoder_name, vae_name, mask_embedding=IN_TEXT_ENCODER):
        """In place of the host's check, which only says that a value is not in a list. None: by a link."""
        chosen = {"model_name": model_name, "text_encoder_name": text_encoder_name, "vae_name": vae_name,
                  "mask_embedding": mask_embedding}
        faults = [missing(part, name) for part, name in chosen.items()
                  if name is not None and name not in offered(part)]
        alone = model_name not in (None, TINY) and not model_name.startswith(FOLDER)
        if alone and SAME_FOLDER in (text_encoder_name, vae_name):
            faults.append(f"{model_name!r:.100} is no folder with all parts: choose a text encoder and a VAE, too")
        return faults[0] if faults else True

    @classmethod
    def execute(cls, model_name, text_encoder_name, vae_name, mask_embedding=IN_TEXT_ENCODER) -> io.NodeOutput:
        model_path = path_of("model_name", model_name)
        vae = load_picture_vae(path_of("vae_name", vae_name, model_name))
        model = load_dual_diffusion(model_path, latents_of(vae))
        clip = load_t5_clip(path_of("text_encoder_name", text_encoder_name, model_name), model_path,
                            model.model.diffusion_model.config, path_of("mask_embedding", mask_embedding))
        return io.NodeOutput(model, clip, vae)
