"""Panoramas of 360 degrees: windows that go on over the edge, the whole picture in between, decoding without a seam."""

import pytest
import torch
import torch.nn.functional as F
from nodes_fixtures import relative, switch, text

from jodi_core.tiles import seam
from jodi_pack.nodes.decode import JodiDomainDecode, JodiLabelDecode, decode_pixels
from jodi_pack.nodes.loader import TINY, JodiLoader
from jodi_pack.nodes.sampling import JodiJointSampler
from jodi_pack.nodes.tiles import JodiTiles


def custom(width, height):
    return {"size": "custom", "width": width, "height": height}


def panorama(model, full_view=0.0, circular=True):
    return JodiTiles.execute(model, 0, 0.5, circular, full_view).result[0]


def sample(model, conditioned, seed=1, steps=4, cfg=3.0):
    return JodiJointSampler.execute(model, *conditioned, seed, steps, cfg).result[0]["samples"]


@pytest.fixture
def wide(loaded):
    """Depth given, picture wanted, three windows wide."""
    model, clip, vae = loaded
    return switch(vae, text(clip, "a tree"), text(clip, ""), size=custom(144, 48), generate=("image",),
                  condition=("depth",))


def test_the_whole_picture_in_the_first_steps(loaded, wide, monkeypatch):
    """Steps 0 .. int(4 * 0.4) see it; windows of half a side's stride go round, and given latents are cut alike."""
    network, seen = loaded[0].model.diffusion_model, []
    velocity = network.velocity
    monkeypatch.setattr(network, "velocity", lambda x, *rest: seen.append(tuple(x.shape[-2:])) or velocity(x, *rest))
    sample(panorama(loaded[0], full_view=0.4), wide)
    assert seen == ([(6, 6)] * 6 + [(6, 18)]) * 2 + [(6, 6)] * 6 * 2


def test_the_seed_decides(loaded, wide):
    """How windows move belongs to the seed: a run can be repeated, and windows of another seed lie elsewhere."""
    model = panorama(loaded[0])
    first = sample(model, wide)
    assert torch.equal(first, sample(model, wide)) and relative(sample(model, wide, seed=2), first) > 1e-3


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_ancestral"])
def test_stock_samplers(loaded, wide, sampler):
    import nodes
    positive, negative, latent = wide
    made = nodes.common_ksampler(panorama(loaded[0], 0.5), 1, 3, 3.0, sampler, "simple", positive, negative, latent)
    assert made[0]["samples"].isfinite().all()


def test_narrower_than_a_window(loaded):
    """The window shrinks to the picture, and still moves around it."""
    model, clip, vae = loaded
    conditioned = switch(vae, text(clip, "a tree"), text(clip, ""), size=custom(32, 48), generate=("image",))
    made = sample(panorama(model, 0.4), conditioned)
    assert made.shape[-2:] == (6, 4) and made.isfinite().all()
    plain = sample(model, conditioned)
    assert torch.equal(sample(panorama(model, 0.4, circular=False), conditioned), plain)


class Blurred:
    """An autoencoder of 4 pixels a cell that looks over the edges of its cells, where there is nothing."""

    @staticmethod
    def spacial_compression_decode():
        return 4

    @staticmethod
    def decode(samples_BCDhw):
        pictures = F.interpolate(samples_BCDhw[:, :3].transpose(1, 2).flatten(0, 1), scale_factor=4)
        kernel = torch.full((3, 1, 5, 5), 0.04)
        return F.conv2d(pictures, kernel, padding=2, groups=3).movedim(1, -1).unflatten(0, (len(samples_BCDhw), -1))


def test_circular_decoding_has_no_edge():
    latent = torch.randn(2, 4, 3, 6, 12, generator=torch.Generator().manual_seed(0))
    decoded = decode_pixels(Blurred(), latent, circular=True, tile=0)
    turned = decode_pixels(Blurred(), latent.roll(5, -1), circular=True, tile=0)
    assert decoded.shape == (2, 3, 24, 48, 3)
    torch.testing.assert_close(turned, decoded.roll(20, -2))
    plain = decode_pixels(Blurred(), latent, circular=False, tile=0)
    assert not torch.allclose(plain[..., 0, :], decoded[..., 0, :])
    torch.testing.assert_close(plain[..., 2:-2, :], decoded[..., 2:-2, :])
    assert decode_pixels(Blurred(), latent[..., :3], circular=True, tile=0).shape[-2] == 12


def test_a_closed_panorama(monkeypatch):
    """The toy world all around: at the seam colours and depth change far less than without a closed circle.

    In tiles it decodes to nearly the same, from pieces of the asked size only.
    """
    model, _, vae = JodiLoader.execute(TINY, TINY, TINY, "default").result
    conditioned = switch(vae, size=custom(256, 128), generate=("image", "depth"))
    pictures = {}
    for circular in (False, True):
        latent = JodiJointSampler.execute(panorama(model, 0.4, circular), *conditioned, 3, 8, 1.0).result[0]
        outputs = JodiLabelDecode.execute(latent, vae, circular=circular).result
        pictures[circular] = {place: outputs[place].movedim(-1, 1) for place in (0, 3)}
    assert all(seam(pictures[True][place]) < seam(pictures[False][place]) / 2 for place in (0, 3))
    network, seen = vae.first_stage_model, []
    decode = network.decode
    monkeypatch.setattr(network, "decode", lambda part: seen.append(part.shape[-2:]) or decode(part))
    tiled = JodiDomainDecode.execute(latent, vae, "image", circular=True, tile=128).result[0].movedim(-1, 1)
    assert all(max(shape) <= 8 for shape in seen)
    assert (tiled - pictures[True][0]).abs().mean() < 0.02
