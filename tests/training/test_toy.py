"""Shards of encoded toy scenes, and what is read from them."""

from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch

from jodi_core.domains import JODI_DOMAINS
from training import toy
from training.captions import caption, vary
from training.config import ToyConfig
from training.toy import ToyScenes, build_cache, load_shards
from training.world import render, sample_scene


class MeanAutoencoder:
    """A latent cell is the mean of its 8 x 8 pixels."""

    config = SimpleNamespace(scaling_factor=0.5)

    def encode(self, pictures_BCHW):
        return torch.nn.functional.avg_pool2d(pictures_BCHW, 8)


class LengthText:
    """As many features as the caption has words, which all hold their number."""

    def encode(self, captions):
        lengths = torch.tensor([len(text.split()) for text in captions])
        return lengths[:, None, None].expand(-1, int(lengths.max()), 3).float(), lengths


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "SHARD", 6)
    return ToyConfig(cache=str(tmp_path / "cache"), bins={"32x32": 1.0, "16x32": 0.5}, scenes=12, first_seed=500)


def shards(config):
    return sorted(str(path.relative_to(config.cache)) for path in Path(config.cache).rglob("*") if path.is_file())


def test_shards_hold_the_encoded_scenes_of_their_seeds(config):
    build_cache(config, JODI_DOMAINS, MeanAutoencoder(), LengthText())
    assert shards(config) == ["16x32/00000.safetensors", "32x32/00000.safetensors", "32x32/00001.safetensors"]
    source = ToyScenes(config)
    assert source.bins_N.tolist() == [0] * 12 + [1] * 6
    for index, number, size in ((7, 507, (32, 32)), (0, 500, (32, 32)), (13, 501, (16, 32))):
        item = source.item(index, torch.Generator().manual_seed(0))
        scene = sample_scene(number)
        normal = render([scene], *size)["normal"].float() / 127.5 - 1
        torch.testing.assert_close(item.latents_CLHW[:, JODI_DOMAINS.index("normal")],
                                   0.5 * MeanAutoencoder().encode(normal)[0], atol=1e-3, rtol=0)
        assert item.present_L.all() and (item.text_MC == len(item.text_MC)).all()


def test_a_kill_leaves_no_half_shard_and_the_next_call_writes_the_missing_ones(config, monkeypatch):
    calls = iter(range(100))
    save_file = toy.save_file

    def killed(tensors, path):
        if next(calls) == 1:
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        save_file(tensors, path)
    monkeypatch.setattr(toy, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        build_cache(config, JODI_DOMAINS, MeanAutoencoder(), LengthText())
    assert [name for name in shards(config) if name.endswith(".safetensors")] == ["32x32/00000.safetensors"]
    assert len(load_shards(Path(config.cache) / "32x32")[0]) == 6
    first = Path(config.cache) / "32x32" / "00000.safetensors"
    before = first.stat().st_mtime_ns
    build_cache(config, JODI_DOMAINS, MeanAutoencoder(), LengthText())
    assert len(shards(config)) == 3 and first.stat().st_mtime_ns == before, "complete shards are not made again"


def test_parts_share_the_work(config):
    parts = []
    for part in range(2):
        before = set(shards(config)) if Path(config.cache).exists() else set()
        build_cache(config, JODI_DOMAINS, MeanAutoencoder(), LengthText(), part, 2)
        parts.append(set(shards(config)) - before)
    assert [len(written) for written in parts] == [2, 1]
    build_cache(config, JODI_DOMAINS, None, None)    # nothing is left to encode


def test_without_a_cache_the_command_is_told(config):
    with pytest.raises(FileNotFoundError, match="python -m training cache"):
        ToyScenes(config)


def test_a_scene_has_one_of_its_captions(config):
    build_cache(config, JODI_DOMAINS, MeanAutoencoder(), LengthText())
    source = ToyScenes(config)
    lengths = {len(source.item(0, torch.Generator().manual_seed(seed)).text_MC) for seed in range(20)}
    words = {len(vary(caption(sample_scene(500), number), Random(number)).split()) for number in (1000, 1001)}
    assert lengths == words
