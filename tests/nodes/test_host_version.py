"""Another version of the host: what is missing is named, with the version."""

import importlib

import comfy.sd
import pytest
from comfyui_version import __version__

from jodi_pack.nodes.host import version
from jodi_pack.nodes.host.model import load_model
from jodi_pack.nodes.host.text import load_clip
from jodi_pack.nodes.host.vae import load_vae


def test_this_host_has_everything():
    for adapter in version.NEEDED:
        version.require(adapter)


@pytest.mark.parametrize("adapter, part", [(adapter, part) for adapter, parts in version.NEEDED.items()
                                           for part in parts])
def test_a_missing_part_is_named(monkeypatch, adapter, part):
    module, _, path = part.partition(":")
    *owners, last = path.split(".")
    thing = importlib.import_module(module)
    for owner in owners:
        thing = getattr(thing, owner)
    monkeypatch.delattr(thing, last)
    with pytest.raises(version.HostChanged) as error:
        version.require(adapter)
    assert part in str(error.value) and __version__ in str(error.value) and adapter in str(error.value)


def test_the_loaders_say_so(loaded, tiny_files, monkeypatch):
    config = loaded[2].joint_config
    monkeypatch.setattr(version, "NEEDED", {name: ("comfy.sd:NoLonger",) for name in version.NEEDED})
    for load in (lambda: load_model(str(tiny_files["transformer"])), lambda: load_clip(str(tiny_files["text_encoder"])),
                 lambda: load_vae(str(tiny_files["autoencoder"]), config)):
        with pytest.raises(version.HostChanged, match="has no comfy.sd:NoLonger"):
            load()


def test_a_vae_without_an_attribute_that_is_replaced(loaded, tiny_files, monkeypatch):
    plain = comfy.sd.VAE.__init__

    def init(self, *arguments, **options):
        plain(self, *arguments, **options)
        del self.upscale_ratio
    monkeypatch.setattr(comfy.sd.VAE, "__init__", init)
    with pytest.raises(version.HostChanged, match="has no VAE.upscale_ratio"):
        load_vae(str(tiny_files["autoencoder"]), loaded[2].joint_config)


def test_an_older_host_is_told_at_once(monkeypatch):
    import asyncio
    import runpy
    import comfyui_version
    from pathlib import Path
    monkeypatch.setattr(comfyui_version, "__version__", "0.24.0")
    entry = runpy.run_path(str(Path(__file__).parents[2] / "__init__.py"))["comfy_entrypoint"]
    with pytest.raises(RuntimeError, match="needs ComfyUI 0.27 or newer, but this is 0.24.0"):
        asyncio.run(entry())
