"""Fixtures for the adapters, tested inside this process with the real host's modules (but without its server)."""

import importlib.util
import os
import pathlib
import sys

import pytest
import torch

if importlib.util.find_spec("comfy") is None:    # no ComfyUI: set COMFYUI_DIR
    collect_ignore_glob = ["test_*.py"]

PRETENDED = os.environ.get("JODI_TEST_DEVICE") == "pretended"
if PRETENDED:    # those that reach for weights and latents themselves, as if all were on the CPU, or compile
    collect_ignore = [f"test_{name}.py" for name in (
        "adapters", "compiled_model", "cpu_layers", "dual_diffusion_parity", "int8", "jointnet_host", "jointnet_loader",
        "jointnet_parity", "low_memory", "panorama", "parity", "saved_models", "trained_lora")]

TESTS = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(pathlib.Path(__file__).parent))    # nodes_fixtures


def neighbour(name: str):
    """The conftest of a sibling folder, whose fixtures pytest does not share."""
    spec = importlib.util.spec_from_file_location(f"{name}_fixtures", TESTS / name / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tiny_folder = neighbour("core").tiny_folder
tiny_files = neighbour("core").tiny_files


@pytest.fixture(scope="session", autouse=True)
def other_device():
    """With JODI_TEST_DEVICE=pretended the host computes on a device that shares no tensors with the CPU."""
    if not PRETENDED:
        yield
        return
    import comfy.model_management as management
    from pretended import DEVICE, pretended
    cpu, plenty = torch.device("cpu"), 2 ** 36
    with pytest.MonkeyPatch.context() as patch:
        for name in ("get_torch_device", "text_encoder_device", "vae_device"):
            patch.setattr(management, name, lambda *_, **__: DEVICE)
        for name in ("unet_offload_device", "vae_offload_device", "text_encoder_offload_device"):
            patch.setattr(management, name, lambda: cpu)
        for name in ("should_use_fp16", "should_use_bf16"):
            patch.setattr(management, name, lambda *_, **__: False)
        patch.setattr(management, "get_free_memory", lambda _=None, torch_free_too=False: (
            (plenty, plenty) if torch_free_too else plenty))
        patch.setattr(management, "get_total_memory", lambda _=None, torch_total_too=False: (
            (plenty, plenty) if torch_total_too else plenty))
        with pretended():
            yield


@pytest.fixture(autouse=True)
def no_gradients():
    """The host runs nodes in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def model_a(tmp_path_factory):
    """MODEL with the original's random weights, in float32."""
    from jodi_core.models.jodi import JodiConfig
    from jodi_core.weights import write_model
    from nodes_fixtures import golden
    from jodi_pack.nodes.host.model import load_model
    config = JodiConfig.from_reference(golden("model_a.json")["model"])
    tensors = {name: value.float() for name, value in golden("model_a.weights.safetensors").items()}
    path = tmp_path_factory.mktemp("golden") / "model_a.safetensors"
    write_model(path, "transformer", config, tensors)
    return load_model(str(path))


@pytest.fixture(scope="session")
def loaded(tiny_files):
    """MODEL, CLIP and VAE of the random tiny model."""
    from jodi_pack.nodes.host.model import load_model
    from jodi_pack.nodes.host.text import load_clip
    from jodi_pack.nodes.host.vae import load_vae
    model = load_model(str(tiny_files["transformer"]))
    return (model, load_clip(str(tiny_files["text_encoder"])),
            load_vae(str(tiny_files["autoencoder"]), model.model.diffusion_model.config))
