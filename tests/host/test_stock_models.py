"""The host's model nodes: patches, merges, files, caches, guidance, compilation."""

import json
import shutil

import pytest
import torch
from jodi_prompts import link, node
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from stock import (DRAWN, GIVEN, LIMITED, REFUSED, TABLE, WORKS, changed, difference, folder, ksampler, latents, scene,
                   stock, table)

from jodi_core.weights import tiny_bundle
from scripts.comfy import ComfyError

LORA = "stock_lora.safetensors"
MATRIX, TABLE_KEY, EMBEDDING = "blocks.0.attn.qkv.weight", "blocks.1.scale_shift_table", "domain_embedding"


def write(server, name: str, change, **config) -> None:
    """The tiny transformer after change(tensors), and with another configuration, among the host's models."""
    with safe_open(tiny_bundle()["transformer"], "pt") as opened:
        description = json.loads(opened.metadata()["jodi"])
    description["config"] |= config
    tensors = load_file(tiny_bundle()["transformer"])
    tensors = change(tensors) or tensors
    save_file({key: value.contiguous() for key, value in tensors.items()},
              folder(server, "diffusion_models") / name, {"jodi": json.dumps(description)})


def loader(name: str, dtype: str = "default") -> dict:
    entry = scene(model=name)["load"]
    entry["inputs"]["weight_dtype"] = dtype
    return entry


def patched(server, **nodes: dict) -> list[torch.Tensor]:
    return changed(server, scene() | {"plain": ksampler(steps=3)}, **nodes)


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@pytest.fixture(scope="module")
def lora(server) -> str:
    """A LoRA of a matrix and of two tables, and the file in which the same is merged."""
    tensors = load_file(tiny_bundle()["transformer"])
    up, down = numbers(tensors[MATRIX].shape[0], 2, seed=0), numbers(2, tensors[MATRIX].shape[1], seed=1)
    tables = {key: numbers(*tensors[key].shape, seed=2) for key in (TABLE_KEY, EMBEDDING)}
    save_file({"diffusion_model.blocks.0.attn.qkv.lora_B.weight": up,
               "diffusion_model.blocks.0.attn.qkv.lora_A.weight": down,
               **{f"diffusion_model.{key}.diff": value for key, value in tables.items()}},
              folder(server, "loras") / LORA)

    def merge(tensors):
        tensors[MATRIX] = tensors[MATRIX].float() + up @ down
        for key, value in tables.items():
            tensors[key] = tensors[key].float() + value
        return {key: value.float() for key, value in tensors.items()}

    write(server, "stock_merged.safetensors", merge)
    write(server, "stock_float.safetensors", lambda tensors: {key: value.float() for key, value in tensors.items()})
    return LORA


@stock("LoraLoaderModelOnly, LoraLoader", WORKS, "equal to merged weights, look-up tables included")
def test_lora(comfy, lora):
    prompt = scene(model="stock_float.safetensors") | {
        "merged": loader("stock_merged.safetensors"),
        "only": node("LoraLoaderModelOnly", model=link("load"), lora_name=lora, strength_model=1.0),
        "both": node("LoraLoader", model=link("load"), clip=link("load", 1), lora_name=lora, strength_model=1.0,
                     strength_clip=1.0),
        "a": ksampler(), "b": ksampler(model=link("only")), "c": ksampler(model=link("both")),
        "d": ksampler(model=link("merged"))}
    plain, only, both, merged = latents(comfy, prompt, "a", "b", "c", "d")
    assert difference(plain, merged) > 0.01
    assert difference(only, merged) < 1e-4 and difference(both, merged) < 1e-4


@stock("ModelMergeSimple, ModelSave", WORKS, "tables are merged too; Jodi Loader reads the saved file")
def test_merge_and_save(comfy, lora):
    def halfway(tensors):
        other = load_file(folder(comfy, "diffusion_models") / "stock_merged.safetensors")
        return {key: (value.float() + other[key]) / 2 for key, value in tensors.items()}

    write(comfy, "stock_halfway.safetensors", halfway)
    prompt = scene(model="stock_float.safetensors") | {
        "merged": loader("stock_merged.safetensors"), "halfway": loader("stock_halfway.safetensors"),
        "mix": node("ModelMergeSimple", model1=link("load"), model2=link("merged"), ratio=0.5),
        "file": node("ModelSave", model=link("mix"), filename_prefix="stock_mix"),
        "a": ksampler(model=link("mix")), "b": ksampler(model=link("halfway"))}
    mixed, expected = latents(comfy, prompt, "a", "b")
    assert difference(mixed, expected) < 1e-4
    shutil.copy(max((comfy.base / "output").glob("stock_mix_*.safetensors")),
                folder(comfy, "diffusion_models") / "stock_saved.safetensors")
    again, = latents(comfy, scene(model="stock_saved.safetensors") | {"made": ksampler()}, "made")
    assert difference(again, mixed) < 1e-4


