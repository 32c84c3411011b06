"""The nodes of Dual Diffusion: what they load and refuse, and the texts that they make of pictures."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import pytest
import torch
from dual_diffusion_files import TRANSFORMER, write_tokenizer
from dual_diffusion_fixtures import folder, loaded, recorded
from safetensors.torch import load_file, save_file

from jodi_core.dual_diffusion.pipeline import DualDiffusionPipeline
from jodi_core.dual_diffusion.weights import load_t5, load_transformer, load_words
from jodi_pack.jodi_core.dual_diffusion.text_sampling import TextOptions
from jodi_pack.jodi_core.files import WeightsError
from jodi_pack.nodes import captions, dual_diffusion_text, fill_text, text_options
from jodi_pack.nodes.dual_diffusion_loader import FOLDER, IN_TEXT_ENCODER, SAME_FOLDER, JodiDualDiffusionLoader
from jodi_pack.nodes.host.picture_vae import load_picture_vae
from jodi_pack.nodes.host.writing import Writer

BATCH = torch.rand(3, 64, 48, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def outside_of_a_server(monkeypatch):
    for node in (captions.JodiCaptionImage, captions.JodiAskImage, fill_text.JodiFillText, fill_text.JodiScoreText,
                 dual_diffusion_text.JodiDualDiffusionTextEncode):
        monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id=None))


def call(node, *values, image=BATCH, **settings) -> list:
    """The outputs of a node that writes, on the recorded model."""
    return list(node.execute(*loaded(), image, *values, **{"length": 20} | settings).result)


# ---- files ------------------------------------------------------------------------------------------------------

@pytest.fixture
def models(monkeypatch, tmp_path):
    """The host's models folder, with the published folder in it and its parts one by one."""
    for name in ("diffusers", "diffusion_models", "text_encoders", "vae"):
        (tmp_path / name).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name,
                            ([str(tmp_path / name)], folder_paths.supported_pt_extensions))
    folder_paths.filename_list_cache.clear()
    shutil.copytree(folder(), tmp_path / "diffusers" / "authors" / "dual")
    return tmp_path


def load(model="diffusers: authors/dual", text=SAME_FOLDER, vae=SAME_FOLDER, mask=IN_TEXT_ENCODER):
    told = JodiDualDiffusionLoader.validate_inputs(model, text, vae, mask)
    if told is not True:
        raise ValueError(told)
    return JodiDualDiffusionLoader.execute(model, text, vae, mask).result


def in_the_folder(models: Path) -> Path:
    return models / "diffusers" / "authors" / "dual"


def alone(models: Path) -> None:
    """Its parts as single files."""
    source = in_the_folder(models)
    tensors = {}
    for part in sorted((source / "text_encoder").glob("*.safetensors")):
        tensors |= load_file(part)
    save_file(tensors, models / "text_encoders" / "t5.safetensors")
    shutil.copy(source / TRANSFORMER, models / "diffusion_models" / "dual.safetensors")
    shutil.copy(source / "vae" / "diffusion_pytorch_model.safetensors", models / "vae" / "taesd3.safetensors")
    torch.save(torch.ones(48), models / "text_encoders" / "mask_token_emb.00-of-01.pth")


def test_a_folder_is_offered_and_loads(models):
    schema = JodiDualDiffusionLoader.define_schema()
    assert FOLDER + "authors/dual" in schema.inputs[0].options and schema.inputs[1].options == [SAME_FOLDER]
    model, clip, vae = load()
    assert model.model.diffusion_model.config.vocab_size == 80 and clip.tokenizer.words.longest == 24
    assert vae.latent_channels == 16


def test_parts_from_several_places(models):
    alone(models)
    _, clip, _ = load(text="t5.safetensors", vae="taesd3.safetensors", mask="mask_token_emb.00-of-01.pth")
    rows = clip.cond_stage_model.t5xxl.transformer.shared.weight
    assert torch.equal(rows[79], torch.ones_like(rows[79])) and not torch.equal(rows[78], rows[79])
    with pytest.raises(WeightsError, match="the vocabulary of T5 v1.1 is not this model's tokenizer: .* has 80 tokens"):
        load("dual.safetensors", "t5.safetensors", "taesd3.safetensors")
    with pytest.raises(ValueError, match="'dual.safetensors' is no folder with all parts: choose a text encoder"):
        load("dual.safetensors")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "diffusers: ../x", "gone.safetensors"])
def test_names_stay_inside_the_models_folder(models, name):
    with pytest.raises(ValueError, match="is not in models/diffusion_models or models/diffusers. Run `hf download"):
        load(name)
    with pytest.raises(FileNotFoundError):
        JodiDualDiffusionLoader.execute(name, SAME_FOLDER, SAME_FOLDER)
    with pytest.raises(ValueError, match="is not in models/text_encoders"):
        load(text=name)


