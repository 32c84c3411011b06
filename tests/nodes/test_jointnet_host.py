"""What the host's own parts do with JointNet: LoRA, little memory, masks, two stages, tiles, other guidance."""

import dataclasses

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.controlnet import ControlBase
from jointnet_fixtures import DOMAINS, recorded_model
from nodes_fixtures import relative

from jodi_core.domains import JointRoles
from jodi_pack.jodi_core.jointnet.config import JointNetConfig
from jodi_pack.nodes import joint
from jodi_pack.nodes.host.jointnet import JointNetModelConfig
from jodi_pack.nodes.host.sampling import Published, model_sigmas
from jodi_pack.nodes.jointnet_lora import JodiJointNetLoraOnDepth
from jodi_pack.nodes.tiles import JodiTiles

BOTH = JointRoles.of(DOMAINS, generate=DOMAINS)
TO_DEPTH = JointRoles.of(DOMAINS, generate=["depth"], condition=["image"])
ATTENTION = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
# As trainers of Stable Diffusion name it, and the host's name for the same layer.
LORA = {f"lora_unet_{ATTENTION}.lora_up.weight": torch.full((32, 2), 0.4),
        f"lora_unet_{ATTENTION}.lora_down.weight": torch.linspace(-1, 1, 64).reshape(2, 32),
        f"lora_unet_{ATTENTION}.alpha": torch.tensor(2.0)}
PATCHED = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"


def scene(seed: int, slots: int = 2, size=(8, 8)) -> torch.Tensor:
    return torch.randn(1, 4, slots, *size, generator=torch.Generator().manual_seed(seed))


def conditioning(roles=BOTH, clean=None, value=1.0, **more) -> list:
    features = torch.linspace(-value, value, 80).reshape(1, 5, 16)
    return [[features, {joint.ROLES: roles} | ({} if clean is None else {joint.CLEAN: clean}) | more]]


def sample(model, roles=BOTH, clean=None, latent=None, sampler=None, steps=2, cfg=2.0, mask=None, sigmas=None, **more):
    latent = torch.zeros(1, 4, len(roles.active), 8, 8) if latent is None else latent
    positive, negative = (conditioning(roles, clean, value, **more) for value in (1.0, -0.5))
    return comfy.sample.sample_custom(
        model, scene(7, *latent.shape[2:3], latent.shape[-2:]), cfg, sampler or comfy.samplers.ksampler("euler"),
        model_sigmas(model, steps) if sigmas is None else sigmas, positive, negative, latent, noise_mask=mask,
        disable_pbar=True)


def test_lora_of_stable_diffusion_acts_on_the_picture_s_branch():
    model = recorded_model(False)
    patched, _ = comfy.sd.load_lora_for_models(model, None, LORA, 0.5, 0)
    assert list(patched.patches) == [f"diffusion_model.{PATCHED}"]
    network = model.model.diffusion_model
    weight = network.get_parameter(PATCHED)
    plain, changed = sample(model), sample(patched)
    assert relative(changed[:, :, 0], plain[:, :, 0]) > 1e-3
    patched.unpatch_model()
    before = weight.clone()
    weight += 0.5 * LORA[f"lora_unet_{ATTENTION}.lora_up.weight"] @ LORA[f"lora_unet_{ATTENTION}.lora_down.weight"]
    merged = sample(model)
    weight.copy_(before)
    assert torch.equal(merged, changed)
    twin, _ = comfy.sd.load_lora_for_models(
        model, None, {key.replace("lora_unet_", "lora_unet_jointnet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
                                  ).replace(ATTENTION, ""): value for key, value in LORA.items()}, 0.5, 0)
    assert list(twin.patches) == [f"diffusion_model.jointnet.{PATCHED}"], "the depth's, by its own name"


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_partial_loading_is_bitwise_equal(monkeypatch, share):
    model, _ = comfy.sd.load_lora_for_models(recorded_model(True), None, LORA, 1.0, 0)
    clean = scene(1)
    whole = sample(model, TO_DEPTH, clean, clean)
    comfy.model_management.unload_all_models()
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda *_, **__: None)    # would load the rest
    partial = model.clone()
    partial.load(partial.load_device, lowvram_model_memory=1 + int(share * partial.model_size()))
    assert partial.model.model_lowvram and partial.loaded_size() < partial.model_size()
    result = sample(partial, TO_DEPTH, clean, clean)
    partial.unpatch_model()
    partial.model.model_loaded_weight_memory = 0
    assert torch.equal(result, whole)


def test_the_decoder_of_a_given_picture_is_skipped():
    model, calls = recorded_model(True), []
    network, clean = model.model.diffusion_model, scene(1)
    handles = [branch.out[2].register_forward_hook(lambda module, *_: calls.append(module))
               for branch in (network, network.jointnet)]
    sample(model, TO_DEPTH, clean, clean)
    for handle in handles:
        handle.remove()
    assert calls == [network.jointnet.out[2]] * 2


