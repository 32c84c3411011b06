"""Models of other sizes and with other domains, through Jodi Loader to pictures."""

import dataclasses

import folder_paths
import pytest
import torch
from jodi_core.models.jodi import JodiConfig, JodiTransformer
from jodi_core.weights import expected_shapes, read_transformer, write_model
from jodi_pack.nodes.decode import JodiDomainDecode, JodiLabelDecode
from jodi_pack.nodes.host.model import load_model
from jodi_pack.nodes.loader import NO_TEXT, JodiLoader
from jodi_pack.nodes.roles import JodiDomain, JodiRoleSwitch
from jodi_pack.nodes.sampling import JodiJointSampler
from nodes_fixtures import PICTURE, choices
from safetensors.torch import save_file


@pytest.fixture
def load(tiny_files, tmp_path, monkeypatch):
    """Jodi Loader on a model with these domains, with the random tiny autoencoder."""
    def run(domains):
        config = dataclasses.replace(read_transformer(tiny_files["transformer"])[0], domains=domains)
        torch.manual_seed(0)
        network = JodiTransformer(config)
        network.init_weights()
        write_model(tmp_path / "m.safetensors", "transformer", config, network.state_dict())
        for folder, path in (("diffusion_models", tmp_path), ("vae", tiny_files["autoencoder"].parent)):
            monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, ([str(path)], {".safetensors"}))
        folder_paths.filename_list_cache.clear()
        return JodiLoader.execute("m.safetensors", NO_TEXT, "autoencoder.safetensors", "default").result
    yield run
    folder_paths.filename_list_cache.clear()


def more(**roles):
    """The input `more` of the role switch: a chain of Jodi Domain."""
    told = None
    for name, role in roles.items():
        given = {"domain_picture": PICTURE} if role == "condition" else {}
        told, = JodiDomain.execute(name, {"domain": role} | given, told).result
    return told


@pytest.mark.parametrize("domains, roles, extra, made", [
    (("image", "depth"), {"generate": ["depth"], "condition": ["image"]}, {}, ["depth"]),
    (("image", "heat", "edge", "flow", "night"), {"generate": ["image", "edge"]},
     {"heat": "generate", "flow": "condition", "night": "ignore"}, ["image", "edge", "heat"]),
    (("photo", *(f"layer {number}" for number in range(8))), {}, {"photo": "condition", "layer 7": "generate"},
     ["layer 7"]),
])
def test_other_domains(load, domains, roles, extra, made):
    model, _, vae = load(domains)
    assert model.model.diffusion_model.config.domains == domains
    conditioned = JodiRoleSwitch.execute(vae, {"size": "automatic"}, 1, more=more(**extra), **choices(**roles)).result
    latent = JodiJointSampler.execute(model, *conditioned, seed=0, steps=2, cfg=1.0).result[0]
    sheet = JodiLabelDecode.execute(latent, vae).result[-1]
    assert sheet.isfinite().all() and sheet.std() > 0
    pictures = [JodiDomainDecode.execute(latent, vae, name).result[0] for name in made]
    assert all(picture.shape == pictures[0].shape and picture.std() > 0 for picture in pictures)


@pytest.mark.parametrize("width, heads, patch", [(1152, 16, 1), (1152, 16, 2), (2240, 20, 1)])
def test_published_widths_without_metadata(tmp_path, width, heads, patch):
    """One block of 600M or 1600M as an original file: bare tensors, a checkpoint's prefix and a stray key."""
    config = JodiConfig(hidden_size=width, num_heads=heads, patch_size=patch, depth=1)
    shapes = expected_shapes("transformer", config)
    tensors = {f"model.diffusion_model.{name}": torch.zeros(shape, dtype=torch.bfloat16)
               for name, shape in shapes.items()}
    tensors["model.diffusion_model.pos_embed"] = torch.zeros(1, 4)
    save_file(tensors, tmp_path / "x.safetensors")
    model = load_model(str(tmp_path / "x.safetensors"), {"dtype": torch.bfloat16})
    assert model.model.diffusion_model.config.to_dict() == config.to_dict()
    assert model.model.latent_format.spacial_downscale_ratio == 32
