"""The host's own nodes behind JointNet Loader: patches of U-Nets, guidance, LoRA, ControlNet, regions."""

import pytest
import torch
from jodi_prompts import TINY, joint_prompt, link, node
from safetensors.torch import save_file
from stock import LIMITED, REFUSED, WORKS, changed, difference, folder, latents, left_half, stock
from stock import ksampler as stock_ksampler

from scripts.comfy import ComfyError

GIVEN = 1    # slot of the depth, of which a picture is drawn
LAYER = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


def ksampler(**changes) -> dict:
    return stock_ksampler(**{"steps": 3, "scheduler": "ddim_uniform"} | changes)


def scene(size: int = 128, **sampler) -> dict:
    """A picture of a depth; the sampler is "plain"."""
    prompt = joint_prompt({"image": "generate", "depth": "picture"})
    kept = {name: prompt[name] for name in ("text", "roles")}
    kept["roles"]["inputs"]["size"] = "like the picture"
    return kept | {
        "load": node("JodiJointNetLoader", model_name=TINY, text_encoder_name=TINY, vae_name=TINY,
                     weight_dtype="default"),
        "text2": node("CLIPTextEncode", clip=link("load", 1), text="a blue car on the right"),
        "picture": node("EmptyImage", width=size, height=size, batch_size=1, color=0x80A0FF),
        "plain": ksampler(**sampler)}


def generation(**sampler) -> dict:
    """A picture and its depth."""
    prompt = scene(**sampler)
    prompt["roles"]["inputs"] |= {"depth": "generate", "size": "automatic"}
    return prompt


@stock("KSampler", WORKS,
       "euler with ddim_uniform visits the published noise levels (docs/jointnet.md); given pictures stay")
@pytest.mark.parametrize("sampler, scheduler", [
    ("dpmpp_2m", "karras"), ("ddim", "normal"), ("euler_ancestral", "simple"), ("deis", "ddim_uniform")])
def test_samplers(comfy, sampler, scheduler):
    prompt = scene() | {"other": ksampler(sampler_name=sampler, scheduler=scheduler)}
    plain, other = latents(comfy, prompt, "plain", "other")
    assert other.isfinite().all() and difference(other[:, :, GIVEN], plain[:, :, GIVEN]) < 1e-3
    assert difference(other, plain) > 1e-3


GUIDANCE = {
    "RescaleCFG": {"multiplier": 0.7}, "CFGZeroStar": {}, "CFGNorm": {"strength": 1.0}, "TCFG": {}, "Mahiro": {},
    "RenormCFG": {"cfg_trunc": 100.0, "renorm_cfg": 0.5}, "PerturbedAttentionGuidance": {"scale": 3.0},
    "PerpNeg": {"empty_conditioning": link("text2"), "neg_scale": 1.0},
    "APG": {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.0}}


@stock("RescaleCFG, CFGZeroStar, CFGNorm, RenormCFG, TCFG, Mahiro, APG, PerturbedAttentionGuidance, PerpNeg", WORKS,
       "change what is drawn; given pictures stay exact")
@pytest.mark.parametrize("kind", GUIDANCE)
def test_guidance(comfy, kind):
    plain, made = changed(comfy, scene(), new=node(kind, model=link("load"), **GUIDANCE[kind]))
    assert made.isfinite().all() and difference(made[:, :, GIVEN], plain[:, :, GIVEN]) < 1e-6
    assert difference(made, plain) > 1e-4


@stock("FreeU, FreeU_V2", WORKS,
       "act on both U-Nets where their widths are those of Stable Diffusion; with the tiny model's nothing changes")
@pytest.mark.parametrize("kind", ["FreeU", "FreeU_V2"])
def test_freed_skips(comfy, kind):
    plain, made = changed(comfy, scene(), new=node(kind, model=link("load"), b1=1.3, b2=1.4, s1=0.9, s2=0.2))
    assert difference(made, plain) < 1e-6


@stock("HyperTile, TomePatchModel", WORKS,
       "cut or merge the tokens of large pictures, in both U-Nets; the latter at the finest level, where the tiny "
       "model has no attention")
@pytest.mark.parametrize("kind, inputs, effect", [
    ("HyperTile", {"tile_size": 64, "swap_size": 1, "max_depth": 1, "scale_depth": False}, True),
    ("TomePatchModel", {"ratio": 0.5}, False)])
def test_fewer_tokens(comfy, kind, inputs, effect):
    plain, made = changed(comfy, scene(512), new=node(kind, model=link("load"), **inputs))
    assert difference(made[:, :, GIVEN], plain[:, :, GIVEN]) < 1e-6
    assert (difference(made, plain) > 1e-4) == effect and made.isfinite().all()