@pytest.mark.parametrize("sampler", [None, Published()], ids=["euler", "published"])
def test_masks_of_both_domains(sampler):
    """Each has its own; the variant for masks sees them, and what is kept is exact with both."""
    clean, mask = scene(1), torch.ones(1, 1, 2, 8, 8)
    mask[:, :, 0, :, :3] = mask[:, :, 1, 5:] = 0
    seen = []
    for inpaint in (True, False):
        after = sample(recorded_model(inpaint), clean=clean, latent=clean, mask=mask, sampler=sampler, steps=4)
        kept = (mask == 0).expand_as(after)
        assert torch.allclose(after[kept], clean[kept], atol=1e-5)
        assert (after - clean)[~kept].abs().min() > 1e-4
        seen.append(after)
    assert relative(*seen) > 1e-3


def test_a_mask_alone_is_enough():
    """Without a role switch, as SetLatentNoiseMask gives it: the latent itself is what is known."""
    clean, mask = scene(1), torch.ones(1, 1, 2, 8, 8)
    mask[..., :4] = 0
    plain = [[conditioning()[0][0], {}]]
    sigmas = model_sigmas(recorded_model(True), 3)
    after = comfy.sample.sample_custom(recorded_model(True), scene(7), 1.0, comfy.samplers.ksampler("euler"), sigmas,
                                       plain, plain, clean, noise_mask=mask, disable_pbar=True)
    told = sample(recorded_model(True), clean=clean, latent=clean, mask=mask, cfg=1.0, sigmas=sigmas)
    assert torch.equal(after, told)
    assert torch.allclose(after[..., :4], clean[..., :4], atol=1e-5)


@pytest.mark.parametrize("sampler", [None, Published()], ids=["euler", "published"])
@pytest.mark.parametrize("inpaint", [True, False])
def test_a_mask_on_what_an_earlier_run_made(sampler, inpaint):
    """A role switch that generates everything knows nothing of it, nor of another size: the run's latents count."""
    model, made, mask = recorded_model(inpaint), scene(1, size=(8, 16)), torch.ones(1, 1, 2, 8, 16)
    mask[..., :4] = 0
    after, told = (sample(model, clean=clean, latent=made, mask=mask, sampler=sampler, steps=4)
                   for clean in (torch.zeros(1, 4, 2, 8, 8), made))
    assert torch.equal(after, told) and torch.allclose(after[..., :4], made[..., :4], atol=1e-5)


@pytest.mark.parametrize("sampler", [None, Published()], ids=["euler", "published"])
def test_two_stages_equal_one(sampler):
    model, clean = recorded_model(True), scene(1)
    sampler, sigmas = sampler or comfy.samplers.ksampler("euler"), model_sigmas(model, 5)
    entries = [conditioning(TO_DEPTH, clean, value) for value in (1.0, -0.5)]

    def stage(noise, latent, part):
        return comfy.sample.sample_custom(model, noise, 2.0, sampler, part, *entries, latent, disable_pbar=True)
    half = stage(scene(7), clean, sigmas[:4])
    both = stage(torch.zeros_like(half), half, sigmas[3:])
    one = stage(scene(7), clean, sigmas)
    assert relative(both[:, :, 1], one[:, :, 1]) < 1e-5 and torch.allclose(both[:, :, 0], clean[:, :, 0], atol=1e-5)


def test_a_condition_for_some_steps():
    model, clean = recorded_model(True), scene(1)
    always = sample(model, TO_DEPTH, clean, clean, steps=4)
    never = sample(model, TO_DEPTH, clean, clean, steps=4, **{joint.SPANS: {"image": (0.999, 1.0)}})
    alone = sample(model, JointRoles.of(DOMAINS, generate=["depth"]), steps=4)
    half = sample(model, TO_DEPTH, clean, clean, steps=4, **{joint.SPANS: {"image": (0.0, 0.5)}})
    assert never.shape == always.shape and alone.shape[2] == 1
    assert relative(half[:, :, 1], always[:, :, 1]) > 1e-3 and relative(half[:, :, 1], never[:, :, 1]) > 1e-3


def test_rows_of_a_batch_do_not_mix():
    """Also the masks and given pictures of each."""
    model, clean = recorded_model(True), torch.cat([scene(1), scene(2)])
    together = comfy.sample.sample_custom(
        model, torch.cat([scene(3), scene(4)]), 2.0, Published(), model_sigmas(model, 2),
        conditioning(TO_DEPTH, clean), conditioning(TO_DEPTH, clean, -0.5), clean, disable_pbar=True)
    for row in (0, 1):
        one = clean[row:row + 1]
        alone = comfy.sample.sample_custom(
            model, scene(3 + row), 2.0, Published(), model_sigmas(model, 2), conditioning(TO_DEPTH, one),
            conditioning(TO_DEPTH, one, -0.5), one, disable_pbar=True)
        assert relative(together[row:row + 1], alone) < 1e-5


