"""What every joint model is to the host, whichever family it is of: roles, given latents, conditions for some steps."""

from itertools import chain

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from .. import joint
from .cpu_layers import CPULayers


class JointCall:
    """The host's call of a network, for a module with `predict(x, timesteps, context, roles, clean, options)`."""

    def forward(self, x, timesteps, context=None, transformer_options={}, roles=None, clean=None, spans=(), **kwargs):
        """What the network predicts (B, C, D, h, w) for x (B, C, D, h, w) at timesteps (B,); zeros in condition slots.

        context: text features (B, M, width), or None. clean: given latents in condition slots, see `JointModel.given`.
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
            return self.predict(x, timesteps, context, roles, clean, transformer_options)
        slots = [slot for slot, domain in enumerate(roles.active) if domain in seen.active]
        predicted = torch.zeros_like(x)
        predicted[:, :, slots] = self.predict(x[:, :, slots], timesteps, context, seen, clean[:, :, slots],
                                              transformer_options)
        return predicted


class JointModel(comfy.model_base.BaseModel):
    """A family adds four methods:

    caption(roles, spans, cross_attn, **values)   text features of one entry of a CONDITIONING for the network, or None
    given(roles, clean, **values)                 the network's `clean` (B, C' >= C, D, h, w), or None: its last C
                                                  channels are the scaled latents in condition slots. clean: unscaled
                                                  joint latent of the role switch
    published_sampler()                           SAMPLER
    published_sigmas(sampling, steps, denoise)    (steps + 1,) SIGMAS of the end of a longer grid, as `denoise` says;
                                                  sampling: the model's, maybe patched
    """

    def extra_conds(self, **kwargs):
        """What the network needs beside x and t, from one entry of a CONDITIONING."""
        noise, clean = kwargs["noise"], kwargs.pop(joint.CLEAN, None)
        roles = joint.roles_of(kwargs, noise, self.diffusion_model.config.domains).require_work()
        spans = self.spans(roles, kwargs.get(joint.SPANS) or {})
        kwargs["cross_attn"] = self.caption(roles, spans, **kwargs)
        out = super().extra_conds(**kwargs)
        out["roles"], out["spans"] = comfy.conds.CONDConstant(roles), comfy.conds.CONDConstant(spans)
        if roles.condition_slots and clean.shape[2:] != noise.shape[2:]:
            raise ValueError(f"the given pictures were encoded to {tuple(clean.shape[2:])} (domains, height, "
                             f"width), but the latent has {tuple(noise.shape[2:])}: after resizing a latent, "
                             "make its conditioning anew with Jodi Role Switch at that size")
        given = self.given(roles, clean, **kwargs)
        if given is not None:
            out["clean"] = comfy.conds.CONDNoiseShape(given)
        return out

    def spans(self, roles, parts: dict) -> tuple:
        """(domain index, first time, last time) of each condition that is seen for a part of the steps only."""
        sampling = self.model_sampling
        times = {name: [float(sampling.timestep(torch.tensor(sampling.percent_to_sigma(part)))) for part in span]
                 for name, span in parts.items()}
        return tuple((roles.domains.index(name), *span) for name, span in times.items())

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        """Denoised latent; given slots are exactly the given ones, whatever the sampler makes of the rest."""
        denoised = super()._apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        put_given(denoised, kwargs["roles"], kwargs.get("clean"))
        return denoised


def put_given(denoised_BCDhw: torch.Tensor, roles, clean: torch.Tensor | None) -> None:
    """Overwrite condition slots by what is given."""
    given = list(roles.condition_slots)
    if given:
        denoised_BCDhw[:, :, given] = clean[:, -denoised_BCDhw.shape[1]:, given].to(denoised_BCDhw)


def require_flow(sampling) -> None:
    """ValueError for the time of another kind of model, from one of the host's nodes ModelSampling..."""
    if getattr(sampling, "multiplier", None) != 1000:
        raise ValueError("a ModelSampling node for another kind of model is in between: this one is a flow whose time "
                         "is in 0..1000, not in 0..1 as that of ModelSamplingAuraFlow. Use ModelSamplingSD3 to change "
                         "its shift")


def refuse_flat(executor, *arguments, **options):
    """What knows pictures without a domain axis: an area would cut domains and rows in place of rows and columns."""
    for entry in chain.from_iterable(executor.class_obj.conds.values()):
        if entry.get("control") is not None:
            raise ValueError("a ControlNet cannot see a joint latent: give its picture to Jodi Role Switch as a "
                             "condition, and take the node that applies the ControlNet out")
        numbers = [value for value in entry.get("area") or () if value != "percentage"]
        if len(numbers) not in (0, 6):
            raise ValueError("this conditioning has an area of two axes, but a joint latent has three (domain, height, "
                             "width): use ConditioningSetAreaPercentageVideo with temporal 1, or ConditioningSetMask")
    return executor(*arguments, **options)


def keep_given(executor, x, *arguments, **options):
    """Given slots are exact after whatever mixes slots or skips steps behind the network: guidance nodes, LazyCache.

    Only if all entries have the same; what that depends on stays on the device, so that no step waits for it.
    """
    denoised = executor(x, *arguments, **options)
    conds = [entry["model_conds"] for entry in chain.from_iterable(executor.class_obj.conds.values())]
    given = [(cond["roles"].cond, cond["clean"].cond) for cond in conds if "clean" in cond]
    if given and all((roles, clean.shape) == (given[0][0], given[0][1].shape) for roles, clean in given):
        roles, clean = given[0]
        same = torch.stack([(other == clean).all() for _, other in given]).all()
        clean = comfy.utils.repeat_to_batch_size(clean, len(x))[:, -denoised.shape[1]:].to(denoised)
        put_given(denoised, roles, torch.where(same.to(denoised.device), clean, denoised))
    return denoised


def build(host_config, state_dict: dict, model_options: dict) -> comfy.model_base.BaseModel:
    """The host's model of a configuration, in the number types that suit file, device and options; without weights."""
    management = comfy.model_management
    device, supported = management.get_torch_device(), host_config.supported_inference_dtypes
    quantised = host_config.quant_config is not None    # the numbers in the file say nothing about the computation then
    dtype = model_options.get("dtype") or management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(state_dict), supported_dtypes=supported,
        weight_dtype=None if quantised else comfy.utils.weight_dtype(state_dict))
    cast = management.unet_manual_cast(None if quantised else dtype, device, supported)
    host_config.set_inference_dtype(dtype, cast, device=device)
    host_config.optimizations["fp8"] = model_options.get("fp8_optimizations", False)
    if management.is_device_cpu(device) and torch.float32 in (dtype, cast) and not quantised:
        host_config.custom_operations = CPULayers
    return host_config.get_model(state_dict)


def patcher_of(model: comfy.model_base.BaseModel, state_dict: dict, disable_dynamic: bool):
    """MODEL of a model and its weights."""
    management = comfy.model_management
    offload_device = management.unet_offload_device()
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = patcher_class(model, load_device=management.get_torch_device(), offload_device=offload_device)
    if not management.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(state_dict, "", assign=patcher.is_dynamic())
    return patcher


def place(model: JointModel, state_dict: dict, disable_dynamic: bool):
    """MODEL of a joint model and its weights."""
    patcher = patcher_of(model, state_dict, disable_dynamic)
    patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "jodi", keep_given)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "jodi", refuse_flat)
    return patcher
