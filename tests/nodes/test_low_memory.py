"""The host's low-memory path: parts of the network stay behind and are cast when they are used."""

import comfy.model_management
import comfy.sd
import pytest
import torch
from nodes_fixtures import switch

from jodi_pack.nodes.sampling import JodiJointSampler

LORA = {"diffusion_model.blocks.0.attn.qkv.lora_B.weight": torch.full((192, 2), 0.05),
        "diffusion_model.blocks.0.attn.qkv.lora_A.weight": torch.linspace(-1, 1, 128).reshape(2, 64),
        "diffusion_model.blocks.1.scale_shift_table.diff": torch.full((6, 64), 0.1)}


@pytest.mark.parametrize("lora", [{}, LORA], ids=["plain", "lora"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_partial_loading_is_bitwise_equal(loaded, monkeypatch, share, lora):
    original, _, vae = loaded
    conditioned = switch(vae, generate=("image", "depth"), condition=("normal",))

    def run(of):
        return JodiJointSampler.execute(of, *conditioned, seed=0, steps=2, cfg=3.0).result[0]["samples"]

    model, _ = comfy.sd.load_lora_for_models(original, None, lora, 1.0, 0)
    whole = run(model)
    comfy.model_management.unload_all_models()
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda *_, **__: None)    # would load the rest
    partial = model.clone()
    partial.load(partial.load_device, lowvram_model_memory=1 + int(share * partial.model_size()))
    assert partial.model.model_lowvram and partial.loaded_size() < partial.model_size()
    result = run(partial)
    assert partial.model.model_lowvram
    partial.unpatch_model()
    partial.model.model_loaded_weight_memory = 0
    assert torch.equal(result, whole)