def test_windows_cut_masks_and_given_latents_alike():
    """A network with windows over a picture of two equal halves gives two equal halves."""
    model, half = recorded_model(True), scene(1)
    tiled = JodiTiles.execute(model, 64, 0.0).result[0]
    clean, noise = (torch.cat([part, part], dim=-1) for part in (half, scene(7)))

    def run(model, clean, noise):
        return comfy.sample.sample_custom(model, noise, 2.0, Published(), model_sigmas(model, 2),
                                          conditioning(TO_DEPTH, clean), conditioning(TO_DEPTH, clean, -0.5), clean,
                                          disable_pbar=True)
    wide = run(tiled, clean, noise)
    assert relative(wide[..., 8:], wide[..., :8]) < 1e-6 and relative(wide[..., :8], run(model, half, scene(7))) < 1e-5


def test_patches_of_attention_and_of_skips_reach_both_branches():
    from comfy_extras.nodes_freelunch import FreeU_V2
    model, seen = recorded_model(False), []
    patched = model.clone()
    patched.set_model_attn1_patch(lambda q, k, v, extra: seen.append(extra["block"]) or (q, k, v))
    assert torch.equal(sample(patched, cfg=1.0, steps=1), sample(model, cfg=1.0, steps=1))
    places = {("input", number) for number in (1, 2, 4, 5)} | {("middle", 0)} | {
        ("output", number) for number in range(3, 9)}
    assert set(seen) == places and len(seen) == 2 * len(places)
    freed = FreeU_V2().patch(model, 1.3, 1.4, 0.9, 0.2)[0]
    assert sample(freed, steps=1).isfinite().all()


@pytest.mark.parametrize("values, message", [
    ({"area": (4, 4, 0, 0), "strength": 1.0}, "an area of two axes"),
    ({"control": ControlBase()}, "give its picture to Jodi Role Switch as a condition")])
def test_what_knows_no_domain_axis_is_refused(values, message):
    entry = conditioning(**values)
    with pytest.raises(ValueError, match=message):
        comfy.sample.sample_custom(recorded_model(False), scene(7), 1.0, comfy.samplers.ksampler("euler"),
                                   model_sigmas(recorded_model(False), 1), entry, entry, scene(1), disable_pbar=True)


def test_given_pictures_of_another_size_are_refused():
    clean = scene(1, size=(8, 16))
    with pytest.raises(ValueError, match="make its conditioning anew"):
        sample(recorded_model(True), TO_DEPTH, clean, scene(1))


def test_other_sizes():
    """Few groups of normalisation, levels without attention, one block per level; the host's classes have no such."""
    config = JointNetConfig(channels=(32, 64), attention=(False, True), heads=(1, 2), layers=1, text_width=8,
                            norm_groups=4, in_channels=6)
    network = JointNetModelConfig(config)
    network.set_inference_dtype(torch.float32, None)
    network = network.get_model({}).diffusion_model
    assert {module.num_groups for module in network.modules() if isinstance(module, torch.nn.GroupNorm)} == {4}
    assert network.jointnet.input_blocks[0][0].weight.shape == (32, 6, 3, 3) and len(network.jointnet_down_blocks) == 4
    for change in ({"channels": (32, 48)}, {"heads": (2, 2)}, {"channels": (48, 96)}):
        with pytest.raises(ValueError, match="the U-Net of ComfyUI needs"):
            JointNetModelConfig(dataclasses.replace(config, **change))


def test_a_lora_on_both_branches():
    model = recorded_model(False)
    patched, _ = comfy.sd.load_lora_for_models(model, None, LORA, 0.5, 0)
    both, = JodiJointNetLoraOnDepth.execute(patched, 2.0).result
    assert list(both.patches) == [f"diffusion_model.{PATCHED}", f"diffusion_model.jointnet.{PATCHED}"]
    assert list(patched.patches) == [f"diffusion_model.{PATCHED}"], "the input stays as it was"
    alone = JointRoles.of(DOMAINS, generate=["depth"])
    pictures = [sample(one, roles) for roles in (JointRoles.of(DOMAINS, generate=["image"]), alone)
                for one in (model, patched, both)]
    assert torch.equal(pictures[1], pictures[2]) and not torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[3], pictures[4]) and not torch.equal(pictures[4], pictures[5])
    both.unpatch_model()
    weight = model.model.diffusion_model.jointnet.get_parameter(PATCHED)
    before = weight.clone()
    weight += LORA[f"lora_unet_{ATTENTION}.lora_up.weight"] @ LORA[f"lora_unet_{ATTENTION}.lora_down.weight"]
    merged = sample(model, alone)
    weight.copy_(before)
    assert relative(merged, pictures[5]) < 1e-6
    with pytest.raises(ValueError, match="no LoRA for the picture's U-Net"):
        JodiJointNetLoraOnDepth.execute(model, 1.0)
