"""Prompts and their features: clean-up, instruction prefix, Gemma-2 (spec 4).

The host has its own Gemma-2; `GemmaText` serves the standalone core and the training, through `transformers`, which
is imported only when an encoder is built. Both read the same file: Gemma-2 keys plus the tokenizer as a
`spiece_model` tensor of bytes.
"""

import json
import re
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from .domains import JODI_BINS

HEAD_DIM = 256  # of every Gemma-2 file that the host can load
PAD, EOS, BOS, UNK = 0, 1, 2, 3  # token numbers that Gemma fixes
MAX_LENGTH = 300
FLAGS = ("--aspect_ratio", "--ar", "--hw")


def clean_prompt(prompt: str) -> str:
    """The prompt without size flags: the text before the first of them, stripped (spec 4).

    The search is for plain substrings, as in the original: `--arrow` cuts as well.
    """
    for flag in FLAGS:
        prompt = prompt.split(flag)[0]
    return prompt.strip()


class SizeFlags(NamedTuple):
    """What the size flags of a prompt ask for; sizes are (height, width) in pixels."""

    ratio: float
    bin_hw: tuple[int, int]
    custom_hw: tuple[int, int]


def parse_size_flags(prompt: str, bins=JODI_BINS) -> SizeFlags:
    """Read `--aspect_ratio h:w`, `--ar h:w` and `--hw h:w` (whole numbers) of a prompt (spec 4).

    `ratio` is the key of the bin nearest to the asked height / width (1 without a flag; `--aspect_ratio` beats `--ar`,
    the first occurrence counts), `bin_hw` that bin, `custom_hw` the size of `--hw` or else the bin.
    """
    asked = _flag(prompt, "--aspect_ratio") or _flag(prompt, "--ar") or (1, 1)
    if not asked[1]:
        raise ValueError(f"the prompt asks for the aspect ratio {asked[0]}:0; give height:width, both above 0")
    ratio = min(bins, key=lambda key: abs(key - asked[0] / asked[1]))
    bin_hw = tuple(int(side) for side in bins[ratio])
    return SizeFlags(ratio, bin_hw, _flag(prompt, "--hw") or bin_hw)


def _flag(prompt: str, name: str) -> tuple[int, int] | None:
    found = re.search(name + r"\s+(\d+):(\d+)", prompt)
    return found and (int(found[1]), int(found[2]))


def instruction_prefix() -> str:
    """The instruction that the published model puts before every prompt; it ends with a blank."""
    return (Path(__file__).parent / "assets" / "instruction.txt").read_text(encoding="utf-8")


