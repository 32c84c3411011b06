"""Weights in the host's 8-bit integers: near the exact ones, under LoRA, and saved for anything to read."""

import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from nodes_fixtures import relative, switch, text
from safetensors.torch import load_file

from jodi_core.weights import tiny_bundle
from jodi_pack.nodes.host.int8 import from_int8, to_int8
from jodi_pack.nodes.loader import TINY, JodiLoader
from jodi_pack.nodes.sampling import JodiJointSampler

PARTS = {"generate": ("image", "depth"), "condition": ("normal",)}


@pytest.fixture(scope="module")
@torch.inference_mode()
def tiny():
    return {kind: JodiLoader.execute(TINY, TINY, TINY, kind).result for kind in ("default", "fp8_e4m3fn", "int8")}


def error(one, exact):
    return float((one - exact).norm() / exact.norm())


def test_there_and_back():
    tensors = load_file(tiny_bundle()["transformer"])
    stored = to_int8(tensors)
    back = from_int8(stored)
    quantised = [name for name, tensor in stored.items() if tensor.dtype == torch.int8]
    assert back.keys() == tensors.keys() and quantised and all(".attn." in name or ".cross_attn." in name
                                                               for name in quantised)
    for name, tensor in tensors.items():
        limit = 0.03 if name in quantised else 0
        assert error(back[name].float(), tensor.float()) <= limit


def test_nearer_to_the_exact_model_than_fp8(tiny):
    model, clip, vae = tiny["default"]
    parts = switch(vae, text(clip, "a red house on the left"), None, **PARTS)
    exact, fp8, int8 = (JodiJointSampler.execute(loaded[0], *parts, 1, 4, 3.0).result[0]["samples"]
                        for loaded in tiny.values())
    print(error(fp8, exact), error(int8, exact))
    assert 0 < error(int8, exact) < 0.5 * error(fp8, exact)
    weight = tiny["int8"][0].model.diffusion_model.blocks[0].attn.qkv.weight
    assert isinstance(weight, QuantizedTensor) and relative(int8[:, :, 2], exact[:, :, 2]) < 1e-5


def test_lora_and_saving(tiny, tmp_path):
    """A patched matrix acts as on the exact model; what is saved is a plain file with the patch in it."""
    import comfy.sd
    key = "diffusion_model.blocks.0.attn.qkv.weight"
    shape = tiny["default"][0].model.diffusion_model.blocks[0].attn.qkv.weight.shape
    change = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1
    clip, vae = tiny["default"][1:]
    parts, made = switch(vae, text(clip, "a red house on the left"), None, **PARTS), {}
    for kind in ("default", "int8"):
        patched = tiny[kind][0].clone()
        patched.add_patches({key: ("diff", (change,))})
        made[kind] = JodiJointSampler.execute(patched, *parts, 1, 4, 3.0).result[0]["samples"]
    assert error(made["int8"], made["default"]) < 0.1
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), patched)
    from jodi_pack.nodes.host.model import load_model
    again = load_model(str(tmp_path / "saved.safetensors"))
    assert error(JodiJointSampler.execute(again, *parts, 1, 4, 3.0).result[0]["samples"], made["int8"]) < 0.05
