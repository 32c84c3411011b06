"""JointNet's workflows on the real server: what is given stays, what is masked changes, and the messages."""

import pytest
from jodi_prompts import TINY, link, node
from stock import difference, latents

from scripts.comfy import ComfyError


def ids(prompt: dict, *kinds: str) -> list[str]:
    return sorted((name for name, part in prompt.items() if part["class_type"] in kinds), key=int)


def test_edits_stay_inside_their_masks(comfy, prompt):
    edit = prompt("jointnet_edit_two_masks")
    before, after = latents(comfy, edit, *ids(edit, "JodiJointSampler"))
    changed = (before - after).abs().amax(dim=1)[0] > 1e-3    # image, depth: 8 x 8 cells of 16 pixels
    assert changed[0, 1:, :4].all() and not changed[0, :1].any() and not changed[0, :, 4:].any()
    assert changed[1, 2:, :3].all() and not changed[1, :2].any() and not changed[1, :, 3:].any()


@pytest.mark.parametrize("name, kind, given", [("jointnet_image_to_depth", "JodiJointSampler", 0),
                                               ("jointnet_depth_to_image", "KSampler", 1)])
def test_what_is_given_stays(comfy, prompt, name, kind, given):
    """To what the role switch encoded, exactly; the other domain is drawn anew."""
    workflow = prompt(name)
    sampler = ids(workflow, kind)[-1]
    workflow["encoded"] = node("LatentMultiply", samples=workflow[sampler]["inputs"]["latent_image"], multiplier=1.0)
    first, encoded, last = latents(comfy, workflow, ids(workflow, "JodiJointSampler")[0], "encoded", sampler)
    assert difference(last[:, :, given], encoded[:, :, given]) < 1e-5
    assert difference(last[:, :, 1 - given], first[:, :, 1 - given]) > 0.1 and not encoded[:, :, 1 - given].any()


def test_another_seed_gives_another_scene(comfy, prompt):
    both = prompt("jointnet_generation")
    sampler, = ids(both, "JodiJointSampler")
    one, = latents(comfy, both, sampler)
    both[sampler]["inputs"]["seed"] += 1
    other, = latents(comfy, both, sampler)
    assert one.shape == (1, 32, 2, 8, 8) and difference(one, other) > 0.1


@pytest.mark.parametrize("change, told", [
    ({"model_name": "diffusers: ../x"}, "not in models/diffusion_models or models/diffusers"),
    ({"vae_name": "kl.safetensors"}, "not in models/vae or models/checkpoints"),
])
def test_choices_that_are_not_there(comfy, prompt, change, told):
    workflow = prompt("jointnet_generation")
    workflow[ids(workflow, "JodiJointNetLoader")[0]]["inputs"] |= change
    with pytest.raises(ComfyError) as error:
        comfy.run(workflow)
    assert told in str(error.value.details)


def test_parts_of_two_families(comfy, prompt):
    """The VAE of Jodi's loader behind JointNet's model: the roles of the one do not fit the other."""
    workflow = prompt("jointnet_generation")
    switch, = ids(workflow, "JodiRoleSwitch")
    workflow["jodi"] = node("JodiLoader", model_name=TINY, text_encoder_name="none", vae_name=TINY,
                            weight_dtype="default")
    workflow[switch]["inputs"]["vae"] = link("jodi", 2)
    with pytest.raises(ComfyError) as error:
        comfy.run(workflow)
    assert "connect role switch, sampler and decoder to the same Jodi Loader" in str(error.value) + str(
        error.value.details)