@stock("CheckpointSave", WORKS, "one file with all parts; Jodi Loader reads it under `checkpoints: ...`")
def test_one_file_with_all_parts(comfy):
    saved = scene() | {"file": node("CheckpointSave", model=link("load"), clip=link("load", 1), vae=link("load", 2),
                                    filename_prefix="checkpoints/stock_all"), "made": ksampler()}
    expected, = latents(comfy, saved, "made")
    path = max((comfy.base / "output" / "checkpoints").glob("stock_all_*.safetensors"))
    prompt = scene(model=f"checkpoints: {path.name}", text_encoder="in the model file", vae="in the model file")
    again, = latents(comfy, prompt | {"made": ksampler()}, "made")
    assert difference(again, expected) < 1e-4


@stock("bf16, int8 and fp8 storage (Jodi Loader's weight_dtype)", WORKS,
       "small differences; with a LoRA on top as well")
def test_storage(comfy, lora):
    write(comfy, "stock_bf16.safetensors", lambda tensors: {key: value.bfloat16() for key, value in tensors.items()})
    models = {"bf16": loader("stock_bf16.safetensors"), "e4m3": loader("stock_float.safetensors", "fp8_e4m3fn"),
              "e5m2": loader("stock_float.safetensors", "fp8_e5m2"),
              "int8": loader("stock_float.safetensors", "int8"),
              "lora": node("LoraLoaderModelOnly", model=link("e4m3"), lora_name=lora, strength_model=1.0)}
    prompt = scene(model="stock_float.safetensors") | models | {"made": ksampler()} | {
        f"made_{name}": ksampler(model=link(name)) for name in models}
    plain, *stored = latents(comfy, prompt, "made", *(f"made_{name}" for name in models))
    bf16, e4m3, e5m2, int8, with_lora = (float((made - plain).abs().mean() / plain.abs().mean()) for made in stored)
    assert 0 < bf16 < int8 < e4m3 < e5m2 < 0.5
    assert with_lora > e4m3 and stored[-1].isfinite().all()


@stock("EasyCache, LazyCache", WORKS, "skip steps, at a price: docs/performance.md; given pictures stay exact")
@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_step_caches(comfy, kind):
    cache = node(kind, model=link("load"), reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=False)
    prompt = scene() | {"new": cache, "plain": ksampler(steps=8), "made": ksampler(steps=8, model=link("new"))}
    plain, made = latents(comfy, prompt, "plain", "made")
    assert 0 < difference(made[:, :, DRAWN], plain[:, :, DRAWN]) < 2    # steps were skipped
    assert difference(made[:, :, GIVEN], plain[:, :, GIVEN]) < 1e-4


@stock("CFGOverride", WORKS,
       "with cfg 1 no guidance in a part of the run, and half of the work there: docs/performance.md")
def test_no_guidance_in_a_part(comfy):
    """The second half without guidance is what a second stage with cfg 1 makes of the first."""
    stage = {"positive": link("roles"), "negative": link("roles", 1), "noise_seed": 1, "steps": 4,
             "sampler_name": "euler", "scheduler": "simple", "model": link("load")}
    prompt = scene() | {
        "new": node("CFGOverride", model=link("load"), cfg=1.0, start_percent=0.4, end_percent=1.0),
        "plain": ksampler(steps=4), "made": ksampler(steps=4, model=link("new")),
        "first": node("KSamplerAdvanced", **stage, cfg=3.0, add_noise="enable", latent_image=link("roles", 2),
                      start_at_step=0, end_at_step=2, return_with_leftover_noise="enable"),
        "second": node("KSamplerAdvanced", **stage, cfg=1.0, add_noise="disable", latent_image=link("first"),
                       start_at_step=2, end_at_step=4, return_with_leftover_noise="disable")}
    plain, made, stages = latents(comfy, prompt, "plain", "made", "second")
    assert difference(made, stages) < 1e-5 < difference(made, plain)


