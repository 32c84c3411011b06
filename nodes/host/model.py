"""MODEL: the joint transformer as a native model of the host, so that its samplers, LoRA and offloading apply."""

from itertools import chain
from pathlib import Path

import comfy.model_base
import comfy.model_management
import comfy.supported_models_base
import torch
from comfy.patcher_extension import WrappersMP

from ...jodi_core import weights
from ...jodi_core.models.jodi import JodiConfig, JodiTransformer, published_name
from .. import joint
from .int8 import HOST_LAYERS, from_int8, to_int8
from .joint_model import JointCall, JointModel, build, place, require_flow
from .latent import JointLatent
from .sampling import FlowDPM, flow_grid
from .version import require


class JodiNetwork(JointCall, JodiTransformer):
    """JodiTransformer behind the call that the host makes; time runs from 1000 to 0, and velocity is predicted."""

    def __init__(self, config: JodiConfig, *, device=None, dtype=None, operations=None):
        super().__init__(config, device=device, dtype=dtype, operations=operations)
        self.dtype, self.in_channels = dtype, config.in_channels    # the host's nodes look for both

    def predict(self, x, timesteps, context, roles, clean, options):
        return self.velocity(x, timesteps, self.prepare(context, None, roles, clean, dtype=x.dtype))


class JodiModel(JointModel):
    def __init__(self, model_config, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=JodiNetwork)

    def extra_conds(self, **kwargs):
        require_flow(self.model_sampling)
        return super().extra_conds(**kwargs)

    def given(self, roles, clean, **values):
        return self.process_latent_in(clean) if roles.condition_slots else None

    def caption(self, roles, spans, cross_attn, device, **values) -> torch.Tensor | None:
        """Valid rows (1, M, width); the stored empty caption if there is no text; None where it has no effect."""
        if perceives(roles, spans):
            return None
        plain, mask = values.get(joint.PLAIN), values.get("attention_mask")
        if values.get(joint.NULL):
            cross_attn = self.diffusion_model.y_embedder.y_embedding[None]
        elif plain is not None and plain.of is cross_attn and values["prompt_type"] == "negative":
            cross_attn = plain.features_1MC
        elif mask is not None:    # the host's own text loader pads and masks
            cross_attn = cross_attn[:, :int(mask.sum())]
        wanted = self.diffusion_model.config.caption_channels
        if cross_attn.shape[-1] != wanted:
            raise ValueError(f"the text features are {cross_attn.shape[-1]} wide, but this model takes {wanted}: "
                             "choose the text encoder that belongs to the model in Jodi Loader")
        # Guidance compares captions of equal length: the negative one is cut to the rows of the positive one.
        # Both on one device and of one type, or the host would not evaluate the two branches together.
        return cross_attn[:, :values.get(joint.ROWS)].to(device, torch.float32)

    def published_sampler(self) -> FlowDPM:
        return FlowDPM()

    def published_sigmas(self, sampling, steps, denoise):
        return flow_grid(sampling.shift, steps, denoise)


class JodiModelConfig(comfy.supported_models_base.BASE):
    unet_extra_config = {}
    # The published weights were made for bf16; float16 has not the range of their activations.
    supported_inference_dtypes = [torch.bfloat16, torch.float32]
    memory_usage_factor = 4.5    # 2.6 to 4.4 are counted from 1024 pixels on (benchmarks/counted_memory.py)

    def __init__(self, config: JodiConfig):
        self.latent_format = lambda: JointLatent(config)
        self.sampling_settings = {"shift": config.flow_shift, "multiplier": 1000}
        super().__init__({"config": config})

    def get_model(self, state_dict, prefix="", device=None):
        return JodiModel(self, device=device)

    def process_unet_state_dict_for_saving(self, state_dict):
        published = {published_name(key): tensor for key, tensor in from_int8(state_dict).items()}
        return super().process_unet_state_dict_for_saving(
            published | weights.metadata_tensor("transformer", self.unet_config["config"]))


def share_perception(executor, model, conds, x, timestep, model_options):
    """With the image given, text and guidance have no effect: one evaluation serves both branches (exact)."""
    if len(conds) == 2 and all(entries and all(map(one_for_both, entries)) for entries in conds):
        denoised, = executor(model, conds[:1], x, timestep, model_options)
        return [denoised, denoised.clone()]
    return executor(model, conds, x, timestep, model_options)


def one_for_both(entry: dict) -> bool:
    conds = entry["model_conds"]
    return perceives(conds["roles"].cond, conds["spans"].cond) and "hooks" not in entry


def perceives(roles, spans: tuple) -> bool:
    """Whether the image is given in all steps, so that text has no effect."""
    return roles.image_given and all(domain != 0 for domain, *_ in spans)


def keep_in_16bit(network: torch.nn.Module, state_dict: dict) -> None:
    """Take out of 8-bit storage what the file holds in more bits, or if that is all of it, what `in_8_bits` excepts."""
    mixed = any(tensor.dtype.itemsize == 1 for tensor in state_dict.values())
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        stored = state_dict[published_name(name)]
        if stored.dtype.itemsize > 1 if mixed else not weights.in_8_bits(published_name(name), stored.shape):
            tensor.data = tensor.data.to(torch.bfloat16)
    comfy.model_management.archive_model_dtypes(network)


def load_model(path: str, model_options: dict = {}, disable_dynamic: bool = False):
    """MODEL from a transformer file. model_options as for the host's loaders: dtype, fp8_optimizations; and int8.

    Raises WeightsError if the file is not a joint transformer, or its tensors do not fit.
    """
    require("model")
    config, state_dict = weights.read_transformer(Path(path))
    host_config = JodiModelConfig(config)
    if model_options.get("int8", False):
        state_dict, host_config.quant_config = to_int8(state_dict), HOST_LAYERS
    model = build(host_config, state_dict, model_options)
    if model.get_dtype().itemsize == 1:
        keep_in_16bit(model.diffusion_model, state_dict)
    patcher = place(model, state_dict, disable_dynamic)
    patcher.cached_patcher_init = (load_model, (path, model_options))
    patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "jodi", share_perception)
    return patcher
