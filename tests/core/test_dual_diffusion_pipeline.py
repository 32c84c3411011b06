"""Dual Diffusion from files to pictures and texts, on a random model in the published folder layout."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from dual_diffusion_files import GOLDEN, TRANSFORMER, write_folder, write_tokenizer
from PIL import Image
from safetensors.torch import load_file, save_file

from jodi_core.convert import convert, inspect
from jodi_core.dual_diffusion.pipeline import DualDiffusionPipeline
from jodi_core.dual_diffusion.text_sampling import TextOptions
from jodi_core.dual_diffusion.weights import is_dual_diffusion, load_t5, read_transformer
from jodi_core.files import WeightsError
from jodi_core.weights import kind_of, read_part

pytest.importorskip("diffusers")
pytest.importorskip("tokenizers")
pytest.importorskip("transformers")



@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The networks of the recordings, an autoencoder and a tokenizer."""
    from diffusers import AutoencoderKL
    root = tmp_path_factory.mktemp("dual")
    write_folder(root)
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=4,
                  up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16, scaling_factor=1.5305,
                  shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False).save_pretrained(root / "vae")
    return root


@pytest.fixture(scope="module")
def pipe(folder):
    return DualDiffusionPipeline.from_pretrained(folder, device="cpu", dtype=torch.float32)


@pytest.fixture
def other(folder, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "other"))


def picture(width: int = 70, height: int = 64, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy()).resize((width, height))


# ---- files ------------------------------------------------------------------------------------------------------

def test_a_folder_loads(pipe, golden):
    assert pipe.side == 64 and pipe.shift == 3 and pipe.words.longest == 24 and pipe.words.pad_id == 1
    ids, states = golden["image.positive_ids"].long(), golden["image.positive_embeds"]
    torch.testing.assert_close(pipe.t5(ids), states, atol=1e-4, rtol=0)
    velocity = pipe.network.velocity(golden["image.latents_init"], pipe.network.embed_text(states), torch.tensor([1e3]))
    torch.testing.assert_close(velocity, golden["image.velocity_uncond_cond"][0, 1:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name, content", [
    ("consolidated.00-of-01.pth", lambda tensors: tensors),
    ("old.pth", lambda tensors: {"state_dict": tensors, "step": 7}),
    ("saved.safetensors", lambda tensors: {f"model.diffusion_model.{name}": value for name, value in tensors.items()}),
])
def test_single_files(folder, tmp_path, name, content):
    tensors = load_file(folder / TRANSFORMER)
    file = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(content(tensors), file)
    config, read = read_transformer(file)
    assert asdict(config) == asdict(read_transformer(folder)[0]) | {"sample_size": 128}    # which only scales a table
    assert read.keys() == tensors.keys() and is_dual_diffusion(content(tensors) if "saved" in name else tensors)


def test_conversion_keeps_everything(folder, tmp_path):
    """What the trainer writes, as one safetensors file that needs no config.json."""
    torch.save(load_file(folder / TRANSFORMER), tmp_path / "consolidated_ema.00-of-01.pth")
    shutil.copyfile(folder / "transformer" / "config.json", tmp_path / "config.json")
    assert convert(tmp_path / "consolidated_ema.00-of-01.pth", tmp_path / "ema.safetensors") == "dual_diffusion"
    assert convert(folder, tmp_path / "folder.safetensors", dtype=torch.bfloat16) == "dual_diffusion"
    (tmp_path / "config.json").write_text('{"_class_name": "another model"}')
    expected = read_transformer(folder)
    for name, dtype in (("ema", None), ("folder", torch.bfloat16)):
        config, tensors = read_transformer(tmp_path / f"{name}.safetensors")
        assert config == expected[0] and tensors.keys() == expected[1].keys()
        assert all(torch.equal(value, expected[1][key].to(dtype or value.dtype)) for key, value in tensors.items())
    about = inspect(tmp_path / "folder.safetensors")
    assert about["kind"] == "dual_diffusion" and about["config"]["sample_size"] == 8
    with pytest.raises(WeightsError, match="loses too much in 8 bits"):
        convert(folder, tmp_path / "small.safetensors", dtype=torch.float8_e4m3fn)