def renamed(tensors: dict) -> dict:
    """As a Stable Diffusion 3 file: its head has other names, and there is none for text."""
    return {name.replace("image_proj_out", "proj_out"): value for name, value in tensors.items()
            if not name.startswith("text_proj_out")}


@pytest.mark.parametrize("change, message", [
    (renamed, "is a Stable Diffusion 3 transformer.*, but a Dual Diffusion transformer is wanted"),
    (lambda tensors: {name: value for name, value in tensors.items() if "text_proj" not in name}, "its text head"),
    (lambda tensors: {name: value for name, value in tensors.items() if "1.ff.net" not in name}, "4 missing"),
])
def test_another_transformer_is_refused(models, change, message):
    file = in_the_folder(models) / TRANSFORMER
    save_file(change(load_file(file)), file)
    with pytest.raises(WeightsError, match=message):
        load()


def test_another_tokenizer_or_text_encoder_is_refused(models):
    alone(models)
    tensors = load_file(models / "text_encoders" / "t5.safetensors")
    narrow = {name: value[..., :32].clone() if value.shape[-1] == 48 else value for name, value in tensors.items()}
    save_file(narrow, models / "text_encoders" / "t5.safetensors")
    with pytest.raises(WeightsError, match="a T5 with states of width 32 .* reads states of width 48"):
        load(text="t5.safetensors")
    save_file({name: value for name, value in tensors.items() if "1.layer.0" not in name},
              models / "text_encoders" / "t5.safetensors")
    with pytest.raises(WeightsError, match="t5.safetensors: the tensors do not fit. 5 missing"):
        load(text="t5.safetensors")
    shutil.rmtree(in_the_folder(models) / "tokenizer")
    write_tokenizer(in_the_folder(models) / "tokenizer", 60)
    with pytest.raises(WeightsError, match="not this model's tokenizer"):
        load()


def test_another_vae_is_refused(models):
    file = in_the_folder(models) / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors |= {"taesd_decoder.1.weight": torch.zeros(64, 4, 3, 3), "taesd_encoder.14.weight": torch.zeros(4, 64, 3, 3),
                "taesd_encoder.14.bias": torch.zeros(4)}
    save_file(tensors, file)
    with pytest.raises(WeightsError, match="the autoencoder makes 4 channels, but the model takes 16"):
        load()
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match="is no VAE that ComfyUI knows"):
        load()


def test_the_published_naming_of_the_autoencoder(tmp_path):
    """In diffusers' names, at the size that the host builds: of all tensors one is missed."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        shapes = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, use_quant_conv=False,
            use_post_quant_conv=False, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4).state_dict()
    tensors = {name: torch.zeros(value.shape, dtype=torch.bfloat16) for name, value in shapes.items()}
    del tensors["encoder.mid_block.resnets.1.conv2.bias"]
    save_file(tensors, tmp_path / "vae.safetensors")
    with pytest.raises(WeightsError, match="fit. 1 missing: encoder.mid.block_2.conv2.bias. The file"):
        load_picture_vae(str(tmp_path / "vae.safetensors"))


def test_the_autoencoder_of_a_jodi(models):
    """As the tiny model has it: 32 channels of 16x16 pixels. The host's empty latent is brought to them."""
    import nodes
    from jodi_pack.jodi_core.dual_diffusion.config import DualDiffusionConfig
    from jodi_pack.jodi_core.dual_diffusion.network import DualDiffusionTransformer
    from jodi_pack.nodes.loader import TINY
    torch.manual_seed(0)
    network = DualDiffusionTransformer(DualDiffusionConfig(
        vocab_size=80, sample_size=8, in_channels=32, out_channels=32, num_layers=1, num_attention_heads=1,
        joint_attention_dim=48, caption_projection_dim=64, pos_embed_max_size=4))
    network.init_weights()
    save_file(network.state_dict(), in_the_folder(models) / TRANSFORMER)
    (in_the_folder(models) / "transformer" / "config.json").unlink()
    with pytest.raises(WeightsError, match="the autoencoder makes 16 channels, but the model takes 32"):
        load()
    model, clip, vae = load(vae=TINY)
    assert vae.encode(torch.rand(2, 64, 48, 3)).shape == (2, 32, 4, 3)
    assert vae.decode_tiled(torch.zeros(1, 32, 8, 8), tile_x=128, tile_y=128).shape == (1, 128, 128, 3)
    positive = clip.encode_from_tokens_scheduled(clip.tokenize("a red house"))
    empty = {"samples": torch.zeros(1, 16, 16, 16), "downscale_ratio_spacial": 8}
    latent, = nodes.KSampler().sample(model, 0, 2, 3.0, "euler", "normal", positive, positive, empty)
    assert latent["samples"].shape == (1, 32, 8, 8) and vae.decode(latent["samples"]).shape == (1, 128, 128, 3)
    assert Writer(model, clip, vae, side=96).latents(BATCH).shape == (3, 32, 6, 6)


