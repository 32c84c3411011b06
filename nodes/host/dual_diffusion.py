"""MODEL: Dual Diffusion behind the host's call of a picture model, so that its samplers, LoRA and offloading apply.

The host's own loader takes these files for Stable Diffusion 3 and, with nothing but warnings in its log, builds a model
that has neither head and exchanges two halves of a modulation.
"""

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.samplers
import comfy.sd
import comfy.supported_models_base
import torch
from comfy.diffusers_convert import convert_vae_state_dict
from comfy.ldm.common_dit import pad_to_patch_size
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...jodi_core.dual_diffusion.config import DualDiffusionConfig
from ...jodi_core.dual_diffusion.network import DualDiffusionTransformer
from ...jodi_core.dual_diffusion.picture_sampling import noise_levels
from ...jodi_core.dual_diffusion.weights import component, read_shift, read_transformer
from ...jodi_core.files import WeightsError, locate, read_folder, read_tensors
from ...jodi_core.weights import check_keys, part_names
from .joint_model import build, patcher_of
from .version import require


class DualDiffusionNetwork(DualDiffusionTransformer):
    def __init__(self, config: DualDiffusionConfig, *, device=None, dtype=None, operations=None):
        super().__init__(config, device=device, dtype=dtype, operations=operations)
        self.dtype = dtype

    def forward(self, x, timesteps, context, control=None, transformer_options={}, **kwargs):
        """Velocity (B, C, h, w) for x (B, C, h, w) at timesteps (B,) in 0..1000; context: T5 states (B, L, width)."""
        if control is not None:
            raise ValueError("ControlNets of Stable Diffusion 3 have no place in Dual Diffusion: take the node that "
                             "applies one out")
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        # The clone: step caches add to their x in place, and in float32 it would be the sampler's own.
        return executor.execute(x.clone(), timesteps, context, transformer_options)

    def _forward(self, x, timesteps, context, transformer_options):
        height, width = x.shape[-2:]
        x = pad_to_patch_size(x, (self.config.patch_size, self.config.patch_size))
        return self.velocity(x, self.embed_text(context), timesteps)[..., :height, :width]


class DualDiffusionModel(comfy.model_base.BaseModel):
    def __init__(self, model_config, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=DualDiffusionNetwork)

    def extra_conds(self, **kwargs):
        if self.model_sampling.multiplier != 1000:
            raise ValueError("ModelSamplingAuraFlow counts time in 0..1, but this model in 0..1000: use "
                             "ModelSamplingSD3 to change the shift")
        states, wanted = kwargs["cross_attn"], self.diffusion_model.config.joint_attention_dim
        if states is None or states.shape[-1] != wanted:
            raise ValueError(f"the text features are {'none' if states is None else states.shape[-1]} wide, but this "
                             f"model takes {wanted}: use Dual Diffusion Text Encode with the CLIP of Load Dual "
                             "Diffusion")
        out = super().extra_conds(**kwargs)
        # Never repeated to another length, as the host may: all tokens attend to one another.
        out["c_crossattn"] = comfy.conds.CONDRegular(states)
        return out

    def published_sampler(self) -> comfy.samplers.KSAMPLER:
        return comfy.samplers.ksampler("euler")

    def published_sigmas(self, sampling, steps: int, denoise: float) -> torch.Tensor:
        """(steps + 1,) noise levels, the end of a longer grid for denoise below 1; the host's scheduler `normal`."""
        return noise_levels(max(steps, int(steps / denoise)), sampling.shift)[-(steps + 1):].float()


class DualDiffusionModelConfig(comfy.supported_models_base.BASE):
    unet_extra_config = {}
    latent_format = comfy.latent_formats.SD3
    supported_inference_dtypes = [torch.bfloat16, torch.float16, torch.float32]
    memory_usage_factor = 1.6

    def __init__(self, config: DualDiffusionConfig, shift: float):
        self.sampling_settings = {"shift": shift, "multiplier": 1000}
        super().__init__({"config": config})

    def get_model(self, state_dict, prefix="", device=None):
        return DualDiffusionModel(self, device=device)


def load_dual_diffusion(path: str, model_options: dict = {}, disable_dynamic: bool = False):
    """MODEL from a published folder or a transformer file. model_options: as for the host's loaders.

    WeightsError if it is another model's, or anything is missing or of another shape.
    """
    require("model")
    config, tensors = read_transformer(path)
    patcher = patcher_of(build(DualDiffusionModelConfig(config, read_shift(path)), tensors, model_options), tensors,
                         disable_dynamic)
    patcher.cached_patcher_init = (load_dual_diffusion, (path, model_options))
    return patcher


def load_picture_vae(path: str, config: DualDiffusionConfig) -> comfy.sd.VAE:
    """VAE from the folder of a model or a file that the host knows, in either naming.

    WeightsError if it is none that fits a transformer of this configuration, or incomplete.
    """
    require("VAE")
    place = component(locate(path), "vae")
    tensors = read_folder(place) if place.is_dir() else read_tensors(place)
    tensors = {plain: tensors[name] for name, plain in part_names(tensors, "autoencoder").items()}
    if "decoder.mid_block.resnets.0.conv1.weight" in tensors:
        tensors = convert_vae_state_dict(tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    vae = comfy.sd.VAE(sd=tensors)
    if vae.first_stage_model is None:
        raise WeightsError(f"{place} is no VAE that ComfyUI knows: choose that of Stable Diffusion 3")
    expected = {name: tuple(tensor.shape) for name, tensor in vae.first_stage_model.state_dict().items()}
    check_keys({name: shape for name, shape in expected.items() if name.startswith(("encoder.", "decoder."))},
               {name: shape for name, shape in shapes.items() if name.startswith(("encoder.", "decoder."))}, str(place))
    if vae.latent_channels != config.in_channels or vae.spacial_compression_encode() != 8:
        raise WeightsError(f"{place}: this VAE makes {vae.latent_channels} channels of "
                           f"{vae.spacial_compression_encode()}x{vae.spacial_compression_encode()} pixels, but the "
                           f"model takes {config.in_channels} of 8x8: choose that of Stable Diffusion 3")
    vae.patcher.cached_patcher_init = (reload_vae_patcher, (path, config))
    return vae


def reload_vae_patcher(path: str, config: DualDiffusionConfig, disable_dynamic: bool = False):
    """A patcher with weights of its own, for the host's clones on other devices."""
    return load_picture_vae(path, config).patcher
