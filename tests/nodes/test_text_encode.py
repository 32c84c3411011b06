"""Jodi Text Encode: as the published pipeline reads prompts, with our text encoder and with the stock loader's."""

import comfy.sd
import pytest
import torch
from nodes_fixtures import relative

from jodi_core.pipeline import JodiPipeline
from jodi_core.text import instruction_prefix
from jodi_core.weights import read_text_encoder
from jodi_pack.nodes import joint
from jodi_pack.nodes.host.text import JodiTokenizer
from jodi_pack.nodes.text import JodiTextEncode


@pytest.fixture(scope="module")
def reader(tiny_folder):
    return JodiPipeline.from_pretrained(tiny_folder, device="cpu", dtype=torch.float32).text_encoder


@pytest.mark.parametrize("prompt", ["a red house beside a lake", "  a tree --ar 16:9 on the left", ""])
def test_as_the_pipeline_reads(loaded, reader, prompt):
    positive, negative = JodiTextEncode.execute(loaded[1], prompt, "a blue car").result
    features_1MC, length = reader.encode([prompt.split("--ar")[0].strip()])
    assert relative(positive[0][0], features_1MC[:, :int(length)]) < 1e-5
    assert relative(negative[0][0][:, :9], reader.encode_negative(["a blue car"])[:, :9]) < 1e-5


def test_another_text_encoder_is_refused(loaded):
    class Other:
        tokenizer = "of another model"
    with pytest.raises(ValueError, match="not the text encoder of a joint model"):
        JodiTextEncode.execute(Other(), "a tree")
    with pytest.raises(ValueError, match=r"\(nothing\)"):
        JodiTextEncode.execute(None, "a tree")


def test_the_stock_loader_s_text_encoder(tiny_files, tmp_path):
    """A Gemma-2 of tiny sizes through the host's own class, beside ours with the published prefix and length."""
    pixeldit = pytest.importorskip("comfy.text_encoders.pixeldit")
    from comfy.supported_models_base import ClipTarget
    from jodi_pack.nodes.host import text as ours
    config, tensors = read_text_encoder(tiny_files["text_encoder"])
    spiece = tensors.pop("spiece_model")
    published = type(config)(**{**config.__dict__, "prefix": instruction_prefix(), "max_length": 300})
    clips = [comfy.sd.CLIP(ClipTarget(tokenizer, model), parameters=10, state_dict=[dict(tensors)],
                           tokenizer_data={"config": published, "spiece_model": spiece},
                           model_options={"gemma2_2b_model_config": config.sizes, "dtype": torch.float32})
             for tokenizer, model in ((JodiTokenizer, ours.JodiTextModel),
                                      (pixeldit.PixelDiTGemma2Tokenizer, pixeldit.PixelDiTGemma2TE))]
    for prompt, negative_text in (("a red house", "a blue car"), ("", "")):
        (mine, my_negative), (theirs, their_negative) = (
            JodiTextEncode.execute(clip, prompt, negative_text).result for clip in clips)
        assert theirs[0][0].shape == mine[0][0].shape and relative(theirs[0][0], mine[0][0]) < 1e-5
        assert their_negative[0][0].shape[1] == my_negative[0][0].shape[1] == 300
        assert relative(their_negative[0][0], my_negative[0][0]) < 1e-5
        assert joint.NULL not in theirs[0][1]