@stock("EasyCache, LazyCache", WORKS, "skip steps; given pictures stay exact")
@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_step_caches(comfy, kind):
    cache = node(kind, model=link("load"), reuse_threshold=1.0, start_percent=0.0, end_percent=1.0, verbose=False)
    plain, made = changed(comfy, scene(steps=8), new=cache)
    assert difference(made[:, :, GIVEN], plain[:, :, GIVEN]) < 1e-6 and 0 < difference(made, plain) < 2


@stock("LoraLoaderModelOnly, LoraLoader", WORKS,
       "of Stable Diffusion 2.1, on the picture's U-Net; behind JointNet LoRA on Depth on both")
def test_lora(comfy):
    save_file({f"lora_unet_{LAYER}.lora_up.weight": torch.full((64, 2), 0.5),
               f"lora_unet_{LAYER}.lora_down.weight": torch.linspace(-1, 1, 128).reshape(2, 64)},
              folder(comfy, "loras") / "stock_jointnet.safetensors")
    plain, made, more = latents(comfy, generation() | {
        "lora": node("LoraLoaderModelOnly", model=link("load"), lora_name="stock_jointnet.safetensors",
                     strength_model=1.0),
        "both": node("JodiJointNetLoraOnDepth", model=link("lora"), strength=1.0),
        "made": ksampler(model=link("lora")),
        "more": ksampler(model=link("both"))}, "plain", "made", "more")
    assert difference(made, plain) > 1e-4 and difference(more, made) > 1e-4


@stock("ControlNetApplyAdvanced, with T2I adapters, too", REFUSED,
       "made for one picture; a message names the role switch's conditions")
def test_controlnet(comfy):
    save_file({"lora_controlnet": torch.zeros(1)}, folder(comfy, "controlnet") / "stock_control.safetensors")
    prompt = generation() | {
        "net": node("ControlNetLoader", control_net_name="stock_control.safetensors"),
        "apply": node("ControlNetApplyAdvanced", vae=link("load", 2), positive=link("roles"), negative=link("roles", 1),
                      control_net=link("net"), image=link("picture"), strength=1.0, start_percent=0.0, end_percent=1.0),
        "made": ksampler(positive=link("apply"), negative=link("apply", 1))}
    with pytest.raises(ComfyError, match="give its picture to Jodi Role Switch as a condition"):
        latents(comfy, prompt, "made")


@stock("ConditioningCombine, ConditioningSetMask, ConditioningSetTimestepRange", WORKS,
       "after the role switch, as for Jodi")
def test_regions(comfy):
    prompt = generation()
    prompt |= left_half() | {
        "roles2": node("JodiRoleSwitch", **prompt["roles"]["inputs"] | {"positive": link("text2")}),
        "region": node("ConditioningSetMask", conditioning=link("roles2"), mask=link("mask"), strength=1.0,
                       set_cond_area="default"),
        "span": node("ConditioningSetTimestepRange", conditioning=link("region"), start=0.0, end=0.5),
        "all": node("ConditioningCombine", conditioning_1=link("roles"), conditioning_2=link("span")),
        "made": ksampler(positive=link("all"))}
    plain, made = latents(comfy, prompt, "plain", "made")
    assert made.isfinite().all() and difference(made, plain) > 1e-4


@stock("SetLatentNoiseMask, DifferentialDiffusion", WORKS, "one region, or one strength per place, for both domains")
def test_regions_of_the_latent(comfy):
    """The left half anew; the right one in the last steps only, of a strength of 0.3."""
    prompt = generation() | left_half(right=0.3) | {
        "masked": node("SetLatentNoiseMask", samples=link("plain"), mask=link("mask")),
        "new": node("DifferentialDiffusion", model=link("load"), strength=1.0),
        "made": ksampler(steps=4, seed=5, model=link("new"), latent_image=link("masked"))}
    plain, made = latents(comfy, prompt, "plain", "made")
    change = (made - plain).abs().mean(dim=(0, 1, 3))    # domain, column
    assert (change[:, :4].mean(dim=1) > 2 * change[:, 4:].mean(dim=1)).all() and (change > 0).all()


@stock("VAEDecode", WORKS, "both domains as a batch, without post-processing")
def test_decoding(comfy):
    outputs = comfy.run(generation() | {"pictures": node("VAEDecode", samples=link("plain"), vae=link("load", 2)),
                                        "save": node("SaveImage", images=link("pictures"), filename_prefix="stock_jn")})
    assert len(outputs["save"]["images"]) == 2


@stock("ModelSamplingSD3, ModelSamplingFlux and others of flows", LIMITED,
       "run, as on Stable Diffusion, and draw nothing of use: this model predicts noise")
def test_times_of_flows(comfy):
    plain, made = changed(comfy, scene(), new=node("ModelSamplingSD3", model=link("load"), shift=3.0))
    assert difference(made, plain) > 0.1
