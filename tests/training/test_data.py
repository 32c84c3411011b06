"""Cache shards, what is read from them, and in which order."""

import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch

from jodi_core.domains import JODI_DOMAINS
from training import data
from training.captions import caption, vary
from training.config import DataConfig
from training.data import CachedScenes, SceneOrder, build_cache
from training.world import render, sample_scene

sys.path.insert(0, str(Path(__file__).parent))    # for the modules beside the tests

from toy_run import toy_config, write_shard  # noqa: E402


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
    monkeypatch.setattr(data, "SHARD", 6)
    return DataConfig(cache=str(tmp_path / "cache"), bins={"32x32": 1.0, "16x32": 0.5}, scenes=12, first_seed=500)


def shards(config):
    return sorted(str(path.relative_to(config.cache)) for path in Path(config.cache).rglob("*") if path.is_file())


def scene_numbers(batch):
    """The scenes of a batch of toy shards, which carry their number."""
    return batch.latents_BCDHW[:, 0, 0, 0, 0].int().tolist()


def test_shards_hold_the_encoded_scenes_of_their_seeds(config):
    build_cache(config, JODI_DOMAINS, MeanAutoencoder(), LengthText())
    assert shards(config) == ["16x32/00000.safetensors", "32x32/00000.safetensors", "32x32/00001.safetensors"]
    scenes = CachedScenes(Path(config.cache) / "32x32", config.captions_per_scene)
    batch = scenes.batch(torch.tensor([7, 0]), which_caption=1)
    assert len(scenes) == 12 and batch.latents_BCDHW.shape == (2, 3, 8, 4, 4)
    for row, number in enumerate((507, 500)):
        scene = sample_scene(number)
        normal = render([scene], 32, 32)["normal"].float() / 127.5 - 1
        torch.testing.assert_close(batch.latents_BCDHW[row, :, JODI_DOMAINS.index("normal")],
                                   0.5 * MeanAutoencoder().encode(normal)[0], atol=1e-3, rtol=0)
        caption_number = number * config.captions_per_scene + 1
        words = len(vary(caption(scene, caption_number), Random(caption_number)).split())
        assert batch.mask_BM[row].sum() == words
        assert (batch.text_BMC[row, :words] == words).all() and not batch.text_BMC[row, words:].any()


def test_a_kill_leaves_no_half_shard_and_the_next_call_writes_the_missing_ones(config, monkeypatch):
    calls = iter(range(100))
    save_file = data.save_file

    def killed(tensors, path):
        if next(calls) == 1:
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        save_file(tensors, path)
    monkeypatch.setattr(data, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        build_cache(config, JODI_DOMAINS, MeanAutoencoder(), LengthText())
    assert [name for name in shards(config) if name.endswith(".safetensors")] == ["32x32/00000.safetensors"]
    assert len(CachedScenes(Path(config.cache) / "32x32", 2)) == 6
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
        SceneOrder(config, seed=0, rank=0, world=1)


def test_a_pass_covers_every_scene_once_whatever_the_number_of_processes(tmp_path):
    cache = tmp_path / "cache"
    write_shard(cache / "32x32" / "00000.safetensors", 16, (4, 4))
    write_shard(cache / "32x32" / "00001.safetensors", 8, (4, 4), first=16)
    config = DataConfig(cache=str(cache), bins={"32x32": 1.0})
    for world in (1, 2, 3):
        orders = [SceneOrder(config, 0, rank, world) for rank in range(world)]
        passes = [[scene for number in range(6 // world) for order in orders
                   for scene in scene_numbers(order.batch(which * (6 // world) + number, 4))] for which in range(2)]
        assert [sorted(seen) for seen in passes] == [list(range(24))] * 2 and passes[0] != passes[1]


def test_sizes_take_turns_by_their_shares_and_each_in_whole_passes(tmp_path):
    orders = [SceneOrder(toy_config(tmp_path).data, 0, rank, 2) for rank in range(2)]
    batches = [order.batch(number, 2) for number in range(50) for order in orders]
    heights = [batch.latents_BCDHW.shape[3] for batch in batches]
    assert 10 < heights.count(2) < 30
    for height, scenes in ((4, 40), (2, 10)):
        seen = [scene for batch in batches if batch.latents_BCDHW.shape[3] == height for scene in scene_numbers(batch)]
        for start in range(0, len(seen) - scenes, scenes):
            assert sorted(seen[start:start + scenes]) == list(range(scenes))


def test_a_batch_is_a_function_of_its_number_alone(tmp_path):
    data_config = toy_config(tmp_path).data
    first, again = SceneOrder(data_config, 3, 1, 2), SceneOrder(data_config, 3, 1, 2)
    first.batch(0, 2)
    for number in (5, 1, 60):
        assert torch.equal(first.batch(number, 2).latents_BCDHW, again.batch(number, 2).latents_BCDHW)
    other = SceneOrder(data_config, 4, 1, 2)
    assert any(scene_numbers(first.batch(n, 2)) != scene_numbers(other.batch(n, 2)) for n in range(5))


def test_captions_belong_to_their_scene_and_take_turns_between_passes(tmp_path):
    order = SceneOrder(toy_config(tmp_path).data, 0, 0, 1)
    seen = {}
    for number in range(200):
        batch = order.batch(number, 2)
        for scene, text in zip(scene_numbers(batch), batch.text_BMC[:, 0, 0].int().tolist()):
            assert text // 2 == scene
            seen.setdefault((batch.latents_BCDHW.shape[3], scene), set()).add(text % 2)
    assert all(captions == {0, 1} for captions in seen.values())
