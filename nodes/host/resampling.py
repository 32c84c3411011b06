"""Resampling jumps around any sampler object of the host that works by a function of noise levels."""

from copy import copy

import comfy.model_sampling
import comfy.samplers
import torch

from ...jodi_core.resampling import resampled
from .sampling import Published


class WithJumps(comfy.samplers.Sampler):
    """SAMPLER: another one, whose every `jump` steps are made `times` times."""

    def __init__(self, sampler, jump: int, times: int):
        self.sampler, self.jump, self.times = sampler, jump, times

    def sample(self, model_wrap, *args, **kwargs):
        """As of the sampler itself. ValueError if that cannot be run in parts."""
        sampler = copy(self.sampler.of(model_wrap) if isinstance(self.sampler, Published) else self.sampler)
        function = getattr(sampler, "sampler_function", None)
        if function is None:
            raise ValueError(f"{type(sampler).__name__} cannot be run in parts: take a sampler of KSamplerSelect, such "
                             "as euler, in place of it")

        def jumping(model, x, sigmas, extra_args, callback, disable, **options):
            def solve(x, part, first):
                return function(model, x, part, extra_args=extra_args, disable=True, callback=lambda values: callback(
                    values | {"i": first + values["i"]}), **options)
            flow = isinstance(model_wrap.inner_model.model_sampling, comfy.model_sampling.CONST)
            return resampled(solve, x, sigmas, jump=self.jump, times=self.times, flow=flow,
                             generator=torch.Generator().manual_seed(extra_args["seed"] or 0))
        sampler.sampler_function = jumping
        return sampler.sample(model_wrap, *args, **kwargs)