# ---- prompts ----------------------------------------------------------------------------------------------------

def test_prompts():
    model, clip, _ = loaded()
    encode = dual_diffusion_text.JodiDualDiffusionTextEncode.execute
    [[states, values]] = encode(clip, "a red house", length=24).result[0]
    words = clip.tokenizer.words
    ids = torch.tensor([words.prompt("a red house", 24)])
    assert torch.equal(states, clip.cond_stage_model.states(ids, torch.device("cpu"))) and states.shape == (1, 24, 48)
    assert values["pooled_output"] is None
    stock = clip.encode_from_tokens_scheduled(clip.tokenize("a red house"))
    assert torch.equal(stock[0][0], states)
    padded = clip.tokenize("a red house", length=6, pad_id=0)
    assert [token for token, _ in padded["t5xxl"][0]] == [3, 4, 6, 1, 0, 0]


def test_a_long_prompt_is_cut_and_said(caplog):
    with pytest.warns(UserWarning, match="the prompt has 41 tokens"):
        [[states, _]] = dual_diffusion_text.JodiDualDiffusionTextEncode.execute(loaded()[1], "red " * 40,
                                                                               length=24).result[0]
    assert states.shape[1] == 24
    assert "the prompt has 41 tokens, of which only 24 are read: shorten it" in caplog.text


def test_another_clip_is_refused(loaded_jodi):
    with pytest.raises(ValueError, match="no T5 with the tokenizer of Dual Diffusion"):
        dual_diffusion_text.JodiDualDiffusionTextEncode.execute(loaded_jodi[1], "a")
    with pytest.raises(ValueError, match="this MODEL writes no text"):
        Writer(loaded_jodi[0], *loaded()[1:])
    model = loaded()[0]
    for states in (torch.zeros(1, 5, 64), None):
        with pytest.raises(ValueError, match="are (64|none) wide, but this model takes 48: use Dual Diffusion Text"):
            model.model.extra_conds(cross_attn=states, noise=torch.zeros(1, 16, 8, 8), device="cpu")


@pytest.fixture(scope="module")
def loaded_jodi(tiny_files):
    from jodi_pack.nodes.host.model import load_model
    from jodi_pack.nodes.host.text import load_clip
    return load_model(str(tiny_files["transformer"])), load_clip(str(tiny_files["text_encoder"]))


def test_pictures_that_cannot_be():
    network, states = loaded()[0].model.diffusion_model, recorded()["image.positive_embeds"]
    for side in (1000, 26):
        with pytest.raises(ValueError, match=f"latents of {side}x{side}: both sides must be .* at most 24"):
            network(torch.zeros(1, 16, side, side), torch.ones(1), context=states)
    with pytest.raises(ValueError, match="ControlNets of Stable Diffusion 3 have no place"):
        network(torch.zeros(1, 16, 8, 8), torch.ones(1), context=states, control={})


# ---- texts ------------------------------------------------------------------------------------------------------

def test_a_batch_gives_a_list_and_each_its_own_seed():
    texts, = call(captions.JodiCaptionImage, 7, 4)
    assert len(texts) == 3 and all(isinstance(text, str) and "extra_id" not in text for text in texts)
    alone = [call(captions.JodiCaptionImage, 7 + row, 4, image=BATCH[row:row + 1])[0][0] for row in range(3)]
    assert alone == texts and len(set(texts)) == 3


def test_the_same_as_outside_of_the_host(monkeypatch):
    """The pipeline's samplers and words, with the host's T5, transformer and memory."""
    latents = Writer(*loaded()).latents(BATCH[:1])
    monkeypatch.setattr(DualDiffusionPipeline, "look", lambda *_: latents)
    network = load_transformer(folder(), dtype=torch.float32)
    pipe = DualDiffusionPipeline(network, load_t5(folder(), network.config, dtype=torch.float32),
                                 load_words(folder(), network.config), SimpleNamespace(channels=16, factor=8))
    picture = BATCH[:1].movedim(-1, 1)
    settings = {"seed": 3, "steps": 4, "length": 20}
    assert call(captions.JodiCaptionImage, 3, 4, image=BATCH[:1])[0] == pipe.caption(picture, **settings)
    asked = call(captions.JodiAskImage, "what is red", "free", 3, 4, image=BATCH[:1])
    assert asked[0] == pipe.ask(picture, "what is red", **settings) and asked[1][0].startswith("Q: what is red A:")
    kept = call(captions.JodiAskImage, "what is red", "free", 3, 4, image=BATCH[:1], keep_end=True)
    assert kept[0] == pipe.ask(picture, "what is red", keep_end=True, **settings)
    filled, = call(fill_text.JodiFillText, "a {2} house", 3, 4, image=BATCH[:1])
    assert filled == pipe.fill(picture, "a {2} house", **settings) and "house" in filled[0]
    scores, = call(fill_text.JodiScoreText, "a red house", image=BATCH[:1])
    assert scores == pytest.approx(pipe.score(picture, "a red house", length=20), rel=1e-5)


