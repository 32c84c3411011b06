"""What Dual Diffusion is trained on: lists of captions and of conversations, shards, toy scenes."""

import io
import json
import random
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from training import run
from training.captions import caption
from training.config import DataConfig, SetConfig, ToyConfig
from training.config_file import load_config
from training.dual_model import open_encoders
from training.dual_source import DualSource
from training.dual_texts import caption_text, conversation_text
from training.dual_toy import ToyTexts
from training.dual_words import pieces, vocabulary
from training.parallel import Processes
from training.questions import choose_questions, questions
from training.scene import sample_scene

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
ROOT = Path(__file__).resolve().parents[2]
TALK = [{"from": "human", "value": "<image>\nwhat is the ground?"}, {"from": "gpt", "value": "sand"},
        {"from": "human", "value": "is there a car?"}, {"from": "gpt", "value": "no"}]


@pytest.fixture(scope="module")
def tiny():
    text = ROOT / "jodi_core" / "assets" / "tiny" / "dual_diffusion"
    config = load_config(ROOT / "training" / "configs" / "tiny_dual_diffusion.toml",
                         [f"start.text_encoder={json.dumps(str(text))}"])
    return config, open_encoders(config, torch.device("cpu"))


@pytest.fixture
def lists(tmp_path):
    """A folder with captions.json, talks.json and shard.tar."""
    for number, size in enumerate(((160, 128), (300, 260), (60, 200), (700, 130))):    # width, height
        Image.radial_gradient("L").resize(size).convert("RGB").save(tmp_path / f"{number}.png")
    captions = [{"image_path": f"{number}.png", "width": Image.open(tmp_path / f"{number}.png").width,
                 "height": Image.open(tmp_path / f"{number}.png").height, "ratio": 1.0, "org_caption": "a red house",
                 "re_caption": "a blue car"} for number in range(4)]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    (tmp_path / "talks.json").write_text(json.dumps([{"image": "1.png", "conversations": TALK},
                                                     {"conversations": TALK}]))
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name, content in (("a.png", (tmp_path / "0.png").read_bytes()),
                              ("a.json", json.dumps({"caption": "a lake", "org_caption": "a road"}).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return tmp_path


def source_of(tiny, folder, *sets, cache="", **data) -> DualSource:
    config, encoders = tiny
    config = replace(config, output=str(folder / "run"), data=DataConfig(
        sets=tuple(SetConfig(**one) for one in sets), cache=str(cache), **data))
    return DualSource(config, config.model, encoders)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def said(source, index: int, seed: int = 0) -> str:
    return source.encoders.words.text(source.item(index, generator(seed)).text_MC[:, 0].tolist())


# ---- lists and shards -------------------------------------------------------------------------------------------

def test_captions_serve_both_tasks_and_odd_sizes_are_left_out(tiny, lists):
    source = source_of(tiny, lists, {"path": str(lists / "captions.json")}, min_side=100)
    assert source.bins_N.tolist() == [0, 0, 1, 1]
    item = source.item(0, generator())
    assert item.latents_CLHW.shape == (32, 1, 8, 8) and item.text_MC.shape == (48, 2)
    assert {said(source, 0, seed) for seed in range(20)} == {"a red house", "a blue car"}


def test_caption_fields_are_named_and_weighted(tiny, lists):
    source = source_of(tiny, lists, {"path": str(lists / "captions.json"), "captions": {"org_caption": 1.0}})
    assert {said(source, 0, seed) for seed in range(9)} == {"a red house"}


def test_conversations_are_texts_only_and_all_their_turns_are_used(tiny, lists):
    source = source_of(tiny, lists, {"path": str(lists / "talks.json")}, {"path": str(lists / "captions.json"),
                                                                         "tasks": ("picture",)})
    assert source.bins_N.tolist() == [0] * 3 + [1], "of three pictures the fourth is too long, one talk has no picture"
    texts = {said(source, 3, seed) for seed in range(9)}
    assert texts == {"q : what is the ground? a : sand q : is there a car? a : no", "q : is there a car? a : no"}


def test_shards_packed_for_dual_diffusion_are_read(tiny, lists):
    source = source_of(tiny, lists, {"path": str(lists / "shard.tar"), "captions": {"org_caption": 1, "caption": 1}})
    assert {said(source, 1, seed) for seed in range(20)} == {"a lake", "a road"}


def test_latents_come_from_the_cache_as_they_were_made(tiny, lists):
    sets = {"path": str(lists / "captions.json")}, {"path": str(lists / "talks.json")}
    plain = source_of(tiny, lists, *sets)
    cached = source_of(tiny, lists, *sets, cache=lists / "cache")
    for index in range(len(plain.bins_N)):
        wanted = plain.item(index, generator()).latents_CLHW
        assert torch.equal(cached.item(index, generator()).latents_CLHW, wanted)
        assert torch.equal(cached.item(index, generator()).latents_CLHW, wanted)
    assert not torch.equal(cached.item(1, generator()).latents_CLHW, cached.item(6, generator()).latents_CLHW), \
        "the same file, made square in another way"


@pytest.mark.parametrize("content, message", [
    ("[", "is no JSON file"), ("{}", "must be a list of objects"),
    ([{"image_path": "0.png", "width": 3}], "entry 0: height None and width 3 must be"),
    ([{"image": "0.png", "conversations": TALK}, {"image_path": "0.png", "width": 3, "height": 3}], "mixes captions"),
])
def test_lists_with_errors_are_refused(tiny, lists, content, message):
    (lists / "bad.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        source_of(tiny, lists, {"path": str(lists / "bad.json")})


@pytest.mark.parametrize("entry, message", [
    ({"image": "../0.png", "conversations": TALK}, "leads out of the data set's folder"),
    ({"image": "0.png", "conversations": TALK[:1]}, "a conversation of 1 turns has no answer"),
    ({"image": "0.png", "conversations": ["hello"]}, "must be a list of objects with a `value`"),
])
def test_an_entry_with_errors_is_named_and_skipped(tiny, lists, entry, message):
    (lists / "bad.json").write_text(json.dumps([entry, {"image": "1.png", "conversations": TALK}]))
    source = source_of(tiny, lists, {"path": str(lists / "bad.json")})
    assert source.item(0, generator()).skipped == 1
    assert message in (lists / "run" / "faults.jsonl").read_text()


def test_pictures_that_are_all_too_small_are_refused(tiny, lists):
    with pytest.raises(ValueError, match="at least 2000 pixels on its shorter side"):
        source_of(tiny, lists, {"path": str(lists / "captions.json")}, min_side=2000)


def test_a_run_on_lists_fills_its_cache_and_trains(tiny, lists):
    config, _ = tiny
    config = replace(config, output=str(lists / "run"), steps=2, batch=4, micro_batch=2, tasks=("picture", "text"),
                     toy=ToyConfig(), data=DataConfig(cache=str(lists / "cache"), sets=tuple(
                         SetConfig(path=str(lists / name)) for name in ("captions.json", "talks.json"))))
    run.train(config, Processes())
    lines = (lists / "run" / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2 and json.loads(lines[-1])["loss"] > 0


# ---- texts ------------------------------------------------------------------------------------------------------

def test_questions_are_given_and_answers_with_the_padding_learned(tiny):
    words = tiny[1].words
    one = conversation_text(words, [("is there a dog?", "yes")], 20)
    ids, labels = words.training_pair("is there a dog?", "yes", 20)
    assert one.T.tolist() == [ids, labels]
    both = conversation_text(words, [("is there a dog?", "yes"), ("what is the sky like?", "clear")], 40)
    text, label = both.T.tolist()
    learned = words.tokenizer.decode([token for token, asked in zip(text, label) if asked and token != words.end_id])
    assert learned == "yes clear" and label[-1] == 1 and text[-1] == words.end_id
    assert conversation_text(words, [("is there a dog?", "yes")] * 9, 20)[:, 0].tolist() == ids, "what fits"


def test_a_caption_is_learned_whole_with_its_end(tiny):
    words = tiny[1].words
    text = caption_text(words, "a red house", 6)
    assert text[:, 1].tolist() == [1] * 6 and words.text(text[:, 0].tolist()) == "a red house"
    assert text[3:, 0].tolist() == [words.end_id] * 3


# ---- toy world --------------------------------------------------------------------------------------------------

def test_answers_are_true_of_the_scene():
    for seed in range(40):
        scene, rng = sample_scene(seed), random.Random(seed)
        chosen = choose_questions(scene, 4, rng)
        assert len(set(chosen)) == 4 and all(pair in sum(questions(scene).values(), []) for pair in chosen)
        for question, answer in chosen:
            if question.startswith("is there a "):
                thing = question.removeprefix("is there a ").rstrip("?")
                assert (answer == "yes") == bool(scene.thing(thing) or scene.path == thing)
            if question == "what colour is the house?":
                assert answer == scene.thing("house").variant


def test_the_vocabulary_has_every_word_of_the_toy_world():
    known = set(vocabulary())
    for seed in range(5000, 5100):
        scene = sample_scene(seed)
        texts = [caption(scene, seed), *(text for pairs in questions(scene).values() for pair in pairs
                                         for text in pair)]
        assert known >= {piece for text in texts for piece in pieces(text)}


def test_toy_scenes_are_drawn_and_written_about(tiny, tmp_path):
    config, encoders = tiny
    config = replace(config, toy=ToyConfig(scenes=1024, cache=str(tmp_path), first_seed=7))
    (tmp_path / "128x128").mkdir()
    save_file({"latents": torch.randn(5, 1, 32, 8, 8).half()}, tmp_path / "128x128" / "00000.safetensors")
    source = ToyTexts(config, encoders)
    assert source.bins_N.tolist() == [0] * 5 + [1] * 5
    scene = sample_scene(7 + 3)
    texts = {encoders.words.text(source.item(8, generator(seed)).text_MC[:, 0].tolist()) for seed in range(30)}
    asked = [text for text in texts if text.startswith("q :")]
    assert 5 < len(asked) < 25, "captions and questions"
    sky = f"what is the sky like? a : {scene.sky}"
    assert any(sky in text for text in asked) and torch.equal(source.item(8, generator()).latents_CLHW,
                                                              source.item(3, generator()).latents_CLHW)
