"""MODEL: the joint transformer as a native model of the host, so that its samplers, LoRA and offloading apply."""

from itertools import chain
from pathlib import Path

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...jodi_core import weights
from ...jodi_core.models.jodi import JodiConfig, JodiTransformer, published_name
from .. import joint
from .latent import JodiLatent
from .version import require


class JodiNetwork(JodiTransformer):
    """JodiTransformer behind the call that the host makes."""

    def __init__(self, config: JodiConfig, *, device=None, dtype=None, operations=None):
        super().__init__(config, device=device, dtype=dtype, operations=operations)
        self.dtype = dtype

    def forward(self, x, timesteps, context=None, transformer_options={}, roles=None, clean=None, spans=(), **kwargs):
        """Velocity (B, C, D, h, w) of x (B, C, D, h, w) at timesteps (B,) in 0..1000; zeros in condition slots.

        context: text features (B, M, width), None where the image is given. clean: as x, read in condition slots.
        spans: (domain index, first, last time) of conditions that are seen only between these times.
        """
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        # The clone: step caches add to their x in place, and in float32 it would be the sampler's own.
        return executor.execute(x.clone(), timesteps, context, roles, clean, spans, transformer_options)

    def _forward(self, x, timesteps, context, roles, clean, spans, transformer_options):
        time = float(timesteps[0]) if spans else None
        seen = roles.without({domain for domain, first, last in spans if not last <= time <= first})
        if seen == roles:
            return self.velocity(x, timesteps, self.prepare(context, None, roles, clean, dtype=x.dtype))
        slots = [slot for slot, domain in enumerate(roles.active) if domain in seen.active]
        velocity = torch.zeros_like(x)
        velocity[:, :, slots] = self.velocity(
            x[:, :, slots], timesteps, self.prepare(context, None, seen, clean[:, :, slots], dtype=x.dtype))
        return velocity


class JodiModel(comfy.model_base.BaseModel):
    def __init__(self, model_config, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=JodiNetwork)

    def extra_conds(self, **kwargs):
        """What the network needs beside x and t, from one entry of a CONDITIONING."""
        noise, clean = kwargs["noise"], kwargs.get(joint.CLEAN)
        roles = joint.roles_of(kwargs, noise, self.diffusion_model.config.domains).require_work()
        if self.model_sampling.multiplier != 1000:
            raise ValueError("ModelSamplingAuraFlow counts time in 0..1, but this model in 0..1000: use "
                             "ModelSamplingSD3 to change the shift")
        spans = self.spans(roles, kwargs.get(joint.SPANS) or {})
        kwargs["cross_attn"] = None if perceives(roles, spans) else self.caption(**kwargs)
        out = super().extra_conds(**kwargs)
        out["roles"], out["spans"] = comfy.conds.CONDConstant(roles), comfy.conds.CONDConstant(spans)
        if roles.condition_slots:
            if clean.shape[2:] != noise.shape[2:]:
                raise ValueError(f"the given pictures were encoded to {tuple(clean.shape[2:])} (domains, height, "
                                 f"width), but the latent has {tuple(noise.shape[2:])}: after resizing a latent, "
                                 "make its conditioning anew with Jodi Role Switch at that size")
            out["clean"] = comfy.conds.CONDNoiseShape(self.process_latent_in(clean))
        return out

    def spans(self, roles, parts: dict) -> tuple:
        """(domain index, first time, last time) of each condition that is seen for a part of the steps only."""
        sampling = self.model_sampling
        times = {name: [float(sampling.timestep(torch.tensor(sampling.percent_to_sigma(part)))) for part in span]
                 for name, span in parts.items()}
        return tuple((roles.domains.index(name), *span) for name, span in times.items())

    def caption(self, cross_attn, device, **values) -> torch.Tensor:
        """Valid text features (1, M, width) of a conditioning entry; the stored empty caption if there is no text."""
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

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        """Denoised latent; given slots are exactly the given ones, whatever the sampler makes of the rest."""
        denoised = super()._apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        given = list(kwargs["roles"].condition_slots)
        if given:
            denoised[:, :, given] = kwargs["clean"][:, :, given].to(denoised)
        return denoised


