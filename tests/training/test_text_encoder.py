"""The tiny text encoder: labels of captions, its tokenizer, a little training, the file."""

import json
import random

import pytest
import torch
from safetensors import safe_open

from jodi_core.text import text_from_state_dict
from training.captions import FACTS, caption, facts
from training.scene import sample_scene
from training.text_encoder import (
    MAX_LENGTH, accuracy, fact_loss, label, labelled_batch, new_encoder, save, train, vary)

pytest.importorskip("sentencepiece")


@pytest.fixture(scope="module")
def encoder():
    return new_encoder()


def stated(classes):
    """The facts of one row of label()."""
    return {name: values[index - 1] for (name, values), index in zip(FACTS.items(), classes) if index}


def test_a_whole_caption_states_exactly_the_facts_of_its_scene(encoder):
    for seed in range(100):
        scene = sample_scene(seed)
        *_, so_far = label(caption(scene, seed, shorten=0), facts(scene), encoder.tokenizer.encode)[1]
        assert stated(so_far) == {name: value for name, value in facts(scene).items() if value}


def test_facts_appear_at_the_words_that_complete_them(encoder):
    known = {**dict.fromkeys(FACTS, ""), "house": "red", "house_side": "left", "dog": "dog", "sky": "clear"}
    text = "a red house on the left, a dog, a clear blue sky"
    tokens, so_far, recent = label(text, known, encoder.tokenizer.encode)
    words = [encoder.tokenizer.id_to_piece(token) for token in tokens]
    assert words[0] == "<s>" and stated(so_far[words.index("\u2581red")]) == {}
    assert stated(so_far[words.index("\u2581house")]) == {"house": "red"}
    assert stated(so_far[words.index("\u2581left")]) == {"house": "red", "house_side": "left"}
    assert stated(recent[words.index("\u2581dog")]) == {"dog": "dog"}
    assert stated(so_far[-1]) == {"house": "red", "house_side": "left", "dog": "dog", "sky": "clear"}


def test_varied_captions_state_nothing_that_is_not_so(encoder):
    varied = 0
    for seed in range(200):
        scene = sample_scene(seed)
        text = vary(caption(scene, seed), random.Random(seed))
        varied += text != caption(scene, seed)
        *_, so_far = label(text, facts(scene), encoder.tokenizer.encode)[1]
        assert stated(so_far).items() <= facts(scene).items()
    assert 80 < varied < 190


def test_every_caption_fits_and_every_word_is_one_token(encoder):
    for seed in range(2000):
        text = caption(sample_scene(seed), seed)
        tokens = encoder.tokenizer.encode(text)
        assert len(tokens) < MAX_LENGTH
        assert len(tokens) == len(text.split()) + text.count(",")


def test_tokenizer_is_blind_to_case_and_spells_unknown_letters(encoder):
    encode = encoder.tokenizer.encode
    assert encode("A Red  HOUSE") == encode("a red house")
    assert encoder.tokenizer.unk_id() not in encode("über \u2603 12")


@torch.no_grad()
def error(encoder, heads):
    tokens_BN, lengths_B, classes_BN2F = labelled_batch(range(9000, 9032), encoder.tokenizer.encode)
    return fact_loss(heads, encoder.hidden_states(tokens_BN, lengths_B), lengths_B, classes_BN2F)


def test_training_learns_repeats_and_survives_the_file(tmp_path):
    told = []
    for run in range(2):
        encoder = new_encoder(seed=1)
        heads = train(encoder, steps=30, batch=8, log=lambda line: None)
        told.append(accuracy(encoder, heads, captions=32))
        save(encoder, tmp_path / f"{run}.safetensors", told[run])
    assert told[0] == told[1]
    assert error(encoder, heads) < 0.6 * error(encoder, torch.nn.Linear(128, heads.out_features))
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()
    assert (tmp_path / "0.safetensors").stat().st_size < 6e6
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        loaded = text_from_state_dict({key: file.get_tensor(key) for key in file.keys()}, file.metadata())
        assert json.loads(file.metadata()["jodi"])["kind"] == "text_encoder"
    assert loaded.config == encoder.config
    features_BMC, lengths_B = loaded.encode(["a red house on the left", ""])
    assert torch.equal(features_BMC, encoder.encode(["a red house on the left", ""])[0])
    assert lengths_B.tolist() == [7, 1]
    rms_BM = features_BMC.square().mean(dim=2).sqrt()
    torch.testing.assert_close(rms_BM, torch.ones_like(rms_BM), rtol=1e-3, atol=0)


def test_batches_are_cut_and_padded_together(encoder):
    tokens_BN, lengths_B, classes_BN2F = labelled_batch(range(6), encoder.tokenizer.encode)
    assert tokens_BN.shape == (6, int(lengths_B.max())) and classes_BN2F.shape == (*tokens_BN.shape, 2, len(FACTS))
    shortest = int(lengths_B.argmin())
    padding = slice(lengths_B[shortest], None)
    assert not tokens_BN[shortest, padding].any() and not classes_BN2F[shortest, padding].any()
