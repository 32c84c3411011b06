"""The applications know no network: the same nodes on the tiny JointNet, on pictures of their own sizes."""

import comfy.samplers
import pytest
import torch
from nodes_fixtures import choices, switch, text

from jodi_pack.nodes import joint
from jodi_pack.nodes.custom_sampling import JodiSampler
from jodi_pack.nodes.decode import JodiLabelDecode
from jodi_pack.nodes.host.sampling import JointNoise, model_sigmas
from jodi_pack.nodes.jointnet_loader import JodiJointNetLoader
from jodi_pack.nodes.loader import TINY
from jodi_pack.nodes.panorama import JodiPanoramaCanvas
from jodi_pack.nodes.resampling import JodiResampling
from jodi_pack.nodes.roles import JodiRoleSwitch
from jodi_pack.nodes.sampling import JodiJointSampler
from jodi_pack.nodes.tiles import JodiTiles
from jodi_pack.nodes.upsample import JodiUpsample


@pytest.fixture(scope="module")
def parts():
    """MODEL, CLIP and VAE."""
    return JodiJointNetLoader.execute(TINY, TINY, TINY, "default").result


def prompts(clip):
    return text(clip, "a red house"), text(clip, "")


def test_a_panorama_is_decoded_in_a_circle_and_enlarged(parts):
    model, clip, vae = parts
    positive, negative, latent = switch(vae, *prompts(clip), size={"size": "custom", "width": 256, "height": 128},
                                        generate=("image", "depth"))
    tiled = JodiTiles.execute(model, 0, 0.5, True, 0.4).result[0]
    sampled = JodiJointSampler.execute(tiled, positive, negative, latent, 1, 2, 2.0).result[0]
    image, depth = (JodiLabelDecode.execute(sampled, vae, circular=True).result[place] for place in (0, 3))
    assert image.shape == depth.shape == (1, 128, 256, 3)
    *conditioned, denoise = JodiUpsample.execute(model, vae, positive, negative, sampled, "the labels", 1.5, 0.5,
                                                 128).result
    large = conditioned[2]["samples"]
    assert large.shape[-2:] == (12, 24) and conditioned[2][joint.ROLES].condition_slots == (0,)
    after = JodiJointSampler.execute(tiled, *conditioned, 1, 2, 2.0, denoise).result[0]["samples"]
    assert torch.allclose(after[:, :, 0], large[:, :, 0], atol=1e-5) and (after - large)[:, :, 1].abs().max() > 1e-2


def around_a_picture(parts, sampler):
    from comfy_extras.nodes_custom_sampler import CFGGuider, SamplerCustomAdvanced
    model, clip, vae = parts
    picture = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    canvas, mask = JodiPanoramaCanvas.execute(picture, 384).result
    roles = choices(generate=("depth",)) | {"image": {"image": "edit", "image_picture": canvas, "image_mask": mask}}
    positive, negative, latent = JodiRoleSwitch.execute(vae, {"size": "like the picture"}, 1, *prompts(clip),
                                                        **roles).result
    guider, = CFGGuider.execute(JodiTiles.execute(model, 0, 0.5, True).result[0], positive, negative, 2.0).result
    made = SamplerCustomAdvanced.execute(JointNoise(1, True), guider, sampler, model_sigmas(model, 2), latent).result[0]
    return latent["samples"], made["samples"]


def test_a_picture_is_continued_in_jumps(parts):
    sampler = JodiResampling.execute(comfy.samplers.sampler_object("euler"), 2, 1).result[0]
    before, after = around_a_picture(parts, sampler)
    changed = (after - before)[0, :, 0].abs().amax(dim=(0, 1)) > 1e-3
    assert not changed[8:16].any() and changed[:8].all() and changed[16:].all()


def test_its_published_sampler_is_not_run_in_parts(parts):
    with pytest.raises(ValueError, match="KnownDDIM cannot be run in parts: take a sampler of KSamplerSelect"):
        around_a_picture(parts, JodiResampling.execute(JodiSampler.execute().result[0], 2, 1).result[0])
