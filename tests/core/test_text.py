"""Prompt clean-up, token selection and the Gemma-2 features."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jodi_core.text import (
    PAD, TextConfig, build_gemma, clean_prompt, instruction_prefix, parse_size_flags, selected_positions,
    text_from_state_dict)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "jodi" / "text.json").read_text())
PREFIX = "describe the scene. user prompt: "
CONFIG = TextConfig(vocab_size=330, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=1, prefix=PREFIX, max_length=24)
PROMPTS = ["a red house", "", "a blue car on the right, under a clear sky, a dog, a tree, a lake, a wall, a bench"]


@pytest.fixture(scope="module")
def weights():
    """A random Gemma-2 file: tensors by key, with attention sharp enough for a soft-cap to matter."""
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PREFIX, *PROMPTS] * 20), model_writer=written, model_type="bpe", vocab_size=330,
        byte_fallback=True, add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2)
    torch.manual_seed(0)
    tensors = {"model." + key: value for key, value in build_gemma(CONFIG).state_dict().items()}
    for key, value in tensors.items():
        value.normal_(std=0.2 if value.ndim == 1 else 0.3 if "q_proj" in key or "k_proj" in key else 0.05)
    return {**tensors, "spiece_model": torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)}


def metadata(config):
    return {"jodi": json.dumps({"format": 1, "kind": "text_encoder", "config": config.to_dict()})}


@pytest.fixture(scope="module")
def encoder(weights):
    return text_from_state_dict(weights, metadata(CONFIG))


@pytest.mark.parametrize("case", GOLDEN["prompts"], ids=lambda case: case["prompt"] or "empty")
def test_clean_up_and_size_flags_are_those_of_the_original(case):
    assert clean_prompt(case["prompt"]) == case["cleaned_stripped"]
    flags = parse_size_flags(case["prompt"])
    assert flags.ratio == case["ratio"]
    assert list(flags.bin_hw) == case["bin_hw"] and list(flags.custom_hw) == case["custom_hw"]


def test_size_flags_refuse_a_zero_width():
    with pytest.raises(ValueError, match="height:width"):
        parse_size_flags("a house --ar 3:0")


@pytest.mark.parametrize("case", GOLDEN["select_index"], ids=lambda case: str(case["chi_tokens"]))
def test_selected_positions_are_those_of_the_original(case):
    positions = selected_positions(case["chi_tokens"], GOLDEN["model_max_length"])
    assert positions[:4] == case["first"] and positions[-2:] == case["last"]
    assert len(positions) == case["count"] and positions[-1] + 1 == case["total_length"]


def test_instruction_prefix_is_the_published_one_to_the_byte():
    text = instruction_prefix()
    assert text.startswith("Given a user prompt") and text.endswith("User Prompt: ")
    found = hashlib.sha256(text.encode()).hexdigest()
    assert found == "62b9ab89eebb0ac5ee4d264bf96bf19d2b81f504bc3852500efeaf5a34d638b1"


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_trimmed_encoding_equals_the_padded_one(weights, prefix):
    encoder = text_from_state_dict(weights, metadata(replace(CONFIG, prefix=prefix)))
    features_BMC, lengths_B = encoder.encode(PROMPTS)
    positions = selected_positions(encoder.prefix_tokens, 24)
    texts = [prefix + prompt for prompt in PROMPTS]
    tokens_BN, valid_B = encoder.tokenize(texts, positions[-1] + 1, total=positions[-1] + 1)
    padded_BMC = encoder.hidden_states(tokens_BN, valid_B)[:, positions]
    mask_BM = (tokens_BN != PAD)[:, positions]
    assert lengths_B.tolist() == mask_BM.sum(1).tolist() and lengths_B.max() == 24
    for row, length in enumerate(lengths_B):
        assert mask_BM[row, :length].all()
        torch.testing.assert_close(features_BMC[row, :length], padded_BMC[row, :length], rtol=1e-5, atol=1e-5)


def test_prefix_changes_the_features_and_an_empty_prompt_keeps_its_blank(weights, encoder):
    bare = text_from_state_dict(weights, metadata(replace(CONFIG, prefix="")))
    assert encoder.encode([""])[1].tolist() == [2] and bare.encode([""])[1].tolist() == [1]
    (with_prefix, _), (without, _) = encoder.encode(["a red house"]), bare.encode(["a red house"])
    assert (with_prefix[:, -1] - without[:, -1]).abs().max() > 0.01
    # The start token comes before everything, so it cannot tell the two apart.
    torch.testing.assert_close(with_prefix[:, 0], without[:, 0], rtol=1e-5, atol=1e-5)


def test_soft_cap_acts_only_when_asked_for(weights, encoder):
    features, _ = encoder.encode(PROMPTS)
    assert CONFIG.soft_cap is None
    huge, _ = text_from_state_dict(weights, metadata(replace(CONFIG, soft_cap=1e6))).encode(PROMPTS)
    torch.testing.assert_close(huge, features, rtol=1e-4, atol=1e-4)
    capped, _ = text_from_state_dict(weights, metadata(replace(CONFIG, soft_cap=1.0))).encode(PROMPTS)
    assert (capped - features).abs().max() > 0.01


def test_negative_prompt_has_no_prefix_and_leaves_no_trace(encoder):
    before, empty = encoder.encode(PROMPTS)[0], encoder.encode_negative([""])
    negative = encoder.encode_negative(["blurred, a dog"])
    assert negative.shape == empty.shape == (1, 24, 64)
    assert (negative - empty).abs().max() > 0.01
    assert torch.equal(encoder.encode(PROMPTS)[0], before) and torch.equal(encoder.encode_negative([""]), empty)
    torch.testing.assert_close(encoder.encode_negative(["blurred, a dog"], rows=5), negative[:, :5])


def test_rows_of_the_padding_are_all_alike_for_the_empty_prompt(encoder):
    empty = encoder.encode_negative([""])
    torch.testing.assert_close(empty[:, 1:], empty[:, 1:2].expand_as(empty[:, 1:]), rtol=1e-5, atol=1e-5)
    assert (empty[:, 0] - empty[:, 1]).abs().max() > 0.01


def test_a_file_without_metadata_has_the_published_prefix_and_length(weights):
    config = text_from_state_dict(weights).config
    assert config.prefix == instruction_prefix() and config.max_length == 300
    assert config.sizes == CONFIG.sizes


def test_half_precision_weights_give_float32_features(weights):
    half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    encoder = text_from_state_dict(half, metadata(CONFIG))
    assert encoder.model.dtype == torch.float16 and encoder.encode(["a dog"])[0].dtype == torch.float32
    assert text_from_state_dict(half, metadata(CONFIG), dtype=torch.float32).model.dtype == torch.float32


@pytest.mark.parametrize("change, told", [
    ({"spiece_model": None}, "no tokenizer"),
    ({"model.embed_tokens.weight": None}, "not a Gemma-2"),
    ({"model.layers.1.mlp.up_proj.weight": None}, "1 missing .model.layers.1.mlp.up_proj"),
    ({"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 3)}, "1 mis-shaped .model.layers.1.mlp.up_proj"),
    ({"model.vision.weight": torch.zeros(3)}, "1 unexpected .model.vision"),
])
def test_wrong_files_are_told_apart(weights, change, told):
    changed = {key: value for key, value in {**weights, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=told):
        text_from_state_dict(changed, metadata(CONFIG))


def test_metadata_that_contradicts_the_tensors_is_an_error(weights):
    with pytest.raises(ValueError, match="hidden_size is 64, not 2304"):
        text_from_state_dict(weights, metadata(replace(CONFIG, hidden_size=2304)))
