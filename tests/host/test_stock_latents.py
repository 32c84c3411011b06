"""The host's latent and VAE nodes on joint latents (B, C, domains, h, w)."""

import shutil

import pytest
from jodi_prompts import link, node, run
from stock import DRAWN, GIVEN, LIMITED, WORKS, difference, ksampler, latents, scene, stock

from jodi_core.domains import JODI_DOMAINS
from scripts.comfy import ComfyError

VAE = {"vae": link("load", 2)}


def pictures(server, prompt: dict, of: str):
    return run(server, prompt | {"save": node("SaveImage", images=link(of), filename_prefix="stock")})["save"]


@stock("EmptyLatentImage + KSampler without role switch", WORKS,
       "text to image; the size is brought to the model's cells")
def test_text_to_image(comfy):
    prompt = scene() | {"empty": node("EmptyLatentImage", width=160, height=96, batch_size=2)}
    prompt["made"] = ksampler(positive=link("text"), negative=link("text2"), latent_image=link("empty"))
    prompt["decoded"] = node("VAEDecode", samples=link("made"), **VAE)
    assert pictures(comfy, prompt, "decoded").shape == (2, 96, 160, 3)


@stock("VAEDecode", WORKS, "all active domains as a batch, scene by scene, given ones included, without "
                           "post-processing: Jodi Label Decode names and finishes them")
@stock("VAEDecodeTiled", LIMITED,
       "seams show, as the autoencoder looks at the whole picture: only when memory is short")
def test_decode(comfy):
    prompt = scene(batch=2) | {
        "made": ksampler(), "whole": node("VAEDecode", samples=link("made"), **VAE),
        "tiled": node("VAEDecodeTiled", samples=link("made"), tile_size=64, overlap=32, temporal_size=64,
                      temporal_overlap=8, **VAE)}
    whole, tiled = pictures(comfy, prompt, "whole"), pictures(comfy, prompt, "tiled")
    assert whole.shape == tiled.shape == (6, 128, 128, 3)
    assert abs(tiled - whole).max() > 0.01
    assert abs(whole[GIVEN] - whole[GIVEN + 3]).max() < 0.01 < abs(whole[0] - whole[3]).mean()


@stock("VAEEncode", WORKS,
       "pictures to latents of one domain each, cut to whole cells: the start of an img2img of the image")
@stock("VAEEncodeTiled", LIMITED, "as VAEEncode, but other at the seams")
def test_encode(comfy):
    prompt = scene() | {
        "picture": node("EmptyImage", width=150, height=100, batch_size=2, color=0x3060A0),
        "whole": node("VAEEncode", pixels=link("picture"), **VAE),
        "tiled": node("VAEEncodeTiled", pixels=link("picture"), tile_size=64, overlap=32, temporal_size=64,
                      temporal_overlap=8, **VAE)}
    whole, tiled = latents(comfy, prompt, "whole", "tiled")
    assert whole.shape == tiled.shape == (2, 32, 1, 6, 9)
    prompt["varied"] = ksampler(positive=link("text"), negative=link("text2"), latent_image=link("whole"), denoise=0.5)
    assert latents(comfy, prompt, "varied")[0].isfinite().all()


def masked(server, latent: str, nodes: dict):
    """(start, result) of sampling with a mask over the left half, from the role switch's or another latent."""
    prompt = nodes | scene() | {
        "black": node("SolidMask", value=0.0, width=128, height=128),
        "half": node("SolidMask", value=1.0, width=64, height=128),
        "mask": node("MaskComposite", destination=link("black"), source=link("half"), x=0, y=0, operation="add")}
    return latents(server, prompt, latent, "again")


@stock("SetLatentNoiseMask", WORKS, "one region for all domains; outside everything stays")
def test_noise_mask(comfy):
    start, again = masked(comfy, "first", {
        "first": ksampler(), "hole": node("SetLatentNoiseMask", samples=link("first"), mask=link("mask")),
        "again": ksampler(seed=2, latent_image=link("hole"))})
    changed = (again - start).abs().amax((0, 1, 2, 3))
    assert (changed[:4] > 0.05).all() and (changed[4:] < 1e-4).all()
    assert difference(again[:, :, GIVEN], start[:, :, GIVEN]) < 1e-5


@stock("VAEEncodeForInpaint", WORKS, "text to image only: a picture has no other domains")
def test_inpaint(comfy):
    start, again = masked(comfy, "hole", {
        "picture": node("EmptyImage", width=128, height=128, batch_size=1, color=0x3060A0),
        "hole": node("VAEEncodeForInpaint", pixels=link("picture"), mask=link("mask"), grow_mask_by=0, **VAE),
        "again": ksampler(positive=link("text"), negative=link("text2"), latent_image=link("hole"))})
    changed = (again - start).abs().amax((0, 1, 2, 3))
    assert (changed[:4] > 0.05).all() and (changed[4:] < 1e-4).all()


