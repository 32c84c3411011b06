"""Joint latents at a larger size: what is worked out again, from which time on, and in bounded pieces."""

import types

import comfy.model_sampling
import pytest
import torch
from nodes_fixtures import PICTURE, switch, text

from jodi_core.fitting import resize
from jodi_pack.nodes import joint
from jodi_pack.nodes.decode import LIKE_GIVEN, JodiLabelDecode
from jodi_pack.nodes.host.sampling import denoise_from, model_sigmas
from jodi_pack.nodes.loader import TINY, JodiLoader
from jodi_pack.nodes.sampling import JodiJointSampler
from jodi_pack.nodes.tiles import JodiTiles
from jodi_pack.nodes.upsample import EVERYTHING, LABELS, PICTURE as IMAGE, JodiUpsample


def upsampled(model, vae, conditioned, what=EVERYTHING, scale=2.0, start=0.5, tile=64):
    positive, negative, latent = conditioned
    return JodiUpsample.execute(model, vae, positive, negative, latent, what, scale, start, tile).result


@pytest.fixture
def small(loaded):
    """Picture and depth given as a start, normals from nothing; 48 pixels."""
    model, clip, vae = loaded
    conditioned = switch(vae, text(clip, "a tree"), text(clip, ""), generate=("image", "depth", "normal"))
    conditioned[2]["samples"] = torch.randn(1, 8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return conditioned


@pytest.mark.parametrize("what, made", [(EVERYTHING, (0, 1, 2)), (IMAGE, (0,)), (LABELS, (1, 2))])
def test_what_is_worked_out_again(loaded, small, what, made):
    """The rest is given at the new size, and comes out as it is."""
    model, _, vae = loaded
    positive, negative, latent, denoise = upsampled(model, vae, small, what)
    assert latent["samples"].shape == (1, 8, 3, 12, 12) and latent[joint.ROLES].generated_slots == made
    after = JodiJointSampler.execute(JodiTiles.execute(model, 0, 0.5).result[0], positive, negative, latent, 1, 3, 2.0,
                                     denoise).result[0]["samples"]
    changed = (after - latent["samples"]).abs().amax(dim=(0, 1, 3, 4)) > 1e-4
    assert changed.tolist() == [slot in made for slot in range(3)]


def test_time_to_denoise(loaded):
    """Jodi's grid begins near the asked time; JointNet's strength of 0.4 is flow time 0.52 (its spec, table of 2)."""
    model, _, _ = loaded
    for time in (0.3, 0.5, 0.8):
        assert float(model_sigmas(model, 20, denoise_from(model, time))[0]) == pytest.approx(time, abs=0.02)
    sampling = comfy.model_sampling.ModelSamplingDiscrete()    # of Stable Diffusion, with its schedule
    other = types.SimpleNamespace(get_model_object={"model_sampling": sampling}.get)
    assert [denoise_from(other, time) for time in (0.345, 0.522, 0.756)] == pytest.approx([0.2, 0.4, 0.7], abs=0.03)


def test_pictures_stay_what_they_are():
    """The bundled autoencoder: enlarged in pixels, in tiles smaller than the picture."""
    model, _, vae = JodiLoader.execute(TINY, TINY, TINY, "default").result
    column = torch.linspace(0, 1, 192)
    picture = torch.stack([column, column.flip(0), torch.full((192,), 0.4)], -1).expand(1, 128, -1, -1)
    conditioned = switch(vae, size={"size": "custom", "width": 192, "height": 128}, condition=("image",),
                         generate=("depth",), picture=picture)
    latent = upsampled(model, vae, conditioned, IMAGE, 1.5, tile=128)[2]
    assert latent["samples"].shape[-2:] == (12, 18)
    shown = JodiLabelDecode.execute(latent, vae).result[0]
    wanted = resize(picture.movedim(-1, 1), (192, 288)).movedim(1, -1)
    assert (shown - wanted).abs().mean() < 0.03


def test_memory_is_that_of_a_tile(loaded, small, monkeypatch):
    network, seen = loaded[2].first_stage_model, []
    for name in ("encode", "decode"):
        plain = getattr(network, name)
        monkeypatch.setattr(network, name, lambda part, name=name, plain=plain: seen.append(
            (name, part.shape[-1])) or plain(part))
    upsampled(loaded[0], loaded[2], small, scale=4.0, tile=64)
    assert max(width for name, width in seen if name == "encode") == 64
    assert max(width for name, width in seen if name == "decode") <= 8


def test_laid_over_the_first_picture(loaded):
    """What the role switch did to the given picture is undone at the new size too."""
    model, _, vae = loaded
    conditioned = switch(vae, generate=("depth",), condition=("image",))
    latent = upsampled(model, vae, conditioned, EVERYTHING, 1.5)[2]
    depth = JodiLabelDecode.execute(latent, vae, size=LIKE_GIVEN).result[3]
    assert depth.shape[1:3] == PICTURE.shape[1:3]


def test_nothing_to_work_out(loaded):
    model, _, vae = loaded
    with pytest.raises(ValueError, match="has image: nothing of the labels"):
        upsampled(model, vae, switch(vae, generate=("image",)), LABELS)


def test_tiles_replace_tiles(loaded, small, monkeypatch):
    """A model with tiles for a panorama is given others: each step has the windows of the last ones."""
    network, seen = loaded[0].model.diffusion_model, []
    velocity = network.velocity
    monkeypatch.setattr(network, "velocity", lambda x, *rest: seen.append(tuple(x.shape[-2:])) or velocity(x, *rest))
    circular = JodiTiles.execute(loaded[0], 0, 0.5, True, 1.0).result[0]
    model = JodiTiles.execute(circular, 64, 0.5).result[0]
    positive, negative, latent, denoise = upsampled(model, loaded[2], small)
    JodiJointSampler.execute(model, positive, negative, latent, 1, 2, 2.0, denoise)
    assert seen == [(8, 8)] * 4 * 2
