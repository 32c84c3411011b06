"""The published solver, time grid and noise, run by the host's sampling stack: progress, interrupt, previews."""

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from ...jodi_core.domains import JODI_DOMAINS, JointRoles
from ...jodi_core.jointnet.schedule import MOST_STEPS, timesteps
from ...jodi_core.sampling import flow_timesteps, sample_flow_dpm, sample_flow_euler
from .. import joint
from .version import require


class Published(comfy.samplers.Sampler):
    """SAMPLER: the published one of the model that it is used with; FlowDPM for models that are not joint ones."""

    @staticmethod
    def of(model_wrap) -> comfy.samplers.KSAMPLER:
        return getattr(model_wrap.inner_model, "published_sampler", FlowDPM)()

    def sample(self, model_wrap, *args, **kwargs):
        return self.of(model_wrap).sample(model_wrap, *args, **kwargs)


class FlowDPM(comfy.samplers.KSAMPLER):
    """DPM-Solver++(2M) as published. Unlike the host's dpmpp_2m its last step is of first order, as is its first."""

    def __init__(self):
        super().__init__(sample_flow)

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
        if sigmas[0] > 0.999:
            # The host starts at sigma_0 * noise; the original at the plain noise.
            noise = noise / sigmas[0]
        return super().sample(model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs)


def sample_flow(model, x, sigmas, extra_args, callback, disable=None):
    """`sample_flow_dpm` as a sampler function of the host: `model` denoises, sigma is the time."""
    def velocity(x, t):
        return (x - model(x, t.expand(x.shape[0]), **extra_args)) / t

    def report(step, steps, x, x0):
        callback({"i": step - 1, "x": x, "denoised": x0})

    return sample_flow_dpm(velocity, x, sigmas, report)


class KnownDDIM(comfy.samplers.KSAMPLER):
    """DDIM in its Euler form with known areas put back, as JointNet was published (its spec, 2 and 8).

    Known areas are what the network gets as its `clean`: conditions, and what noise masks leave. A whole run starts
    with pure noise there too; the end of a longer grid starts from the latent.
    """

    def __init__(self):
        super().__init__(None)    # known areas are put back by the whole run, not by a function of steps

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):
        known = next(entry["model_conds"]["clean"].cond for entries in model_wrap.conds.values() for entry in entries)
        unknown, clean = known[:, :1].to(noise), known[:, 1:].to(noise)
        steps, levels = len(sigmas) - 1, model_wrap.inner_model.model_sampling.sigmas
        whole = sigmas[0] >= levels[timesteps(steps)[0]] * 0.999

        def predicted_noise(x, sigma):
            denoised = unknown * model_wrap(x, sigma.expand(len(x)), **extra_args) + clean
            return (x - denoised) / sigma

        def put_back(x, sigma):
            return unknown * x + clean + (1 - unknown) * sigma * noise

        def report(step, steps, x, x0):
            callback(step - 1, x0, x, steps)

        x = noise * (1 + sigmas[0] ** 2).sqrt() if whole else latent_image + sigmas[0] * noise
        return sample_flow_euler(predicted_noise, x, sigmas, callback and report, put_back if whole else None)


def ddim_levels(sampling, steps: int, denoise: float = 1.0) -> torch.Tensor:
    """(steps + 1,) noise levels at the published timesteps, then 0; denoise: as for `flow_grid`.

    sampling: of the model, with a table `sigmas` by timestep.
    """
    grid = timesteps(min(MOST_STEPS, max(steps, int(steps / denoise))))[-steps:]
    return torch.cat([sampling.sigmas[grid].cpu(), torch.zeros(1)])    # a loaded model has its table on the GPU


def reference_noise(shape: tuple[int, ...], roles: JointRoles, seed: int, rows_alike: bool = False) -> torch.Tensor:
    """(B, C, D, h, w) noise, drawn as the original does: for all domains of the model, of which the active are kept.

    rows_alike: every row has the noise of the first.
    """
    rows, channels, _, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    drawn = 1 if rows_alike else rows
    noise_BLCHW = torch.randn(drawn, len(roles.domains), channels, height, width, generator=generator)
    return roles.keep_active(noise_BLCHW.transpose(1, 2)).repeat(rows // drawn, 1, 1, 1, 1)


class JointNoise:
    """NOISE of the host: `reference_noise` if per_domain, else what its own samplers draw for the active domains."""

    def __init__(self, seed: int, per_domain: bool, rows_alike: bool = False):
        self.seed, self.per_domain, self.rows_alike = seed, per_domain, rows_alike

    def generate_noise(self, latent: dict) -> torch.Tensor:
        samples = latent["samples"]
        if not self.per_domain:
            return comfy.sample.prepare_noise(samples, self.seed, latent.get("batch_index"))
        given = latent.get(joint.ROLES)
        roles = joint.roles_of(latent, samples, given.domains if given else JODI_DOMAINS)
        return reference_noise(samples.shape, roles, self.seed, self.rows_alike)


def flow_grid(shift: float, steps: int, denoise: float = 1.0) -> torch.Tensor:
    """The published grid of a flow (steps + 1,), down to 0; denoise below 1: the end of a longer one."""
    return flow_timesteps(max(steps, int(steps / denoise)), shift)[-(steps + 1):].float()


def model_sigmas(model, steps: int, denoise: float = 1.0) -> torch.Tensor:
    """The published grid (steps + 1,) of a MODEL, with what patches made of its time; denoise: as for `flow_grid`."""
    return model.model.published_sigmas(model.get_model_object("model_sampling"), steps, denoise)


def denoise_from(model, time: float) -> float:
    """The `denoise` with which samplers start nearest to a flow time in 0..1, in steps of a hundredth.

    Other models have noise / signal = time / (1 - time) there (JointNet spec 9).
    """
    sampling = model.get_model_object("model_sampling")
    level = time if isinstance(sampling, comfy.model_sampling.CONST) else time / (1 - time)
    return min((part / 100 for part in range(1, 101)),
               key=lambda part: abs(float(sampling.percent_to_sigma(1 - part)) - level))


def sample_joint(model, latent: dict, positive, negative, seed: int, steps: int, guidance: float,
                 denoise: float = 1.0, rows_alike: bool = False) -> torch.Tensor:
    """The samples of a LATENT after a run of the published sampler.

    model: MODEL; positive, negative: CONDITIONING. denoise below 1 varies the latent's own content; rows_alike: one
    noise for all rows. Stops with the host's interrupt exception.
    """
    require("sampler")
    config = model.model.diffusion_model.config
    samples = comfy.sample.fix_empty_latent_channels(
        model, latent["samples"], latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal"))
    roles = joint.roles_of(latent, samples, config.domains)
    if any(values.get(joint.ROLES, roles) != roles for _, values in (*positive, *negative)):
        raise ValueError("the conditioning has other roles than the latent: take positive, negative and latent from "
                         "the same Jodi Role Switch")
    return comfy.sample.sample_custom(
        model, reference_noise(samples.shape, roles, seed, rows_alike), guidance, model.model.published_sampler(),
        model_sigmas(model, steps, denoise), positive, negative, samples,
        noise_mask=latent.get("noise_mask"), callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed)