GUIDANCE = {
    "RescaleCFG": {"multiplier": 0.7}, "CFGZeroStar": {}, "CFGNorm": {"strength": 1.0}, "TCFG": {}, "Mahiro": {},
    "RenormCFG": {"cfg_trunc": 1.0, "renorm_cfg": 0.5}, "ModelComputeDtype": {"dtype": "bf16"},
    "FreSca": {"scale_low": 1.0, "scale_high": 1.25, "freq_cutoff": 2}, "ModelSamplingSD3": {"shift": 6.0}}


@stock("RescaleCFG, CFGZeroStar, CFGNorm, RenormCFG, TCFG, Mahiro, FreSca, ModelComputeDtype, ModelSamplingSD3", WORKS,
       "change what is drawn; given pictures stay exact")
@pytest.mark.parametrize("kind", GUIDANCE)
def test_guidance_and_precision(comfy, kind):
    plain, made = patched(comfy, new=node(kind, model=link("load"), **GUIDANCE[kind]))
    assert made.isfinite().all() and difference(made[:, :, GIVEN], plain[:, :, GIVEN]) < 1e-4
    assert difference(made, plain) > 1e-4


@stock("ModelSamplingSD3 with shift 3", WORKS, "is the model's own")
def test_own_shift(comfy):
    plain, made = patched(comfy, new=node("ModelSamplingSD3", model=link("load"), shift=3.0))
    assert difference(made, plain) < 1e-6


@stock("SkipLayerGuidanceDiT", LIMITED, "runs without effect: the blocks of this network cannot be skipped one by one")
def test_skip_layers(comfy):
    plain, made = patched(comfy, new=node(
        "SkipLayerGuidanceDiT", model=link("load"), double_layers="1", single_layers="1", scale=3.0, start_percent=0.0,
        end_percent=1.0, rescaling_scale=0.0))
    assert difference(made, plain) < 1e-4


@stock("ModelSamplingAuraFlow, ModelSamplingFlux and others of this kind", REFUSED,
       "their times are not this model's, in 0..1000: a message names ModelSamplingSD3")
@pytest.mark.parametrize("kind, inputs", [
    ("ModelSamplingAuraFlow", {"shift": 3.0}), ("ModelSamplingDiscrete", {"sampling": "eps", "zsnr": False}),
    ("ModelSamplingFlux", {"max_shift": 1.15, "base_shift": 0.5, "width": 128, "height": 128})])
def test_other_times(comfy, kind, inputs):
    with pytest.raises(ComfyError, match="Use ModelSamplingSD3 to change its shift"):
        patched(comfy, new=node(kind, model=link("load"), **inputs))


@stock("Load Diffusion Model, Load VAE", REFUSED, "fail on our files, which look like another model's: use Jodi Loader")
@pytest.mark.parametrize("kind, part, place, field", [
    ("UNETLoader", "transformer", "diffusion_models", "unet_name"), ("VAELoader", "autoencoder", "vae", "vae_name")])
def test_stock_loaders(comfy, kind, part, place, field):
    shutil.copy(tiny_bundle()[part], folder(comfy, place) / f"stock_{part}.safetensors")
    load = node(kind, **{field: f"stock_{part}.safetensors"})
    prompt = scene() | {"stock": load}
    if part == "transformer":
        load["inputs"]["weight_dtype"] = "default"
        prompt["made"] = ksampler(model=link("stock"))
    else:
        prompt["made"] = node("VAEEncode", pixels=link("flat"), vae=link("stock"))
    with pytest.raises(ComfyError):
        latents(comfy, prompt, "made")


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no compiler")
@stock("TorchCompileModel", WORKS,
       "needs a compiler; compiles once per choice of roles, not again for a choice that was there before: "
       "docs/performance.md")
def test_compilation(comfy):
    """One block, without guidance: what costs time here is the compiler."""
    write(comfy, "stock_shallow.safetensors", lambda tensors: {
        key: value for key, value in tensors.items() if not key.startswith("blocks.") or key.startswith("blocks.0.")},
        depth=1)
    prompt = scene(model="stock_shallow.safetensors") | {
        "new": node("TorchCompileModel", model=link("load"), backend="inductor"),
        "plain": ksampler(cfg=1.0), "made": ksampler(cfg=1.0, model=link("new"))}
    plain, made = latents(comfy, prompt, "plain", "made")
    assert difference(made, plain) < 1e-4


def test_table_is_up_to_date():
    assert TABLE.read_text(encoding="utf-8") == table(), "run: python tests/host/stock_table.py"