CHANGES = {
    "RepeatLatentBatch": ({"amount": 2}, (2, 32, 3, 8, 8)),
    "LatentFlip": ({"flip_method": "y-axis: horizontally"}, (1, 32, 3, 8, 8)),
    "LatentUpscaleBy": ({"upscale_method": "bilinear", "scale_by": 1.5}, (1, 32, 3, 12, 12)),
    "LatentFromBatch": ({"batch_index": 0, "length": 1}, (1, 32, 3, 8, 8)),
    "LatentMultiply": ({"multiplier": 0.5}, (1, 32, 3, 8, 8)),
}


@stock("RepeatLatentBatch, LatentFlip, LatentUpscaleBy, LatentFromBatch, LatentMultiply", WORKS,
       "the roles stay with the latent; at another size the given pictures need a new role switch")
@pytest.mark.parametrize("kind", CHANGES)
def test_latent_nodes(comfy, kind):
    settings, shape = CHANGES[kind]
    prompt = scene() | {"made": ksampler(), "new": node(kind, samples=link("made"), **settings)}
    assert latents(comfy, prompt, "new")[0].shape == shape
    prompt["decoded"] = node("JodiLabelDecode", samples=link("new"), **VAE)
    assert pictures(comfy, prompt, "decoded").shape == (shape[0], 16 * shape[3], 16 * shape[4], 3)


@stock("LatentUpscale", LIMITED, "its pixels are eighths: the result is too large (four times with the published "
                                 "autoencoder). Use LatentUpscaleBy")
def test_upscale_in_pixels(comfy):
    prompt = scene() | {"made": ksampler(), "new": node("LatentUpscale", samples=link("made"), width=128, height=128,
                                                        upscale_method="bilinear", crop="disabled")}
    assert latents(comfy, prompt, "new")[0].shape == (1, 32, 3, 16, 16)    # 256 pixels at 16 per cell
    prompt["again"] = ksampler(latent_image=link("new"), denoise=0.5)
    with pytest.raises(ComfyError, match="Role Switch"):
        latents(comfy, prompt, "again")


@stock("LatentCut", LIMITED, "along t it removes domains, and Jodi Label Decode then says that the roles do not fit")
def test_cut_of_domains(comfy):
    prompt = scene() | {"made": ksampler(), "new": node("LatentCut", samples=link("made"), dim="t", index=0, amount=2)}
    made, cut = latents(comfy, prompt, "made", "new")
    assert difference(cut, made[:, :, DRAWN]) == 0
    prompt["decoded"] = node("JodiLabelDecode", samples=link("new"), **VAE)
    with pytest.raises(ComfyError, match="domains"):
        pictures(comfy, prompt, "decoded")


@stock("SaveLatent, LoadLatent", LIMITED, "exact for all domains or the image alone; a file has no roles, so for other "
                                          "choices connect the conditioning of the same role switch and use VAEDecode")
def test_saved_latent(comfy):
    prompt = scene()
    whole = node("JodiRoleSwitch", vae=link("load", 2), positive=link("text"), size="automatic", batch_size=1,
                 **dict.fromkeys(JODI_DOMAINS, "generate"))
    prompt |= {"all": whole, "part_made": ksampler(),
               "all_made": ksampler(positive=link("all"), negative=link("all", 1), latent_image=link("all", 2))}
    for made in ("all_made", "part_made"):
        first, = latents(comfy, prompt, made)
        prompt[f"{made}_again"] = loaded(comfy, made)
        assert difference(latents(comfy, prompt, f"{made}_again")[0], first) == 0
        prompt[f"{made}_decoded"] = node("JodiLabelDecode", samples=link(f"{made}_again"), **VAE)
    prompt["seen"] = node("VAEDecode", samples=link("varied"), **VAE)
    prompt["varied"] = ksampler(latent_image=link("part_made_again"), denoise=0.5)
    assert pictures(comfy, prompt, "all_made_decoded").shape == (1, 128, 128, 3)
    assert pictures(comfy, prompt, "seen").shape == (3, 128, 128, 3)
    with pytest.raises(ComfyError, match="no roles came along"):
        pictures(comfy, prompt, "part_made_decoded")


def loaded(server, name: str) -> dict:
    """A LoadLatent node of what the server has just saved, moved from its output to its input as a user does."""
    (server.base / "input").mkdir(exist_ok=True)
    newest = max((server.base / "output" / "latents").glob(f"{name}_*.latent"))
    shutil.copy(newest, server.base / "input" / f"{name}.latent")
    return node("LoadLatent", latent=f"{name}.latent")
