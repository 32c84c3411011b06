"""Joint models on large pictures, window by window."""

import pytest
import torch
from nodes_fixtures import relative, switch, text

from jodi_core.pictures import postprocess
from jodi_pack.nodes import joint
from jodi_pack.nodes.loader import TINY, JodiLoader
from jodi_pack.nodes.sampling import JodiJointSampler
from jodi_pack.nodes.tiles import JodiTiles
from training.world import render, sample_scene


def custom(width, height):
    return {"size": "custom", "width": width, "height": height}


def sample(model, conditioned, cfg=3.0):
    return JodiJointSampler.execute(model, *conditioned, 1, 3, cfg).result[0]["samples"]


def test_one_window_is_exactly_the_plain_model(loaded):
    model, clip, vae = loaded
    conditioned = switch(vae, text(clip, "a tree"), text(clip, ""), generate=("image", "depth"), batch_size=2)
    assert torch.equal(sample(JodiTiles.execute(model, 0, 0.25).result[0], conditioned), sample(model, conditioned))


@pytest.mark.parametrize("roles", [{"generate": ("image", "depth")}, {"generate": ("depth",), "condition": ("image",)},
                                   {"generate": ("image",), "condition": ("depth",)}])
def test_windows_see_their_own_part(loaded, monkeypatch, roles):
    """Whatever the task, guidance and sampler: every call has the model's size, given latents cut alike."""
    model, clip, vae = loaded
    conditioned = switch(vae, text(clip, "a tree"), text(clip, ""), size=custom(96, 64), **roles)
    network, seen = model.model.diffusion_model, []
    velocity = network.velocity
    monkeypatch.setattr(network, "velocity", lambda x, *rest: seen.append(tuple(x.shape[-2:])) or velocity(x, *rest))
    tiled = JodiTiles.execute(model, 0, 0.25).result[0]
    made = sample(tiled, conditioned)
    assert set(seen) == {(6, 6)} and len(seen) == 3 * 3 * 2
    given = list(conditioned[2][joint.ROLES].condition_slots)
    assert torch.allclose(made[:, :, given], conditioned[2]["samples"][:, :, given], atol=1e-5)
    assert relative(made, sample(model, conditioned)) > 1e-3


def test_a_tile_of_nothing(loaded):
    with pytest.raises(ValueError, match="take at least 16, or 0 for the model's own size of 48"):
        JodiTiles.execute(loaded[0], 8, 0.25)


def test_labels_of_a_wide_picture():
    """Four scenes side by side, which the tiny model never saw at once: in windows it reads them as if alone."""
    model, _, vae = JodiLoader.execute(TINY, TINY, TINY, "default").result
    scenes = [sample_scene(20_000_000 + number) for number in range(8)]
    truth = {name: torch.cat(list(picture.float().unflatten(0, (2, 4)).unbind(1)), dim=-1) / 255
             for name, picture in render(scenes, 128, 128).items()}
    conditioned = switch(vae, size=custom(512, 128), generate=("normal", "albedo"), condition=("image",),
                         picture=truth["image"].movedim(1, -1))
    errors = []
    for used in (model, JodiTiles.execute(model, 0, 0.5).result[0]):
        decoded_BDHW3 = vae.decode(sample(used, conditioned, 1.0)[:, :, 1:])
        made = {name: postprocess(name, part.movedim(-1, 1) * 2 - 1)
                for name, part in zip(("normal", "albedo"), decoded_BDHW3.unbind(1))}
        errors.append({name: float((made[name] - truth[name]).abs().mean()) for name in made})
    print(errors)
    assert all(errors[1][name] < 0.8 * errors[0][name] for name in errors[0])