def test_options_reach_the_sampler():
    chosen = text_options.JodiTextOptions.execute(samples=2, temperature=0.5, top_k=3, top_p=0.9, confident=True,
                                                  stop_at_end=True, min_length=2).result[0]
    assert chosen["options"] == TextOptions(0.5, 3, 0.9, True, True, 2)
    texts, = call(captions.JodiCaptionImage, 1, 4, options=chosen)
    assert len(texts) == 3 and texts != call(captions.JodiCaptionImage, 1, 4)[0]
    unchanged = text_options.JodiTextOptions.execute(samples=1, temperature=1.0, top_k=0, top_p=1.0, confident=False,
                                                     stop_at_end=False, min_length=0).result[0]
    assert call(captions.JodiCaptionImage, 1, 4, options=unchanged) == call(captions.JodiCaptionImage, 1, 4)


def test_prompts_of_answers():
    for style, words in (("short", "single word"), ("short or unanswerable", "unanswerable"), (captions.RAW, "tell")):
        question = "tell me A:" if style == captions.RAW else "what"
        whole = call(captions.JodiAskImage, question, style, 0, 1, length=60, image=BATCH[:1])[1][0]
        assert whole.startswith("<unk> <unk> A:" if style == captions.RAW else "Q: what"), (style, words)


def test_progress_drafts_and_interrupt(monkeypatch):
    """More pictures than are written at once: the bar goes on; each draft has fewer blanks than the one before."""
    import comfy.model_management
    import comfy.utils
    bars, drafts = [], []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: bars.append((value, total)))
    monkeypatch.setattr("jodi_pack.nodes.host.writing.ROWS_AT_ONCE", 2)
    writer = Writer(*loaded(), tell=drafts.append)
    writer.write(BATCH, writer.words.blanks("", 12), 0, 3)
    assert bars[-1] == (6, 6) and [value for value, _ in bars] == sorted(value for value, _ in bars)
    assert [len(draft) for draft in drafts[:1] + drafts[-1:]] == [2, 1]
    blanks = [draft[0].count(" _") for draft in drafts[:3]]
    assert blanks == sorted(blanks, reverse=True) and blanks[-1] < 2 and "extra_id" not in drafts[0][0]
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        writer.write(BATCH, writer.words.blanks("", 12), 0, 50)
    assert len(drafts) < 8


@pytest.mark.parametrize("size", [(1, 1), (8000, 1000), (40, 8000)])
def test_any_size_of_picture_is_read(size):
    texts, = call(captions.JodiCaptionImage, 0, 1, image=torch.zeros(1, *size, 3), crop="pad")
    assert len(texts) == 1


@pytest.mark.parametrize("node, values, settings, message", [
    (captions.JodiAskImage, ("  ", "free", 0, 1), {}, "the question is empty"),
    (captions.JodiAskImage, ("what " * 40, "free", 0, 1), {}, "42 tokens and the whole text 20 places: nothing"),
    (captions.JodiCaptionImage, (0, 0), {}, "steps 0 must be at least 1"),
    (captions.JodiCaptionImage, (0, 1), {"resolution": 100}, "resolution 100 must be a multiple of 16 up to 192"),
    (captions.JodiCaptionImage, (0, 1), {"resolution": 512}, "resolution 512 must be a multiple of 16 up to 192"),
    (captions.JodiCaptionImage, (0, 1), {"image": torch.zeros(1, 1, 80000, 3)}, "too elongated"),
    (fill_text.JodiFillText, ("a house", 0, 1), {}, "nothing to fill in 'a house': write {n}"),
    (fill_text.JodiFillText, ("a {0} house", 0, 1), {}, "nothing to fill"),
    (fill_text.JodiFillText, ("a {40} house", 0, 1), {}, "the text has 43 tokens, more than 20"),
    (fill_text.JodiScoreText, ("a " * 40,), {}, "the text has 41 tokens, more than 20"),
])
def test_texts_that_cannot_be(node, values, settings, message):
    with pytest.raises(ValueError, match=message):
        call(node, *values, **settings)
