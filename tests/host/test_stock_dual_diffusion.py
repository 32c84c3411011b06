"""The host's own nodes behind Load Dual Diffusion, for its pictures."""

import pytest
import torch
from jodi_prompts import TINY, link, node
from safetensors.torch import save_file
from stock import LIMITED, REFUSED, WORKS, changed, difference, folder, latents, left_half, stock
from stock import ksampler as stock_ksampler

from scripts.comfy import ComfyError

LAYER = "transformer_blocks.0.attn.to_q"


def ksampler(**changes) -> dict:
    return stock_ksampler(**{"positive": link("text"), "negative": link("text2"), "latent_image": link("empty"),
                             "steps": 3, "scheduler": "normal"} | changes)


def scene(**sampler) -> dict:
    """A picture of a text; the sampler is "plain"."""
    encode = {"clip": link("load", 1), "length": 0, "padding": "as trained"}
    return {
        "load": node("JodiDualDiffusionLoader", model_name=TINY, text_encoder_name="in the model folder",
                     vae_name="in the model folder", mask_embedding="in the text encoder"),
        "text": node("JodiDualDiffusionTextEncode", text="a red house on green grass", **encode),
        "text2": node("JodiDualDiffusionTextEncode", text="", **encode),
        "empty": node("EmptySD3LatentImage", width=128, height=128, batch_size=1), "plain": ksampler(**sampler)}


@stock("KSampler", WORKS, "euler with normal is the published sampler")
@pytest.mark.parametrize("sampler, scheduler", [
    ("dpmpp_2m", "simple"), ("heun", "beta"), ("euler_ancestral", "normal")])
def test_samplers(comfy, sampler, scheduler):
    prompt = scene() | {"other": ksampler(sampler_name=sampler, scheduler=scheduler)}
    plain, other = latents(comfy, prompt, "plain", "other")
    assert other.isfinite().all() and 1e-3 < difference(other, plain) < 2


@stock("CLIPTextEncode", WORKS, "as Dual Diffusion Text Encode with the length that the model was trained on")
def test_prompt(comfy):
    prompt = scene() | {
        "stock": node("CLIPTextEncode", clip=link("load", 1), text="a red house on green grass"),
        "other": ksampler(positive=link("stock"))}
    plain, other = latents(comfy, prompt, "plain", "other")
    assert torch.equal(plain, other)


@stock("CLIPTextEncodeSD3", REFUSED, "the model has none of its CLIPs: use Dual Diffusion Text Encode")
def test_prompt_of_stable_diffusion_3(comfy):
    prompt = scene() | {
        "stock": node("CLIPTextEncodeSD3", clip=link("load", 1), clip_l="", clip_g="", t5xxl="", empty_padding="none"),
        "other": ksampler(positive=link("stock"))}
    with pytest.raises(ComfyError, match="use Dual Diffusion Text Encode"):
        latents(comfy, prompt, "other")


