"""Model files on the real host: what is missing is told over HTTP, and files in 8 bits run."""

import pytest
import torch
from jodi_prompts import joint_prompt
from stock import ksampler, latents, scene

from jodi_core.convert import convert
from jodi_core.weights import tiny_bundle
from scripts.comfy import ComfyError


def test_a_missing_file_is_named_with_where_to_get_it(comfy):
    with pytest.raises(ComfyError) as failure:
        comfy.run(joint_prompt({"image": "generate"}, model="Jodi.pth"))
    told = str(failure.value)
    assert "'Jodi.pth' is not in models/diffusion_models" in told
    assert "https://huggingface.co/VIPL-GENUN/Jodi/resolve/main/Jodi.pth" in told


def test_files_in_8_bits_give_nearly_the_same(comfy):
    for kind, folder in (("transformer", "diffusion_models"), ("text_encoder", "text_encoders")):
        (comfy.base / "models" / folder).mkdir(parents=True, exist_ok=True)
        convert(tiny_bundle()[kind], comfy.base / "models" / folder / f"eight_{kind}.safetensors",
                dtype=torch.float8_e4m3fn)
    expected, = latents(comfy, scene() | {"made": ksampler()}, "made")
    small = scene(model="eight_transformer.safetensors", text_encoder="eight_text_encoder.safetensors")
    for dtype in ("default", "fp8_e4m3fn"):
        small["load"]["inputs"]["weight_dtype"] = dtype
        made, = latents(comfy, small | {"made": ksampler()}, "made")
        assert 0 < (made - expected).norm() / expected.norm() < 0.1