def selected_positions(prefix_tokens: int, max_length: int = MAX_LENGTH) -> list[int]:
    """The `max_length` token positions that become text features (spec 4).

    prefix_tokens: length of the tokenised prefix with its start token, 0 for no prefix. The start token is kept, and
    everything from the prefix's last token on, because its trailing blank merges into the first word of the prompt.
    """
    if prefix_tokens == 0:
        return list(range(max_length))
    return [0, *range(prefix_tokens - 1, prefix_tokens + max_length - 2)]


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a Gemma-2 text encoder (field names as in its published configuration) and how prompts are put to it.

    prefix: text before every prompt; max_length: number of text features.
    soft_cap: bound on attention scores, None for none. None is the default although Gemma-2 was trained with 50: the
    original's attention kernel ignored the cap, and the host's Gemma-2 has none. The published configuration does not
    say which of the two the weights saw in training.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    prefix: str
    max_length: int = MAX_LENGTH
    soft_cap: float | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The architecture alone: what both `transformers` and the host take to build a Gemma-2."""
        return {name: value for name, value in asdict(self).items() if name not in ("prefix", "max_length", "soft_cap")}

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_state_dict(cls, shapes: dict[str, tuple[int, ...]], stored: dict | None = None) -> "TextConfig":
        """Read the sizes from tensor shapes; `stored` is the configuration in the file's metadata, if it has one.

        Without it the published prefix and length hold. ValueError if the keys are not those of a Gemma-2 or the
        stored configuration contradicts the tensors.
        """
        first = "model.layers.0."
        try:
            vocab, hidden = shapes["model.embed_tokens.weight"]
            sizes = dict(
                vocab_size=vocab, hidden_size=hidden,
                intermediate_size=shapes[first + "mlp.gate_proj.weight"][0],
                num_hidden_layers=len([key for key in shapes if key.endswith("post_feedforward_layernorm.weight")]),
                num_attention_heads=shapes[first + "self_attn.q_proj.weight"][0] // HEAD_DIM,
                num_key_value_heads=shapes[first + "self_attn.k_proj.weight"][0] // HEAD_DIM)
        except KeyError as missing:
            raise ValueError(f"not a Gemma-2 text encoder: it has no {missing}. Choose a Gemma-2-2b file "
                             "(instruction tuned) or the text encoder of a bundle") from None
        stored = stored or {}
        wrong = [name for name, value in sizes.items() if stored.get(name, value) != value]
        if wrong:
            raise ValueError("the text encoder's metadata contradicts its tensors: " + ", ".join(
                f"{name} is {sizes[name]}, not {stored[name]}" for name in wrong))
        prefix = stored["prefix"] if "prefix" in stored else instruction_prefix()
        return cls(**sizes, prefix=prefix, max_length=stored.get("max_length", MAX_LENGTH),
                   soft_cap=stored.get("soft_cap"))


class GemmaText:
    """A tokenizer and a Gemma-2 decoder whose last hidden states are text features.

    config: TextConfig; model: `transformers.Gemma2Model`; spiece_model: serialised sentencepiece model.
    """

    def __init__(self, config: TextConfig, model: torch.nn.Module, spiece_model: bytes):
        from sentencepiece import SentencePieceProcessor
        self.config = config
        self.model = model
        self.tokenizer = SentencePieceProcessor(model_proto=spiece_model)
        self.prefix_tokens = len(self._tokens(config.prefix)) if config.prefix else 0

    def _tokens(self, text: str) -> list[int]:
        return [BOS, *self.tokenizer.encode(text)]

    def tokenize(
            self, texts: list[str], max_length: int, total: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Token numbers (B, total) int64, padded on the right, and lengths (B,); texts are cut at max_length.

        total: length to pad to; by default that of the longest text.
        """
        rows = [self._tokens(text)[:max_length] for text in texts]
        lengths_B = torch.tensor([len(row) for row in rows])
        total = total or int(lengths_B.max())
        tokens_BN = torch.tensor([(row + [PAD] * (total - len(row)))[:total] for row in rows])
        return tokens_BN, lengths_B

    def hidden_states(self, tokens_BN: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Features (B, N, hidden_size) after the final norm; tokens at or beyond a row's length are not attended to."""
        device = self.model.device
        mask_BN = torch.arange(tokens_BN.shape[1]) < lengths_B[:, None]
        return self.model(input_ids=tokens_BN.to(device), attention_mask=mask_BN.long().to(device),
                          use_cache=False).last_hidden_state

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, M, hidden_size) float32 and lengths (B,) int64 of prompts put after the prefix.

        M is the largest length, at most max_length: rows beyond a length are meaningless. The full-length padding of
        the original is left out, which changes nothing because the encoder is causal (spec 1.7 c2).
        Prompts are taken as they are: size flags are the caller's business (`clean_prompt`).
        """
        positions = selected_positions(self.prefix_tokens, self.config.max_length)
        texts = [self.config.prefix + prompt for prompt in prompts]
        tokens_BN, lengths_B = self.tokenize(texts, max_length=positions[-1] + 1)
        positions = torch.tensor([place for place in positions if place < tokens_BN.shape[1]])
        features_BMC = self.hidden_states(tokens_BN, lengths_B)[:, positions.to(self.model.device)]
        return features_BMC.float(), (positions < lengths_B[:, None]).sum(dim=1)

    @torch.no_grad()
    def encode_negative(self, prompts: list[str], rows: int | None = None) -> torch.Tensor:
        """Unconditional features (B, rows, hidden_size) float32 of negative prompts; "" for none.

        Without the prefix, and with the rows of the padding, which the model attends to: guidance uses as many rows
        as the prompt has valid ones (spec 4). rows: by default max_length. Nothing is kept for later calls.
        """
        rows = rows or self.config.max_length
        tokens_BN, lengths_B = self.tokenize(prompts, self.config.max_length, total=rows)
        return self.hidden_states(tokens_BN, lengths_B).float()


def text_from_state_dict(state_dict: dict[str, torch.Tensor], metadata: dict[str, str] | None = None, *,
                         device=None, dtype: torch.dtype | None = None) -> GemmaText:
    """An encoder from the tensors and the safetensors metadata of a text encoder file.

    state_dict: Gemma-2 keys (`model.…`) and `spiece_model` (uint8). metadata: its "jodi" entry holds the TextConfig;
    without one, sizes come from the shapes and the prefix is the published one. dtype: of the weights, by default as
    stored. ValueError on another model's file, on missing, unexpected or mis-shaped tensors.
    """
    stored = json.loads((metadata or {}).get("jodi", "{}")).get("config")
    weights = {key: value for key, value in state_dict.items() if key not in ("spiece_model", "lm_head.weight")}
    config = TextConfig.from_state_dict({key: tuple(value.shape) for key, value in weights.items()}, stored)
    if "spiece_model" not in state_dict:
        raise ValueError("the text encoder file has no tokenizer (tensor spiece_model): use a Gemma-2-2b file made for "
                         "the host, or convert a folder that has tokenizer.model")
    model = build_gemma(config, weights, device=device, dtype=dtype)
    return GemmaText(config, model, state_dict["spiece_model"].cpu().numpy().tobytes())


def build_gemma(config: TextConfig, weights: dict[str, torch.Tensor] | None = None, *, device=None,
                dtype: torch.dtype | None = None) -> torch.nn.Module:
    """A `transformers.Gemma2Model`, freshly initialised or with these weights (keys `model.…`), ready to use."""
    from transformers import Gemma2Config, Gemma2Model
    # Eager attention: it is the kernel that obeys attn_logit_softcapping, including None, in every release.
    gemma = Gemma2Config(**config.sizes, head_dim=HEAD_DIM, query_pre_attn_scalar=HEAD_DIM, pad_token_id=PAD,
                         eos_token_id=EOS, bos_token_id=BOS, attn_logit_softcapping=config.soft_cap,
                         attn_implementation="eager")
    if weights is None:
        return Gemma2Model(gemma).to(device=device, dtype=dtype).eval()
    with torch.device("meta"):
        _check_keys(Gemma2Model(gemma).state_dict(), weights)
    dtype = dtype or weights["model.norm.weight"].dtype
    weights = {key.removeprefix("model."): value for key, value in weights.items()}
    # from_pretrained and not load_state_dict: it does not fill gigabytes with random numbers first.
    with _no_progress_bar():
        return Gemma2Model.from_pretrained(None, config=gemma, state_dict=weights).to(device=device, dtype=dtype).eval()


def expected_text_shapes(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors of a Gemma-2 file of this configuration, beside the tokenizer."""
    with torch.device("meta"):
        return {"model." + name: tuple(tensor.shape) for name, tensor in build_gemma(config).state_dict().items()}


@contextmanager
def _no_progress_bar():
    """`transformers` shows a bar even where loading takes milliseconds."""
    from transformers.utils import logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_keys(wanted: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> None:
    wanted = {"model." + key: value.shape for key, value in wanted.items()}
    faults = {
        "missing": wanted.keys() - weights.keys(),
        "unexpected": weights.keys() - wanted.keys(),
        "mis-shaped": {key for key in wanted.keys() & weights.keys() if weights[key].shape != wanted[key]},
    }
    told = [f"{len(keys)} {fault} ({', '.join(sorted(keys)[:3])})" for fault, keys in faults.items() if keys]
    if told:
        raise ValueError("the text encoder's tensors do not fit a Gemma-2: " + "; ".join(told))