PATCHES = {
    "RescaleCFG": {"multiplier": 0.7}, "CFGZeroStar": {}, "CFGNorm": {"strength": 0.5}, "TCFG": {},
    "RenormCFG": {"cfg_trunc": 1.0, "renorm_cfg": 0.5}, "APG": {"eta": 0.5, "norm_threshold": 5.0, "momentum": 0.0},
    "PerpNeg": {"empty_conditioning": link("text2"), "neg_scale": 1.0}, "ModelSamplingSD3": {"shift": 5.0},
    "CFGOverride": {"cfg": 1.0, "start_percent": 0.0, "end_percent": 1.0},
    "EasyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
    "LazyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}}


@stock("RescaleCFG, CFGZeroStar, CFGNorm, RenormCFG, TCFG, APG, PerpNeg, CFGOverride, EasyCache, LazyCache, "
       "ModelSamplingSD3", WORKS, "change what is drawn")
@pytest.mark.parametrize("kind", PATCHES)
def test_patches(comfy, kind):
    plain, made = changed(comfy, scene(steps=8), new=node(kind, model=link("load"), **PATCHES[kind]))
    assert made.isfinite().all() and 1e-6 < difference(made, plain) < 2


@stock("SkipLayerGuidanceSD3, PerturbedAttentionGuidance", LIMITED,
       "run without effect: this network has no places for them")
@pytest.mark.parametrize("kind, inputs", [
    ("SkipLayerGuidanceSD3", {"layers": "1", "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0}),
    ("PerturbedAttentionGuidance", {"scale": 3.0})])
def test_patches_without_effect(comfy, kind, inputs):
    plain, made = changed(comfy, scene(), new=node(kind, model=link("load"), **inputs))
    assert difference(made, plain) < 1e-4


@stock("ModelSamplingAuraFlow, ModelSamplingFlux and others of this kind", REFUSED, "a message names ModelSamplingSD3")
def test_other_times(comfy):
    with pytest.raises(ComfyError, match="Use ModelSamplingSD3 to change its shift"):
        changed(comfy, scene(), new=node("ModelSamplingAuraFlow", model=link("load"), shift=3.0))


@stock("LoraLoaderModelOnly, LoraLoader", LIMITED,
       "with this model's own names, `diffusion_model.transformer_blocks...`, on pictures and texts; those of Stable "
       "Diffusion 3 are not found, and the log says so")
@pytest.mark.parametrize("prefix", ["diffusion_model", "transformer"])
def test_lora(comfy, prefix):
    save_file({f"{prefix}.{LAYER}.lora_B.weight": torch.full((128, 2), 0.2),
               f"{prefix}.{LAYER}.lora_A.weight": torch.linspace(-1, 1, 256).reshape(2, 128)},
              folder(comfy, "loras") / f"stock_{prefix}.safetensors")
    plain, made = changed(comfy, scene(), new=node("LoraLoaderModelOnly", model=link("load"),
                                                   lora_name=f"stock_{prefix}.safetensors", strength_model=1.0))
    if prefix == "diffusion_model":
        assert difference(made, plain) > 1e-4
    else:
        assert torch.equal(made, plain) and f"lora key not loaded: {prefix}.{LAYER}" in comfy.log_text()


@stock("VAEEncode, KSampler with denoise below 1, SetLatentNoiseMask, DifferentialDiffusion", WORKS,
       "image to image, and inpainting; what is not masked stays")
def test_parts_of_a_picture(comfy):
    prompt = scene() | left_half() | {
        "picture": node("EmptyImage", width=128, height=128, batch_size=1, color=0x80A0FF),
        "encoded": node("VAEEncode", pixels=link("picture"), vae=link("load", 2)),
        "masked": node("SetLatentNoiseMask", samples=link("encoded"), mask=link("mask")),
        "new": node("DifferentialDiffusion", model=link("load"), strength=1.0),
        "made": ksampler(model=link("new"), latent_image=link("masked"), denoise=0.7)}
    encoded, made = latents(comfy, prompt, "encoded", "made")
    columns = encoded.shape[-1] // 2
    assert difference(made[..., columns:], encoded[..., columns:]) < 1e-6
    assert difference(made[..., :columns], encoded[..., :columns]) > 1e-2


@stock("ConditioningCombine, ConditioningSetArea, ConditioningSetTimestepRange", WORKS, "regions and times of prompts")
def test_regions(comfy):
    prompt = scene() | {
        "area": node("ConditioningSetArea", conditioning=link("text"), width=64, height=128, x=0, y=0, strength=1.0),
        "span": node("ConditioningSetTimestepRange", conditioning=link("area"), start=0.0, end=0.6),
        "all": node("ConditioningCombine", conditioning_1=link("span"), conditioning_2=link("text2")),
        "made": ksampler(positive=link("all"))}
    plain, made = latents(comfy, prompt, "plain", "made")
    assert made.isfinite().all() and difference(made, plain) > 1e-4