def test_parts_named_one_by_one(folder, golden, pipe):
    """A transformer file with the others beside it, and a learned row for the mask token."""
    single = DualDiffusionPipeline.from_pretrained(
        folder / TRANSFORMER, text_encoder=folder / "text_encoder", autoencoder=folder / "vae",
        tokenizer=folder / "tokenizer", device="cpu", dtype=torch.float32)
    assert single.caption(picture(), seed=1, steps=4) == pipe.caption(picture(), seed=1, steps=4)


def test_learned_row_of_the_mask(folder, golden, tmp_path):
    config = read_transformer(folder)[0]
    row = torch.randn(1, 48)
    torch.save(row, tmp_path / "mask_token_emb.00-of-01.pth")
    t5 = load_t5(folder, config, tmp_path / "mask_token_emb.00-of-01.pth", dtype=torch.float32)
    plain = load_t5(folder, config, dtype=torch.float32)
    torch.testing.assert_close(t5.model.shared.weight[config.mask_id], row[0].half().float())    # as the table
    ids = torch.tensor([[5, 6, 1]])
    assert torch.equal(t5(ids), plain(ids)) and not torch.equal(t5(ids + 74), plain(ids + 74))
    torch.save(torch.randn(7), tmp_path / "mask_token_emb.00-of-01.pth")
    with pytest.raises(WeightsError, match=r"shape \(7,\).*48 values"):
        load_t5(folder, config, tmp_path / "mask_token_emb.00-of-01.pth")


def sd3_of(tensors: dict) -> dict:
    """A Stable Diffusion 3 transformer beside a Dual Diffusion one: other heads, no text after the last attention."""
    renamed = {name.replace("image_norm_out", "norm_out").replace("image_proj_out", "proj_out"): value
               for name, value in tensors.items()}
    return {name: value for name, value in renamed.items()
            if not name.startswith(("text_proj_out", "null_image")) and "blocks.1.ff_context" not in name}


def without(*parts: str):
    return lambda tensors: {name: value for name, value in tensors.items() if not name.startswith(parts)}


