"""JointNet out of the host's U-Nets: the recorded numbers of the original, through the host's sampling stack."""

import comfy.sample
import comfy.samplers
import pytest
import torch
from jointnet_fixtures import DOMAINS, RECORDED, SCALE, by_domain, of_case, recorded_model, recorded_tensors
from nodes_fixtures import relative

from jodi_core.domains import JointRoles
from jodi_core.jointnet.network import known_input
from jodi_pack.nodes import joint
from jodi_pack.nodes.host.sampling import Published, model_sigmas, reference_noise

BOTH = JointRoles.of(DOMAINS, generate=DOMAINS)
RUNS = {"joint_generation": (5, 1.0), "rgb2j": (5, 1.0), "j2rgb": (5, 1.0),
        "inpaint_base_model_strength1": (10, 1.0), "inpaint_custom_masks": (6, 0.6)}


@pytest.mark.parametrize("name", ["forward_base", "forward_base_odd_size", "forward_inpaint"])
def test_single_calls(name):
    case, inpaint = of_case(name), name == "forward_inpaint"
    known = None
    if inpaint:
        masks, latents = (torch.stack([case[key.format(which)] for which in ("image", "joint")], dim=2)
                          for key in ("mask_{}", "masked_{}_latents"))
        known = known_input(masks, latents)
    x = by_domain(case["latents"])
    noise = recorded_model(inpaint).model.diffusion_model(
        x, case["timestep"].float().reshape(-1).expand(len(x)), context=case["encoder_hidden_states"],
        transformer_options={}, roles=BOTH, clean=known)
    for slot, branch in enumerate(("rgb", "joint")):
        assert relative(noise[:, :, slot], case[f"{branch}/eps"]) < 1e-5


def run(name: str, sampler, sigmas=None, noise_factor=1.0) -> tuple[list[float], float]:
    """Relative errors of a run: of the states after each step but the last, and of the unknown areas at the end.

    The recorded programs end at a noise level of 0.029; so does this.
    """
    case, (steps, denoise) = of_case(name), RUNS[name]
    model, roles, mask = recorded_model("inpaint" in RECORDED["cases"][name]["variant"]), BOTH, None
    noise = by_domain(case.get("noise", case["initial_latents"]))
    clean = by_domain(case["encoded_latents"]) if "encoded_latents" in case else torch.zeros_like(noise)
    unknown = torch.ones_like(noise)
    if "mask_image" in case:
        masks = [case[key][..., ::8, ::8] >= 128 for key in ("mask_image", "mask_joint")]
        mask = unknown = torch.stack(masks, dim=2).float()
    elif name != "joint_generation":
        given = int(name == "j2rgb")
        roles = JointRoles.of(DOMAINS, generate=[DOMAINS[1 - given]], condition=[DOMAINS[given]])
        unknown[:, :, given] = clean[:, :, 1 - given] = 0
    sigmas = model_sigmas(model, steps, denoise) if sigmas is None else sigmas
    sigmas[-1] = model.model.model_sampling.sigmas[0]
    positive, negative = ([[recorded_tensors()[key].float(), {joint.ROLES: roles, joint.CLEAN: clean / SCALE}]]
                          for key in ("prompt_embeds", "negative_prompt_embeds"))
    states = []
    final = comfy.sample.sample_custom(
        model, noise * noise_factor, 7.5, sampler, sigmas, positive, negative, clean / SCALE, noise_mask=mask,
        callback=lambda step, x0, x, steps: states.append(x / (1 + sigmas[step] ** 2).sqrt()), disable_pbar=True)
    recorded = [by_domain(state) for state in case["latents_after_step"]]
    errors = [relative(*pair) for pair in zip(states[1:], recorded)]
    final = final * SCALE / (1 + sigmas[-1] ** 2).sqrt()
    return errors, relative(torch.where(unknown.bool(), final, recorded[-1]), recorded[-1])


@pytest.mark.parametrize("name", RUNS)
def test_recorded_runs(name):
    """By the sampler of Jodi Joint Sampler. Largest difference seen: 2.1e-6 of the largest value."""
    errors, last = run(name, Published())
    print(f"{name}: {max(errors):.1e} on the way, {last:.1e} at the end")
    assert max(errors) < 2e-5 and last < 2e-5


def test_the_host_s_euler_on_its_uniform_grid():
    """KSampler's own rule starts with noise * sigma and not noise * sqrt(1 + sigma^2); otherwise it is the same."""
    model = recorded_model(False)
    sigmas = comfy.samplers.calculate_sigmas(model.model.model_sampling, "ddim_uniform", 5)
    assert torch.equal(sigmas, model_sigmas(model, 5))
    factor = (1 + sigmas[0] ** -2).sqrt()
    euler = comfy.samplers.ksampler("euler")
    errors, last = run("joint_generation", euler, sigmas.clone(), factor)
    assert max(errors) < 2e-5 and last < 2e-5
    plain, _ = run("joint_generation", euler, sigmas.clone())
    assert 1e-3 < max(plain) < 0.03
    errors, last = run("inpaint_custom_masks", euler)    # from the middle of the path there is no difference
    assert max(errors) < 2e-5 and last < 2e-5


def test_given_areas_are_exact_at_the_end():
    for sampler in (Published(), comfy.samplers.ksampler("euler"), comfy.samplers.ksampler("dpmpp_2m")):
        roles = JointRoles.of(DOMAINS, generate=["depth"], condition=["image"])
        clean = torch.zeros(1, 4, 2, 8, 8)
        clean[:, :, 0] = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        entry = [[recorded_tensors()["prompt_embeds"].float(), {joint.ROLES: roles, joint.CLEAN: clean}]]
        model = recorded_model(True)
        final = comfy.sample.sample_custom(model, torch.randn_like(clean), 3.0, sampler, model_sigmas(model, 4), entry,
                                           entry, clean, disable_pbar=True)
        assert torch.allclose(final[:, :, 0], clean[:, :, 0], atol=1e-6) and final[:, :, 1].std() > 0.1


def test_noise_has_the_original_s_order():
    """One draw (B, 8, h, w), channel = 4 * domain + c; one domain alone gets what it gets beside the other."""
    drawn = torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(reference_noise((2, 4, 2, 6, 5), BOTH, 3), by_domain(drawn))
    depth = JointRoles.of(DOMAINS, generate=["depth"])
    assert torch.equal(reference_noise((2, 4, 1, 6, 5), depth, 3), by_domain(drawn)[:, :, 1:])
