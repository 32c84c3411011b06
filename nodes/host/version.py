"""What the adapters of this folder need of the host beyond what it promises, checked where it is used.

Versions come and go; a part that is missing is named together with the host's version, so that a report says both.
"""

import importlib

from comfyui_version import __version__ as HOST_VERSION

TESTED = ("0.27.0", "0.30.0")

# Adapter -> what it reaches for: "module:attribute.attribute".
NEEDED = {
    "model": ("comfy.model_base:BaseModel._apply_model", "comfy.model_base:BaseModel.extra_conds",
              "comfy.model_base:BaseModel.load_model_weights", "comfy.model_base:ModelType",
              "comfy.supported_models_base:BASE.process_unet_state_dict_for_saving",
              "comfy.model_patcher:CoreModelPatcher", "comfy.model_management:archive_model_dtypes",
              *(f"comfy.patcher_extension:WrappersMP.{kind}" for kind in (
                  "DIFFUSION_MODEL", "CALC_COND_BATCH", "PREDICT_NOISE", "OUTER_SAMPLE")),
              "comfy.conds:CONDConstant", "comfy.conds:CONDNoiseShape"),
    "JointNet": ("comfy.ldm.modules.diffusionmodules.openaimodel:UNetModel",
                 "comfy.ldm.modules.diffusionmodules.openaimodel:forward_timestep_embed",
                 "comfy.ldm.modules.diffusionmodules.util:timestep_embedding", "comfy.utils:unet_to_diffusers",
                 "comfy.sd:load_clip", "comfy.sd:load_checkpoint_guess_config"),
    "VAE": ("comfy.sd:VAE", "comfy.model_patcher:CoreModelPatcher", "comfy.model_management:vae_dtype"),
    "CLIP": ("comfy.sd:CLIP", "comfy.sd1_clip:SDClipModel", "comfy.text_encoders.llama:Gemma2_2B",
             "comfy.text_encoders.spiece_tokenizer:SPieceTokenizer"),
    "CLIP of Dual Diffusion": ("comfy.sd:CLIP", "comfy.sd1_clip:SD1ClipModel", "comfy.text_encoders.t5:T5",
                               "comfy.text_encoders.sd3_clip:T5XXLModel"),
    "sampler": ("comfy.samplers:KSAMPLER", "comfy.sample:sample_custom", "comfy.sample:fix_empty_latent_channels"),
}


class HostChanged(RuntimeError):
    """This ComfyUI lacks something that the pack builds on."""

    def __init__(self, adapter: str, missing: list[str]):
        super().__init__(f"the {adapter} of Jodi does not fit this ComfyUI ({HOST_VERSION}), which has no "
                         f"{', '.join(missing)}. Tested with {' and '.join(TESTED)}: update this pack, or ComfyUI if "
                         "it is older than these")


def require(adapter: str) -> None:
    """HostChanged, with the version, if a part that an adapter needs is not there."""
    missing = [part for part in NEEDED[adapter] if not exists(part)]
    if missing:
        raise HostChanged(adapter, missing)


def require_attributes(adapter: str, thing, names: tuple[str, ...]) -> None:
    """The same for attributes of an object of the host, which an adapter is about to replace."""
    missing = [f"{type(thing).__mro__[1].__name__}.{name}" for name in names if not hasattr(thing, name)]
    if missing:
        raise HostChanged(adapter, missing)


def exists(part: str) -> bool:
    module, _, path = part.partition(":")
    try:
        thing = importlib.import_module(module)
        for name in path.split("."):
            thing = getattr(thing, name)
    except (ImportError, AttributeError):
        return False
    return True