class JodiModelConfig(comfy.supported_models_base.BASE):
    unet_extra_config = {}
    # The published weights were made for bf16; float16 has not the range of their activations.
    supported_inference_dtypes = [torch.bfloat16, torch.float32]
    memory_usage_factor = 4.5

    def __init__(self, config: JodiConfig):
        self.latent_format = lambda: JodiLatent(config)
        self.sampling_settings = {"shift": config.flow_shift, "multiplier": 1000}
        super().__init__({"config": config})

    def get_model(self, state_dict, prefix="", device=None):
        return JodiModel(self, device=device)

    def process_unet_state_dict_for_saving(self, state_dict):
        published = {published_name(key): tensor for key, tensor in state_dict.items()}
        return super().process_unet_state_dict_for_saving(
            published | weights.metadata_tensor("transformer", self.unet_config["config"]))


def share_perception(executor, model, conds, x, timestep, model_options):
    """With the image given, text and guidance have no effect: one evaluation serves both branches (exact)."""
    if len(conds) == 2 and all(entries and all(map(one_for_both, entries)) for entries in conds):
        denoised, = executor(model, conds[:1], x, timestep, model_options)
        return [denoised, denoised.clone()]
    return executor(model, conds, x, timestep, model_options)


def refuse_flat_areas(executor, *arguments, **options):
    """An area without the domain axis would cut domains and rows in place of rows and columns."""
    for entry in chain.from_iterable(executor.class_obj.conds.values()):
        numbers = [value for value in entry.get("area") or () if value != "percentage"]
        if len(numbers) not in (0, 6):
            raise ValueError("this conditioning has an area of two axes, but a joint latent has three (domain, height, "
                             "width): use ConditioningSetAreaPercentageVideo with temporal 1, or ConditioningSetMask")
    return executor(*arguments, **options)


def keep_given(executor, x, *arguments, **options):
    """Given slots are exact after whatever mixes slots or skips steps behind the network: guidance nodes, LazyCache."""
    denoised = executor(x, *arguments, **options)
    conds = [entry["model_conds"] for entry in chain.from_iterable(executor.class_obj.conds.values())]
    given = [(cond["roles"].cond.condition_slots, cond["clean"].cond) for cond in conds if "clean" in cond]
    if given and all(slots == given[0][0] and torch.equal(clean, given[0][1]) for slots, clean in given):
        slots, clean = list(given[0][0]), comfy.utils.repeat_to_batch_size(given[0][1], len(x))
        denoised[:, :, slots] = clean[:, :, slots].to(denoised)
    return denoised


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
    """MODEL from a transformer file. model_options as for the host's loaders: dtype, fp8_optimizations.

    Raises WeightsError if the file is not a joint transformer, or its tensors do not fit.
    """
    require("model")
    management = comfy.model_management
    config, state_dict = weights.read_transformer(Path(path))
    host_config = JodiModelConfig(config)
    device, offload_device = management.get_torch_device(), management.unet_offload_device()
    supported = host_config.supported_inference_dtypes
    dtype = model_options.get("dtype") or management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(state_dict), supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(state_dict))
    host_config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported), device=device)
    host_config.optimizations["fp8"] = model_options.get("fp8_optimizations", False)

    model = host_config.get_model(state_dict)
    if dtype.itemsize == 1:
        keep_in_16bit(model.diffusion_model, state_dict)
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=device, offload_device=offload_device)
    if not management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(state_dict, "", assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (load_model, (path, model_options))
    patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "jodi", share_perception)
    patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "jodi", keep_given)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "jodi", refuse_flat_areas)
    return patcher
