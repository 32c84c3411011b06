"""The text side of the tiny Dual Diffusion: a tokenizer of whole words, and a small T5 v1.1 encoder, untrained.

    python -m training.dual_words --output runs/tiny_dual_diffusion/text

The encoder is trained together with the transformer (mode = "text_encoder") and is part of what comes out.
"""

import argparse
import json
import random
import re
from pathlib import Path

import torch

from jodi_core.dual_diffusion.t5 import T5Sizes
from jodi_core.files import write_safetensors
from training.captions import caption, vary
from training.questions import all_words
from training.scene import sample_scene

SPECIAL = ("<pad>", "</s>", "<unk>")    # numbers 0, 1, 2 as in T5
MASK = "<extra_id_0>"                   # the last number
WIDTH, LAYERS, HEADS, HEAD_DIM, MLP, BUCKETS = 128, 2, 4, 32, 256, 32
NEIGHBOURS, NEIGHBOUR_BIAS = (-1, 1, -2, 2), 6.0    # of each head: what it looks at first, and how much
LENGTH = 48                             # tokens of a text
CAPTIONS = 4000                         # that words are taken from


def vocabulary() -> list[str]:
    """Words and marks of toy captions, questions and answers; those in the captions of scenes more than once."""
    counts: dict[str, int] = {}
    for seed in range(CAPTIONS):
        for piece in pieces(vary(caption(sample_scene(seed), seed), random.Random(seed))):
            counts[piece] = counts.get(piece, 0) + 1
    common = [piece for piece, count in counts.items() if count > 5]
    return sorted({*common, *(piece for text in all_words() for piece in pieces(text))})


def pieces(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def write_tokenizer(folder: Path) -> int:
    """`tokenizer.json` and its settings as published models have them; the number of tokens."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
    known = {piece: number for number, piece in enumerate((*SPECIAL, *vocabulary(), MASK))}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*SPECIAL, MASK)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return len(known)


def write_encoder(folder: Path, tokens: int, seed: int = 0) -> None:
    """`model.safetensors` of a T5 v1.1 encoder with initial values.

    Each head begins by looking at one neighbour: nothing else tells two blanks of a text apart.
    """
    from transformers import T5Config, T5EncoderModel
    sizes = T5Sizes(tokens, WIDTH, HEAD_DIM, MLP, LAYERS, HEADS, BUCKETS)
    torch.manual_seed(seed)
    model = T5EncoderModel(T5Config(**vars(sizes), feed_forward_proj="gated-gelu", is_decoder=False))
    attention = model.encoder.block[0].layer[0].SelfAttention
    buckets_H = attention._relative_position_bucket(torch.tensor(NEIGHBOURS), num_buckets=BUCKETS)
    with torch.no_grad():
        attention.relative_attention_bias.weight[buckets_H, torch.arange(HEADS)] += NEIGHBOUR_BIAS
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value for name, value in model.state_dict().items() if name != "encoder.embed_tokens.weight"}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"}, overwrite=True)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.dual_words", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder: tokenizer/ and text_encoder/")
    options = parser.parse_args(arguments)
    tokens = write_tokenizer(options.output / "tokenizer")
    write_encoder(options.output / "text_encoder", tokens)
    print(f"{options.output}: {tokens} tokens; set model.vocab_size = {tokens}")


if __name__ == "__main__":
    main()