@pytest.mark.parametrize("change, message", [
    (sd3_of, "is a Stable Diffusion 3 transformer.*, but a Dual Diffusion transformer is wanted. Choose"),
    (without("text_proj_out"), "without its text head"),
    (without("image_proj_out"), "without its image head"),
    (without("transformer_blocks.1.ff_context"), "4 missing: transformer_blocks.1.ff_context"),
    (without("pos_embed.pos_embed"), "it has no 'pos_embed.pos_embed'"),
    (lambda tensors: tensors | {"extra.weight": torch.zeros(1)}, "1 unexpected: extra.weight"),
    (lambda tensors: tensors | {"null_image_embd": torch.zeros(1, 4, 128)}, "null_image_embd is 1x4x128"),
    (lambda tensors: tensors | {"text_proj_out.weight": torch.zeros(90, 128)},
     "vocab_size 80, but the tensors have 90"),
    (lambda tensors: {"joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(1)},
     "is a Stable Diffusion 3 transformer, but"),
    (lambda tensors: {"a": torch.zeros(1)}, "no model file that is known here"),
])
def test_another_transformer_is_refused(other, change, message):
    save_file(change(load_file(other / TRANSFORMER)), other / TRANSFORMER)
    with pytest.raises(WeightsError, match=message):
        read_transformer(other)


def test_jodi_s_loader_says_what_it_is(folder):
    assert kind_of(load_file(folder / TRANSFORMER)) == "dual_diffusion"
    with pytest.raises(WeightsError, match="is a Dual Diffusion transformer, but a Jodi transformer is wanted"):
        read_part(folder / TRANSFORMER, "transformer")


def t5_of(width: int) -> dict:
    from transformers import T5Config, T5EncoderModel
    model = T5EncoderModel(T5Config(vocab_size=88, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
                                    feed_forward_proj="gated-gelu"))
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("tensors, message", [
    (lambda: t5_of(32), "a T5 with states of width 32 and 88 tokens, but this transformer reads states of width 48"),
    (lambda: {name: value for name, value in t5_of(48).items() if "wi_1" not in name}, "it has no .*wi_1"),
    (lambda: {name: value for name, value in t5_of(48).items() if "final" not in name}, "do not fit a T5 v1.1 encoder"),
    (lambda: {"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(1)}, "but a T5 v1.1 encoder is wanted"),
])
def test_another_text_encoder_is_refused(folder, tmp_path, tensors, message):
    save_file(tensors(), tmp_path / "t5.safetensors")
    with pytest.raises(WeightsError, match=message):
        load_t5(tmp_path / "t5.safetensors", read_transformer(folder)[0])


def test_a_missing_part_of_the_text_encoder(other):
    (other / "text_encoder" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match="model-00002-of-00002.safetensors: no such file"):
        DualDiffusionPipeline.from_pretrained(other)


def test_another_tokenizer_is_refused(other):
    shutil.rmtree(other / "tokenizer")
    write_tokenizer(other / "tokenizer", 60)
    with pytest.raises(WeightsError, match="not this model's tokenizer: the model has 80 tokens.*the tokenizer has 60"):
        DualDiffusionPipeline.from_pretrained(other)
    shutil.rmtree(other / "tokenizer")
    with pytest.raises(WeightsError, match="the vocabulary of T5 v1.1 is not this model's tokenizer"):
        DualDiffusionPipeline.from_pretrained(other)
    with pytest.raises(WeightsError, match="has no tokenizer.json"):
        DualDiffusionPipeline.from_pretrained(other, tokenizer=other)


def test_another_autoencoder_is_refused(other):
    settings = json.loads((other / "vae" / "config.json").read_text())
    (other / "vae" / "config.json").write_text(json.dumps(settings | {"latent_channels": 4}))
    with pytest.raises(WeightsError, match="does not fit its config.json"):
        DualDiffusionPipeline.from_pretrained(other)
    with pytest.raises(WeightsError, match="no autoencoder of Stable Diffusion"):
        DualDiffusionPipeline.from_pretrained(other, autoencoder=other / "transformer")


def test_half_a_folder(other):
    shutil.rmtree(other / "vae")
    with pytest.raises(WeightsError, match="has no autoencoder: name their files"):
        DualDiffusionPipeline.from_pretrained(other)


def test_t5_does_not_overflow(folder):
    """float16 is for the other parts."""
    pipe = DualDiffusionPipeline.from_pretrained(folder, device="cpu", dtype=torch.float16)
    assert pipe.t5.model.dtype == torch.bfloat16 and pipe.network.null_image_embd.dtype == torch.float16
    assert pipe("a red house", steps=2, seed=1).pictures["image"].isfinite().all()
    assert pipe.caption(picture(), seed=1, steps=4)


def test_padding_follows_the_folder(other):
    (other / "tokenizer" / "tokenizer_config.json").write_text('{"pad_token": {"content": "<pad>"}}')
    pipe = DualDiffusionPipeline.from_pretrained(other)
    assert pipe.words.pad_id == 0 and pipe.words.longest == 256 and pipe.words.prompt("red", 4) == [4, 1, 0, 0]


# ---- pictures ---------------------------------------------------------------------------------------------------

def test_pictures(pipe):
    result = pipe("a red house", seed=3, steps=2, count=2)
    assert result.pictures["image"].shape == (2, 3, 64, 64) and not result.texts
    assert result.roles.active_names == ("image", "text") and result.roles.generated_slots == (0,)
    one = pipe("a red house", seed=3, steps=2)
    torch.testing.assert_close(one.pictures["image"], result.pictures["image"][:1], atol=1e-4, rtol=0)
    unguided = pipe("a red house", seed=3, steps=2, guidance=1, height=32, width=96)
    assert unguided.pictures["image"].shape == (1, 3, 32, 96)
    assert not torch.equal(pipe("a car", seed=3, steps=1).pictures["image"],
                           pipe("a car", negative_prompt="blue", seed=3, steps=1).pictures["image"])


@pytest.mark.parametrize("settings, message", [
    ({"height": 8000, "width": 8000}, "pictures of 8000x8000: both sides must be multiples of 16 from 16 to 192"),
    ({"height": 1, "width": 1}, "pictures of 1x1"),
    ({"steps": 0}, "steps 0 must be at least 1"), ({"count": 0}, "count 0"), ({"prompt": []}, "number of prompts, 0"),
    ({"seed": -1}, "seed -1"),
    ({"conditions": {"depth": None}}, "conditions depth: only the image can be one"),
    ({"generate": ["text"]}, "image ignore, text generate. Generate the image of a text"),
    ({"generate": ["image", "text"]}, "image generate, text generate"),
    ({"generate": ["depth"]}, "no domain depth"),
    ({"conditions": {"image": picture()}, "steps": 0}, "steps 0 must be at least 1"),
])
def test_pictures_that_cannot_be(pipe, settings, message):
    with pytest.raises(ValueError, match=message):
        pipe(**{"steps": 1} | settings)


def test_a_long_prompt_is_cut_with_a_warning(pipe):
    with pytest.warns(UserWarning, match="the prompt has 41 tokens, the model reads 24"):
        ids = pipe.words.prompt("red " * 40, 24)
    assert ids == [4] * 23 + [1]
    with pytest.warns(UserWarning):
        assert pipe("red " * 300, steps=1, seed=1).pictures["image"].isfinite().all()


# ---- texts ------------------------------------------------------------------------------------------------------

def test_captions(pipe):
    texts = pipe.caption([picture()][0], seed=5, steps=6)
    assert len(texts) == 1 and isinstance(texts[0], str) and "<extra_id_0>" not in texts[0]
    result = pipe(conditions={"image": picture()}, seed=5, steps=6)
    assert result.texts == texts and result.roles.condition_slots == (0,) and not result.pictures


def test_a_seed_means_the_same_in_a_batch(pipe):
    both = torch.stack([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    together = pipe.caption(both, seed=8, steps=5)
    assert together == pipe.caption(both[:1], seed=8, steps=5) + pipe.caption(both[1:], seed=9, steps=5)


def test_questions(pipe):
    start = pipe.words.blanks("Q: what colour is the house ? A: ", 24)
    written = pipe.write(picture(), start, steps=4, seed=2)
    answer, = pipe.ask(picture(), "what colour is the house ?", steps=4, seed=2)
    assert written[0][:8] == start[:8] and answer == pipe.words.answer(written[0], 8)
    kept = pipe.words.blanks("Q: what A: ", 12, keep_end=True)
    assert kept[3:5] == [1, 79] and pipe.words.blanks("Q: what A: ", 12)[3] == 79


def test_blanks_in_a_text(pipe):
    text, = pipe.fill(picture(), "a {2} house beside the {1}", steps=3, seed=1)
    words = text.split()
    assert words[0] == "a" and "house beside the" in text and "<extra_id_0>" not in text


def test_scores(pipe):
    both = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    scores = pipe.score(both, "a red house")
    assert scores == pytest.approx([pipe.score(row[None], "a red house")[0] for row in both], rel=1e-4)
    assert pipe.score(both, ["a red house", "a car"])[0] == pytest.approx(scores[0], rel=1e-4)


@pytest.mark.parametrize("call, message", [
    (lambda pipe: pipe.ask(None, "what"), "this needs a picture"),
    (lambda pipe: pipe.caption(None), "this needs a picture"),
    (lambda pipe: pipe.ask(picture(), "  "), "the question is empty"),
    (lambda pipe: pipe.ask(picture(), "what", style="long"), "unknown answer style 'long': use free, short"),
    (lambda pipe: pipe.ask(picture(), "what " * 40), "42 tokens and the whole text 24 places: nothing is left"),
    (lambda pipe: pipe.fill(picture(), "a house"), "nothing to fill in 'a house': write {n}"),
    (lambda pipe: pipe.fill(picture(), "a {0} house"), "nothing to fill"),
    (lambda pipe: pipe.fill(picture(), "a {40} house"), "the text has 43 tokens, more than 24"),
    (lambda pipe: pipe.caption(picture(), steps=0), "steps 0 must be at least 1"),
    (lambda pipe: pipe.caption(picture(80000, 1)), "too elongated"),
    (lambda pipe: pipe.score(picture(), ["a", "b"]), "2 texts for 1 pictures"),
    (lambda pipe: pipe.score(picture(), "a " * 40), "41 tokens, more than 24"),
])
def test_texts_that_cannot_be(pipe, call, message):
    with pytest.raises(ValueError, match=message):
        call(pipe)


@pytest.mark.parametrize("size", [(1, 1), (8000, 900)])
@pytest.mark.parametrize("crop", ["crop", "pad", "stretch"])
def test_any_size_of_picture_is_read(pipe, size, crop):
    text, = pipe.caption(Image.new("RGB", size, "red"), seed=1, steps=1, crop=crop,
                         options=TextOptions(stop_at_end=True))
    assert isinstance(text, str)
