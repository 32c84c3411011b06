import pytest
import torch
import torch.nn.functional as F

from jodi_core.models.dcae import DCAE, DCAEConfig
from jodi_core.weights import load_autoencoder
from training.autoencoder import (TINY_CONFIG, fit_pca, measure, mixture, picture_loss, principal_axes, save, to_signed,
                                  train_decoder)

SMALL = DCAEConfig(latent_channels=16, widths=(4, 16, 16, 64, 256), encoder_depths=(0,) * 5,
                   decoder_depths=(0, 1, 1, 0, 0), kinds=("residual",) * 5)


@pytest.fixture(scope="module")
def pictures():
    """(24, 3, 32, 48) uint8, smooth with a few hard edges."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(24, 3, 4, 5, generator=generator)
    smooth = F.interpolate(coarse, (32, 48), mode="bicubic").clamp(0, 1)
    return (torch.where(smooth > 0.7, 1.0, smooth) * 255).round().byte()


@pytest.fixture(scope="module")
def linear(pictures):
    return fit_pca(pictures, SMALL)


def loss(model, pictures):
    with torch.no_grad():
        return picture_loss(model.decode(model.encode(to_signed(pictures))), to_signed(pictures)).item()


def test_starts_as_good_as_principal_components(linear, pictures):
    patches = F.pixel_unshuffle(to_signed(pictures), 16).movedim(1, -1).flatten(0, 2)
    mean, axes, _ = principal_axes(patches, SMALL.latent_channels)
    error = ((patches - mean) @ axes.T @ axes + mean - patches).square().mean() / 4
    ours = measure(linear, {"all": pictures})["all"]["psnr"]
    assert ours > -10 * error.log10() - 0.3


def test_encoder_sees_one_patch_at_a_time(linear, pictures):
    whole = linear.encode(to_signed(pictures[:2]))
    corner = linear.encode(to_signed(pictures[:2, :, 16:, 32:]))
    assert torch.allclose(whole[:, :, 1:2, 2:3], corner, atol=1e-3 * whole.abs().max())


@pytest.mark.parametrize("exponent", [0.0, 0.4, 1.0])
def test_latent_is_scaled_and_equalised(pictures, exponent):
    model = fit_pca(pictures, SMALL, exponent=exponent, variance=0.8)
    latents = model.encode(to_signed(pictures)) * SMALL.scaling_factor
    variances = latents.movedim(1, 0).flatten(1).var(1)
    assert variances.mean().item() == pytest.approx(0.8, rel=1e-3)
    spread = variances[0] / variances[7]
    plain = fit_pca(pictures, SMALL, exponent=0.0).encode(to_signed(pictures)).movedim(1, 0).flatten(1).var(1)
    assert spread.item() == pytest.approx((plain[0] / plain[7]).item() ** (1 - exponent), rel=0.02)


def test_training_improves_the_decoder_only_and_resumes(pictures, tmp_path):
    model, checkpoint = fit_pca(pictures, SMALL), tmp_path / "state"
    encoder = {key: value.clone() for key, value in model.encoder.state_dict().items()}
    before = loss(model, pictures)
    steps = train_decoder(model, pictures, 0.01, checkpoint=checkpoint)
    assert loss(model, pictures) < before
    assert all(torch.equal(value, encoder[key]) for key, value in model.encoder.state_dict().items())

    resumed = fit_pca(pictures, SMALL)
    assert train_decoder(resumed, pictures, 0.01, checkpoint=checkpoint) == steps  # the time is used up
    assert loss(resumed, pictures) == pytest.approx(loss(model, pictures), rel=1e-4)
    assert train_decoder(resumed, pictures, 0.03, checkpoint=checkpoint) > steps


def test_saved_file_loads_again(linear, pictures, tmp_path):
    save(linear, tmp_path / "autoencoder.safetensors")
    loaded = load_autoencoder(tmp_path / "autoencoder.safetensors", dtype=torch.float32)
    assert loaded.config == SMALL
    assert loss(loaded, pictures) == pytest.approx(loss(linear, pictures), rel=0.02)


def test_other_layouts_are_refused(pictures):
    with pytest.raises(ValueError, match=r"\(a, 4a, b, 4b, 16b\)"):
        fit_pca(pictures, DCAEConfig())


def test_tiny_model_fits_the_bundle():
    parameters = sum(value.numel() for value in DCAE(TINY_CONFIG, device="meta").parameters())
    assert 2 * parameters < 12e6
    assert TINY_CONFIG.factor == 16 and TINY_CONFIG.latent_channels == 32


def test_mixture_keeps_every_picture_once(pictures):
    domains = {"image": pictures[:5], "depth": pictures[5:9]}
    mixed = mixture(domains)
    assert sorted(mixed.sum((1, 2, 3)).tolist()) == sorted(pictures[:9].sum((1, 2, 3)).tolist())
