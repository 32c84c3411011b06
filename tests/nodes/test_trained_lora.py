"""Changes that the trainer wrote, put on by the host's own LoRA loader: equal to the merged weights."""

import pytest
import torch
from nodes import LoraLoaderModelOnly
from nodes_fixtures import relative, switch

from jodi_core.files import write_safetensors
from jodi_core.weights import load_transformer, write_model
from jodi_pack.nodes.host.model import load_model
from jodi_pack.nodes.sampling import JodiJointSampler
from training.adapters import adapter_tensors, adapters_of, add_adapters, merge_adapters
from training.config import AdapterConfig


@pytest.mark.parametrize("magnitudes", [False, True], ids=["lora", "dora"])
def test_stock_loader(loaded, tiny_files, tmp_path, monkeypatch, magnitudes):
    import folder_paths
    model, _, vae = loaded
    with torch.inference_mode(False), torch.no_grad():    # as the trainer runs, which is no node
        network = load_transformer(tiny_files["transformer"], device="cpu", dtype=torch.float32)
        add_adapters(network, AdapterConfig(rank=4, alpha=2.0), magnitudes)
        generator = torch.Generator().manual_seed(0)
        for adapter in adapters_of(network).values():
            adapter.up.data = torch.randn(adapter.up.shape, generator=generator) * 0.2
            if magnitudes:
                adapter.magnitude.data *= 1.2
        write_safetensors(tmp_path / "change.safetensors", adapter_tensors(network), {})
        merge_adapters(network)
        write_model(tmp_path / "merged.safetensors", "transformer", network.config, network.state_dict())
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", lambda kind, name: str(tmp_path / name))
    changed, = LoraLoaderModelOnly().load_lora_model_only(model, "change.safetensors", 1.0)
    conditioned = switch(vae, generate=("image", "depth"))
    plain, stock, merged = (JodiJointSampler.execute(one, *conditioned, 3, 3, 1.0).result[0]["samples"]
                            for one in (model, changed, load_model(str(tmp_path / "merged.safetensors"))))
    assert relative(plain, merged) > 1e-2
    assert relative(stock, merged) < 1e-5
