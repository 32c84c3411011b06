"""Jodi's SAMPLER, SIGMAS and NOISE behind the host's CFGGuider and SamplerCustomAdvanced."""

import pytest
import torch
from comfy_extras.nodes_custom_sampler import CFGGuider, CFGOverride, SamplerCustomAdvanced
from nodes_fixtures import golden, relative, switch, text

from jodi_core.domains import JODI_DOMAINS, JointRoles
from jodi_pack.nodes import joint
from jodi_pack.nodes.custom_sampling import LIKE_STOCK, SAME_FRAME, SAME_SCENE, JodiNoise, JodiSampler, JodiSigmas
from jodi_pack.nodes.sampling import JodiJointSampler

SAMPLER = golden("model_a.sampler.json")


class RecordedNoise:
    seed = 0

    def __init__(self, noise):
        self.noise = noise

    def generate_noise(self, latent):
        return self.noise


def advanced(model, positive, negative, cfg, noise, steps, latent):
    guider = CFGGuider.execute(model, positive, negative, cfg).result[0]
    sampler, sigmas = JodiSampler.execute().result[0], JodiSigmas.execute(model, steps, 1.0).result[0]
    return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).result[0]["samples"]


@pytest.mark.parametrize("run", SAMPLER["runs"], ids=lambda run: run["name"])
def test_recorded_trajectories(model_a, run):
    tensors = golden("model_a.sampler.safetensors")
    roles, scale = JointRoles(JODI_DOMAINS, run["role"]), model_a.model.latent_format.scale_factor
    z, clean, reference = (roles.keep_active(tensors[name].float().transpose(1, 2))
                           for name in ("z", "clean_x", f"{run['name']}.final"))
    slots = list(roles.generated_slots)
    clean[:, :, slots] = 0
    values = {joint.ROLES: roles, joint.CLEAN: clean / scale}
    positive, negative = ([[tensors[name][:, 0, :SAMPLER["mask_length"]].float(), values]]
                          for name in ("cond_y", "uncond_y"))
    latent = {"samples": clean / scale, joint.ROLES: roles}
    final = advanced(model_a, positive, negative, run["guidance"], RecordedNoise(z), run["steps"], latent) * scale
    error = relative(final[:, :, slots], reference[:, :, slots])
    print(f"{run['name']}: {error:.1e}")
    assert error < (1e-4 if run["guidance"] != 1 else 2e-5)


def test_the_same_as_the_joint_sampler(loaded):
    model, clip, vae = loaded
    parts = switch(vae, text(clip, "a red house"), None, generate=("image", "depth"))
    noise = JodiNoise.execute(5, SAME_SCENE).result[0]
    one = JodiJointSampler.execute(model, *parts, 5, 2, 3.0).result[0]["samples"]
    assert torch.equal(advanced(model, *parts[:2], 3.0, noise, 2, parts[2]), one)


def test_a_seed_means_the_same_noise_for_a_domain(loaded):
    vae = loaded[2]
    few, many = (switch(vae, generate=names)[2] for names in (("image", "normal"), ("image", "depth", "normal")))
    for kind, same in ((SAME_SCENE, True), (LIKE_STOCK, False)):
        noise = JodiNoise.execute(3, kind).result[0]
        normal = [noise.generate_noise(latent)[:, :, -1] for latent in (few, many)]
        assert torch.equal(*normal) == same


def test_sigmas_follow_the_model_and_denoise(loaded):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3
    model = loaded[0]
    full, half = (JodiSigmas.execute(model, steps, part).result[0] for steps, part in ((8, 1.0), (4, 0.5)))
    assert torch.equal(half, full[-5:]) and full[-1] == 0
    shifted = ModelSamplingSD3().patch(model, 6.0)[0]
    assert (JodiSigmas.execute(shifted, 8, 1.0).result[0][1:-1] > full[1:-1]).all()


def test_one_noise_for_all_pictures(loaded):
    """Equal frames get equal labels, and single ones those of the first row."""
    model, _, vae = loaded
    from nodes_fixtures import PICTURE
    frames = switch(vae, generate=("depth",), condition=("image",), picture=PICTURE.repeat(3, 1, 1, 1))
    own, same = (JodiJointSampler.execute(model, *frames, 1, 2, 1.0, 1.0, alike).result[0]["samples"]
                 for alike in (False, True))
    assert torch.allclose(same, same[:1].expand_as(same), atol=1e-5)
    assert torch.allclose(own[0], same[0], atol=1e-5) and not torch.allclose(own[1], own[0], atol=1e-2)
    noise, = JodiNoise.execute(1, SAME_FRAME).result
    assert torch.equal(advanced(model, *frames[:2], 1.0, noise, 2, frames[2]), same)


def test_denoise_varies_what_is_there(loaded):
    model, _, vae = loaded
    parts = switch(vae, generate=("image", "depth"))
    first = JodiJointSampler.execute(model, *parts, 5, 4, 1.0).result[0]
    near, far = (JodiJointSampler.execute(model, *parts[:2], first, 6, 4, 1.0, denoise).result[0]["samples"]
                 for denoise in (0.25, 1.0))
    assert 0 < relative(near, first["samples"]) < relative(far, first["samples"])


def test_without_guidance_in_a_part_only_one_branch_is_evaluated(loaded, monkeypatch):
    model, clip, vae = loaded
    parts = switch(vae, text(clip, "a red house"), None, generate=("image", "depth"))
    network, rows = model.model.diffusion_model, []
    velocity = network.velocity
    monkeypatch.setattr(network, "velocity", lambda x, *rest: rows.append(len(x)) or velocity(x, *rest))
    part = CFGOverride.execute(model, 1.0, 0.5, 1.0).result[0]
    times = [1 - float(sigma) / (3 - 2 * float(sigma)) for sigma in JodiSigmas.execute(part, 6, 1.0).result[0][:-1]]
    JodiJointSampler.execute(part, *parts, 5, 6, 3.0)
    assert rows == [1 if time >= 0.5 else 2 for time in times] and {1, 2} == set(rows)
