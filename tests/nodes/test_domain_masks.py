"""Masks per domain: which cells they reach, how they fade, going back and forth, and masks that make no sense."""

import pytest
import torch
from nodes_fixtures import PICTURE, choices, relative

from jodi_pack.nodes.custom_sampling import JodiSampler
from jodi_pack.nodes.host.sampling import JointNoise, model_sigmas
from jodi_pack.nodes.panorama import JodiPanoramaCanvas
from jodi_pack.nodes.resampling import JodiResampling
from jodi_pack.nodes.roles import JodiRoleSwitch

SIZE = {"size": "custom", "width": 48, "height": 48}


def edited(vae, mask, picture=PICTURE, size=SIZE, feather=0, batch_size=1):
    """(positive, negative, latent) with a masked image, and depth to generate."""
    roles = choices(generate=("depth",)) | {
        "image": {"image": "edit", "image_picture": picture, "image_mask": mask}}
    return JodiRoleSwitch.execute(vae, size, batch_size, feather=feather, **roles).result


def run(model, conditioned, sampler, steps=4):
    from comfy_extras.nodes_custom_sampler import CFGGuider, SamplerCustomAdvanced
    positive, negative, latent = conditioned
    guider, = CFGGuider.execute(model, positive, negative, 1.0).result
    return SamplerCustomAdvanced.execute(JointNoise(1, True), guider, sampler, model_sigmas(model, steps),
                                         latent).result[0]["samples"]


def test_a_hair_reaches_its_cells(loaded):
    """A line of one pixel in a picture 16 times as large: averaged it would count for nearly nothing."""
    mask = torch.zeros(1, 768, 768)
    mask[:, :, 300] = 1
    drawn = edited(loaded[2], mask, torch.rand(1, 768, 768, 3))[2]["noise_mask"]
    assert drawn.shape == (1, 1, 2, 6, 6) and drawn[0, 0, 1].all()
    assert torch.equal(drawn[0, 0, 0], torch.tensor([0, 0, 1, 0, 0, 0]).float().expand(6, 6))


def test_feathered_masks_keep_a_part(loaded):
    """What is kept to 2/3 moves less than what is made anew, and the rest does not move."""
    model, _, vae = loaded
    mask = torch.zeros(1, 48, 48)
    mask[:, :, :16] = 1
    conditioned = edited(vae, mask, feather=16)
    columns = conditioned[2]["noise_mask"][0, 0, 0, 0]
    assert columns.tolist() == pytest.approx([1, 1, 2 / 3, 1 / 3, 0, 0], abs=1e-6)
    before, after = conditioned[2]["samples"], run(model, conditioned, JodiSampler.execute().result[0])
    moved = (after - before)[:, :, 0].abs().mean(dim=(0, 1, 2))
    assert moved[:2].min() > moved[3] > 0 and moved[4:].max() < 1e-5


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_masks_of_all_or_nothing(loaded, value):
    """Nothing painted: what was given comes back. All painted: nothing of it is left, as if it were generated."""
    model, _, vae = loaded
    conditioned = edited(vae, torch.full((1, 48, 48), value))
    given, made = conditioned[2]["samples"], run(model, conditioned, JodiSampler.execute().result[0])
    assert torch.allclose(made[:, :, 0], given[:, :, 0], atol=1e-5) == (value == 0)
    assert made[:, :, 1].any()
    if value:
        roles = JodiRoleSwitch.execute(vae, SIZE, 1, **choices(generate=("image", "depth"))).result
        # 0.9997 noise and a trace of the picture, where a run from nothing has noise alone.
        assert relative(run(model, roles, JodiSampler.execute().result[0]), made) < 0.01


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 20, 60)])
def test_masks_of_another_shape(loaded, shape):
    with pytest.raises(ValueError, match="does not lie over 60x40: paint it on the picture"):
        edited(loaded[2], torch.ones(shape))


def test_masks_of_another_size_but_the_same_shape(loaded):
    small, large = (edited(loaded[2], (torch.arange(side * 3 // 2) < side // 2).float().expand(1, side, -1))[2]
                    for side in (20, 400))
    assert torch.equal(small["noise_mask"], large["noise_mask"]) and small["noise_mask"][0, 0, 0].any()


def test_masks_of_another_batch(loaded):
    with pytest.raises(ValueError, match="the mask of image has 3"):
        edited(loaded[2], torch.ones(3, 48, 48), PICTURE.expand(2, -1, -1, -1))
    assert edited(loaded[2], torch.ones(3, 48, 48))[2]["noise_mask"].shape[0] == 3


@pytest.mark.parametrize("name", ["jodi", "euler", "dpmpp_2m"])
def test_resampling(loaded, monkeypatch, name):
    """Three times the calls, another result, the known half untouched; made once it is the sampler itself."""
    import comfy.samplers
    model, _, vae = loaded
    network, calls = model.model.diffusion_model, []
    velocity = network.velocity
    monkeypatch.setattr(network, "velocity", lambda *inputs: calls.append(inputs[1]) or velocity(*inputs))
    mask = torch.zeros(1, 48, 48)
    mask[:, :, :24] = 1
    conditioned = edited(vae, mask)
    sampler = JodiSampler.execute().result[0] if name == "jodi" else comfy.samplers.sampler_object(name)
    made, counts = [], []
    jumping = [JodiResampling.execute(sampler, times, jump).result[0] for times, jump in ((1, 4), (3, 2))]
    for used in (sampler, *jumping):
        calls.clear()
        made.append(run(model, conditioned, used))
        counts.append(len(calls))
    assert counts == [4, 4, 12]
    assert torch.equal(made[0], made[1]) and relative(made[2], made[0]) > 1e-3
    assert torch.allclose(made[2][:, :, 0, :, 3:], conditioned[2]["samples"][:, :, 0, :, 3:], atol=1e-5)


def test_samplers_that_cannot_be_run_in_parts(loaded):
    with pytest.raises(ValueError, match="take a sampler of KSamplerSelect"):
        run(loaded[0], edited(loaded[2], torch.ones(1, 48, 48)), JodiResampling.execute(object(), 2, 2).result[0])


def test_a_canvas_to_be_continued(loaded):
    """A picture of 48 pixels on a canvas of 144: its cells are kept, those beside it are not."""
    _, _, vae = loaded
    picture = torch.rand(1, 48, 48, 3, generator=torch.Generator().manual_seed(0))
    canvas, mask = JodiPanoramaCanvas.execute(picture, 144).result
    assert canvas.shape == (1, 48, 144, 3) and torch.equal(canvas[:, :, 48:96], picture)
    assert torch.equal(canvas[:, :, 47], picture[:, :, 0]) and torch.equal(canvas[:, :, 96], picture[:, :, -1])
    latent = edited(vae, mask, canvas, {"size": "like the picture"})[2]
    assert latent["samples"].shape[-2:] == (6, 18)
    assert latent["noise_mask"][0, 0, 0, 0].tolist() == [1] * 6 + [0] * 6 + [1] * 6
    with pytest.raises(ValueError, match="has no room for a picture of 48"):
        JodiPanoramaCanvas.execute(picture, 32)
