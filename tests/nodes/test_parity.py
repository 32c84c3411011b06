"""The recorded numbers of the original, reproduced through the host's model and sampling classes."""

import comfy.sample
import pytest
import torch
from nodes_fixtures import golden, relative

from jodi_core.domains import JODI_DOMAINS, JointRoles
from jodi_core.sampling import flow_timesteps
from jodi_pack.nodes import joint
from jodi_pack.nodes.host.sampling import FlowDPM

FORWARD = golden("model_a.json")
SAMPLER = golden("model_a.sampler.json")


def active(full_BLCHW, roles):
    return roles.keep_active(full_BLCHW.float().transpose(1, 2))


@pytest.mark.parametrize("case", FORWARD["cases"], ids=lambda case: case["name"])
def test_velocity(model_a, case):
    """Through the host's call, row by row: the host batches only rows with equal roles."""
    tensors = golden("model_a.forward.safetensors")
    x, clean = (tensors[f"{case['inputs']}.{name}"] for name in ("x", "clean_x"))
    texts, recorded = tensors[f"{case['inputs']}.y"], tensors[case["outputs"]["fp32"]]
    if "cfg_batch" in case:
        texts = torch.cat([tensors["cfg_pair.uncond_y"], texts])
    for row in range(len(texts)):
        source = row % len(x)
        roles = JointRoles(JODI_DOMAINS, case["role"][source])
        x_1CDHW, clean_1CDHW, v_1CDHW = (active(part[index:index + 1], roles)
                                         for part, index in ((x, source), (clean, source), (recorded, row)))
        time = torch.tensor([case["t"][source]])
        text = None if roles.image_given else texts[row, :, :case["mask_lengths"][source]].float()
        v = model_a.model.diffusion_model(x_1CDHW, time, context=text, roles=roles, clean=clean_1CDHW)
        slots = list(roles.generated_slots)
        assert relative(v[:, :, slots], v_1CDHW[:, :, slots]) < 2e-6
        assert not v[:, :, list(roles.condition_slots)].any()


@pytest.mark.parametrize("run", SAMPLER["runs"], ids=lambda run: run["name"])
def test_sampling_run(model_a, run):
    """Only active domains, the host's guider, the recorded noise; clean latents arrive unscaled, as from a VAE."""
    tensors = golden("model_a.sampler.safetensors")
    roles, scale = JointRoles(JODI_DOMAINS, run["role"]), model_a.model.latent_format.scale_factor
    clean = torch.zeros_like(active(tensors["clean_x"], roles))
    given = list(roles.condition_slots)
    clean[:, :, given] = active(tensors["clean_x"], roles)[:, :, given] / scale
    values = {joint.ROLES: roles, joint.CLEAN: clean}
    positive, negative = ([[tensors[name][:, 0, :SAMPLER["mask_length"]].float(), values]]
                          for name in ("cond_y", "uncond_y"))
    steps_seen = []
    final = comfy.sample.sample_custom(
        model_a, active(tensors["z"], roles), run["guidance"], FlowDPM(),
        flow_timesteps(run["steps"], run["flow_shift"]).float(), positive, negative, clean,
        callback=lambda step, x0, x, steps: steps_seen.append(step), disable_pbar=True) * scale
    reference = active(tensors[f"{run['name']}.final"], roles)
    slots = list(roles.generated_slots)
    assert relative(final[:, :, slots], reference[:, :, slots]) < (1e-4 if run["guidance"] != 1 else 2e-5)
    assert torch.allclose(final[:, :, given], clean[:, :, given] * scale, atol=1e-6)
    assert steps_seen == list(range(run["steps"]))
