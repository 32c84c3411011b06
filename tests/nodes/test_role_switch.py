"""The role switch: latents, conditioning and the errors that a user can provoke."""

import pytest
import torch
from nodes_fixtures import switch, text

from jodi_core.domains import JODI_DOMAINS
from jodi_pack.nodes import joint
from jodi_pack.nodes.decode import JodiLabelDecode
from jodi_pack.nodes.given import Choice, Given
from jodi_pack.nodes.roles import text_rows
from jodi_pack.nodes.sampling import JodiJointSampler


def test_given_picture_lies_in_its_slot(loaded):
    vae = loaded[2]
    positive, negative, latent = switch(vae, generate=("image", "albedo"), condition=("depth",), size=custom(48, 48))
    roles = latent[joint.ROLES]
    assert roles.active_names == ("image", "depth", "albedo") and latent["samples"].shape == (1, 8, 3, 6, 6)
    assert latent["samples"][:, :, 1].any() and not latent["samples"][:, :, [0, 2]].any()
    for conditioning in (positive, negative):
        assert torch.equal(conditioning[0][1][joint.CLEAN], latent["samples"])
        assert conditioning[0][1][joint.ROLES] == roles


def test_negative_text_is_cut_to_the_positive(loaded):
    _, clip, vae = loaded
    positive, negative, _ = switch(vae, text(clip, "a tree"), text(clip, ""), generate=JODI_DOMAINS)
    assert negative[0][1][joint.ROWS] == text_rows(positive) == positive[0][0].shape[1]


def test_stock_text_masks_are_understood():
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    assert text_rows([[torch.zeros(1, 5, 4), {"attention_mask": mask}]]) == 3
    assert text_rows(joint.null_conditioning()) is None


def given(loaded, **choices):
    return Given({"image": Choice("generate")} | choices, loaded[2].joint_config, 8)


def custom(width, height):
    return {"size": "custom", "width": width, "height": height}


def test_sizes(loaded):
    empty, picture = given(loaded), given(loaded, depth=Choice("condition", picture=torch.zeros(1, 3, 30, 70)))
    assert empty.size({"size": "automatic"}) == empty.size({"size": "like the picture"}) == (48, 48)
    assert picture.size({"size": "automatic"}) == (32, 64)
    assert picture.size({"size": "like the picture"}) == (24, 64)
    assert picture.size(custom(100, 3)) == (8, 96)
    latent = given(loaded, depth=Choice("condition", latent=torch.zeros(1, 8, 1, 2, 5)))
    assert latent.size({"size": "automatic"}) == latent.size(custom(40, 16)) == (16, 40)
    with pytest.raises(ValueError, match="depth: its latent is for 40x16 pixels, but the size is 48x48"):
        latent.size(custom(48, 48))


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 900, 1000, 3), (1, 20, 30, 1), (1, 20, 30, 4)])
def test_unusual_pictures(loaded, shape):
    vae = loaded[2]
    latent = switch(vae, generate=("image",), condition=("edge",), picture=torch.rand(shape))[2]
    assert latent["samples"].isfinite().all() and latent["samples"][:, :, 1].any()


def test_batches(loaded):
    def pictures(**counts):
        return given(loaded, **{name: Choice("condition", picture=torch.zeros(count, 3, 1, 1))
                                for name, count in counts.items()})
    three = pictures(depth=3, edge=1)
    assert three.rows(1) == three.rows(3) == 3 and pictures().rows(4) == 4
    with pytest.raises(ValueError, match="depth has 3"):
        three.rows(2)
    with pytest.raises(ValueError, match="batch sizes disagree"):
        pictures(depth=3, normal=2).rows(1)


@pytest.mark.parametrize("roles, message", [
    ({}, "nothing to generate"),
    ({"condition": ("depth",)}, "nothing to generate"),
    ({"generate": ("image",), "condition": ("depth",), "picture": None},
     "picture to depth_picture or a latent to depth_latent"),
])
def test_bad_choices(loaded, roles, message):
    with pytest.raises(ValueError, match=message):
        switch(loaded[2], **roles)


def test_text_of_another_model(loaded):
    model, _, vae = loaded
    conditioned = switch(vae, [[torch.zeros(1, 4, 2304), {}]], generate=("image",))
    with pytest.raises(ValueError, match="2304 wide, but this model takes 64"):
        JodiJointSampler.execute(model, *conditioned, seed=0, steps=1, cfg=1.0)


def test_latent_that_another_node_changed(loaded):
    """Cut along the domain axis, resized, or stripped of its roles: said, not sampled or decoded wrongly."""
    model, _, vae = loaded
    positive, negative, latent = switch(vae, generate=("depth", "normal"), condition=("image",))
    cut = latent | {"samples": latent["samples"][:, :, :2]}
    with pytest.raises(ValueError, match="changed its domain axis"):
        JodiJointSampler.execute(model, positive, negative, cut, seed=0, steps=1, cfg=1.0)
    with pytest.raises(ValueError, match="changed its domain axis"):
        JodiLabelDecode.execute(cut, vae)
    larger = latent | {"samples": latent["samples"].repeat(1, 1, 1, 2, 2)}
    with pytest.raises(ValueError, match="make its conditioning anew"):
        JodiJointSampler.execute(model, positive, negative, larger, seed=0, steps=1, cfg=1.0)
    with pytest.raises(ValueError, match="no roles came along"):
        JodiLabelDecode.execute({"samples": latent["samples"]}, vae)


def test_conditioning_of_another_switch(loaded):
    model, _, vae = loaded
    positive, negative, _ = switch(vae, generate=("depth",), condition=("image",))
    latent = switch(vae, generate=("normal",), condition=("image",))[2]
    with pytest.raises(ValueError, match="same Jodi Role Switch"):
        JodiJointSampler.execute(model, positive, negative, latent, seed=0, steps=1, cfg=1.0)


@pytest.mark.parametrize("cfg", [0.0, 1.0, 4.5])
def test_one_step_and_any_guidance(loaded, cfg):
    model, clip, vae = loaded
    conditioned = switch(vae, text(clip, ""), text(clip, ""), generate=("image", "depth"), batch_size=2)
    result, = JodiJointSampler.execute(model, *conditioned, seed=2 ** 64 - 1, steps=1, cfg=cfg).result
    assert result["samples"].shape == (2, 8, 2, 6, 6) and result["samples"].isfinite().all()


def test_several_pictures_with_one_given(loaded):
    model, _, vae = loaded
    conditioned = switch(vae, generate=("image",), condition=("depth",), batch_size=3)
    result, = JodiJointSampler.execute(model, *conditioned, seed=1, steps=2, cfg=1.0).result
    given = result["samples"][:, :, 1]
    assert torch.allclose(given[0], given[2], atol=1e-6) and not torch.allclose(*result["samples"][:2, :, 0])
    assert JodiLabelDecode.execute(result, vae).result[0].shape == (3, 32, 64, 3)
