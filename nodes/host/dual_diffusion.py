"""MODEL: Dual Diffusion behind the host's call of a picture model, so that its samplers, LoRA and offloading apply.

The host's own loader takes these files for Stable Diffusion 3 and, with nothing but warnings in its log, builds a model
that has neither head and exchanges two halves of a modulation.
"""

import comfy.conds
import comfy.model_base
import comfy.samplers
import comfy.supported_models_base
import torch
from comfy.ldm.common_dit import pad_to_patch_size
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...jodi_core.dual_diffusion.config import DualDiffusionConfig
from ...jodi_core.dual_diffusion.network import DualDiffusionTransformer
from ...jodi_core.dual_diffusion.picture_sampling import noise_levels
from ...jodi_core.dual_diffusion.weights import read_shift, read_transformer
from ...jodi_core.files import WeightsError
from .joint_model import build, patcher_of, require_flow
from .picture_vae import Latents, PictureLatent
from .version import require


class DualDiffusionNetwork(DualDiffusionTransformer):
    def __init__(self, config: DualDiffusionConfig, *, device=None, dtype=None, operations=None):
        super().__init__(config, device=device, dtype=dtype, operations=operations)
        self.dtype, self.in_channels = dtype, config.in_channels    # the host's nodes look for both

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
        require_flow(self.model_sampling)
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
    supported_inference_dtypes = [torch.bfloat16, torch.float16, torch.float32]
    memory_usage_factor = 1.6

    def __init__(self, config: DualDiffusionConfig, shift: float, latents: Latents):
        self.latent_format = lambda: PictureLatent(latents)
        self.sampling_settings = {"shift": shift, "multiplier": 1000}
        super().__init__({"config": config})

    def get_model(self, state_dict, prefix="", device=None):
        return DualDiffusionModel(self, device=device)


def load_dual_diffusion(path: str, latents: Latents, model_options: dict = {}, disable_dynamic: bool = False):
    """MODEL from a published folder or a transformer file.

    latents: of the autoencoder that belongs to it. model_options: as for the host's loaders. WeightsError if it is
    another model's, anything is missing or of another shape, or it does not fit the autoencoder.
    """
    require("model")
    config, tensors = read_transformer(path)
    if config.in_channels != latents.channels:
        raise WeightsError(f"the autoencoder makes {latents.channels} channels, but the model takes "
                           f"{config.in_channels}: choose that of Stable Diffusion 3 for the published models")
    model = build(DualDiffusionModelConfig(config, read_shift(path), latents), tensors, model_options)
    patcher = patcher_of(model, tensors, disable_dynamic)
    patcher.cached_patcher_init = (load_dual_diffusion, (path, latents, model_options))
    return patcher
