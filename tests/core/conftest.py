"""A complete random model, small enough that every test may run it: `tiny_files` and the folder that holds it."""

import io

import pytest
import torch

from jodi_core.models.dcae import ATTENTION, DCAE, RESIDUAL, DCAEConfig
from jodi_core.models.jodi import JodiConfig, JodiTransformer
from jodi_core.weights import write_model

BINS = {0.5: (32, 64), 1.0: (48, 48), 2.0: (64, 32)}


def random_transformer() -> JodiTransformer:
    torch.manual_seed(0)
    config = JodiConfig(hidden_size=64, depth=2, num_heads=4, in_channels=8, input_size=6, caption_channels=64,
                        model_max_length=24, y_norm_scale_factor=1.0, bins=BINS)
    transformer = JodiTransformer(config)
    transformer.init_weights()
    return transformer


def random_autoencoder() -> DCAE:
    torch.manual_seed(1)
    autoencoder = DCAE(DCAEConfig(latent_channels=8, widths=(8, 16, 16, 32), encoder_depths=(1,) * 4,
                                  decoder_depths=(1,) * 4, kinds=(RESIDUAL,) * 3 + (ATTENTION,)))
    # A fresh decoder paints almost the same grey everywhere; pictures should differ.
    torch.nn.init.normal_(autoencoder.state_dict()["decoder.project_out.op_list.2.conv.weight"], std=0.3)
    return autoencoder


def random_text_encoder():
    """(TextConfig, tensors) of a Gemma-2 with its own tokenizer."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from jodi_core.text import TextConfig, build_gemma
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red house beside a lake", "a blue car on the right, a tree"] * 20),
        model_writer=written, model_type="bpe", vocab_size=310, byte_fallback=True, add_dummy_prefix=False, pad_id=0,
        eos_id=1, bos_id=2, unk_id=3, minloglevel=2)
    torch.manual_seed(2)
    config = TextConfig(310, 64, 96, 1, 1, 1, prefix="draw this: ", max_length=24)
    tensors = {"model." + key: value.clone() for key, value in build_gemma(config).state_dict().items()}
    return config, {**tensors, "spiece_model": torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder in bundle layout; read it, never write into it."""
    folder = tmp_path_factory.mktemp("tiny")
    for kind, model in (("transformer", random_transformer()), ("autoencoder", random_autoencoder())):
        write_model(folder / f"{kind}.safetensors", kind, model.config, model.state_dict())
    write_model(folder / "text_encoder.safetensors", "text_encoder", *random_text_encoder())
    return folder


@pytest.fixture(scope="session")
def tiny_files(tiny_folder):
    """Kind -> file."""
    return {kind: tiny_folder / f"{kind}.safetensors" for kind in ("transformer", "autoencoder", "text_encoder")}
