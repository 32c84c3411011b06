"""Words and token numbers (spec 4.1), and where question and answer lie in a sequence (spec 6.2, 7.5).

Text is a domain with a role like any other. A sequence (L,) of token numbers says it by itself: a *blank* holds the
mask token and is to be generated, any other token is given. All blank is the role `generate`, no blank is `condition`,
and what lies between, an inpainting mask of a picture, is here a prompt before the blanks or blanks in a text.

`transformers` and `tokenizers` are imported only when a tokenizer is made.
"""

import gzip
import json
import re
import warnings
from pathlib import Path

END = 1    # `</s>` of T5
TRAINED_LENGTH = 256    # tokens
ANSWER_LENGTH = 128     # of a question with its answer
VOCABULARY = Path(__file__).parent.parent / "assets" / "t5_tokenizer.json.gz"    # of T5 v1.1, Apache-2.0, by Google

# What follows a question, for the kind of answer that the tuned model is to give (spec 6.2).
_SHORT = " Answer the question using a single word or phrase."
ANSWER_STYLES = {"free": "", "short": _SHORT,
                 "short or unanswerable": _SHORT + " Reply unanswerable if information is not present in the image."}
_BLANK = re.compile(r"\{(\d+)\}")


def question_prompt(question: str, style: str = "free") -> str:
    """The question as the tuned model knows it; style: one of ANSWER_STYLES."""
    if style not in ANSWER_STYLES:
        raise ValueError(f"unknown answer style {style!r}: use {', '.join(ANSWER_STYLES)}")
    if not question.strip():
        raise ValueError("the question is empty: write one, or caption the picture")
    return f"Q: {question}{ANSWER_STYLES[style]} A: "


class Words:
    """The tokenizer of a model: text to token numbers and back.

    source: a folder with `tokenizer.json`, None for the vocabulary of T5 v1.1; vocab_size: classes of the text head.
    pad_id follows the folder's pad_token; without one it is `</s>`, as in training. longest: tokens of the longest
    text that the model was trained on, or fewer if the folder's model_max_length says so. ValueError for another
    tokenizer than the model's.
    """

    def __init__(self, vocab_size: int, source: Path | None = None):
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast
        if source is None:
            text = gzip.decompress(VOCABULARY.read_bytes()).decode()
        elif (source / "tokenizer.json").is_file():
            text = (source / "tokenizer.json").read_text(encoding="utf-8")
        else:
            raise ValueError(f"{source} has no tokenizer.json: give the folder `tokenizer` of the published model")
        settings = _settings(source)
        pad = settings.get("pad_token") or "</s>"
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), eos_token="</s>",
                                                 pad_token=pad["content"] if isinstance(pad, dict) else pad)
        self.mask_id, self.end_id, self.pad_id = vocab_size - 1, END, self.tokenizer.pad_token_id
        self.longest = min(TRAINED_LENGTH, settings.get("model_max_length") or TRAINED_LENGTH)
        if len(self.tokenizer) != vocab_size or self.tokenizer.eos_token_id != END or \
                self.mask_id not in self.tokenizer.added_tokens_decoder:
            raise ValueError(
                f"{source or 'the vocabulary of T5 v1.1'} is not this model's tokenizer: the model has {vocab_size} "
                f"tokens, the last one a special token for blanks and </s> number {END}; the tokenizer has "
                f"{len(self.tokenizer)}, </s> is number {self.tokenizer.eos_token_id}")

    def ids(self, text: str, end: bool = True) -> list[int]:
        """Token numbers; end: with `</s>` behind them. Blanks at the end of the text have no effect."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, self.end_id] if end else ids

    def prompt(self, text: str, length: int, pad_id: int | None = None) -> list[int]:
        """A prompt with `</s>`, cut or padded to the length; pad_id: None for the model's. Warns about what is cut."""
        ids = self.ids(text)
        if len(ids) > length:
            warnings.warn(f"the prompt has {len(ids)} tokens, the model reads {length}: it ends after "
                          f"{self.tokenizer.decode(ids[:length - 1])[-40:]!r}", stacklevel=2)
            ids = [*ids[:length - 1], self.end_id]
        return ids + [self.pad_id if pad_id is None else pad_id] * (length - len(ids))

    def whole(self, text: str, length: int) -> list[int]:
        """A text, then `</s>` up to the length. ValueError if it is longer."""
        ids = self.ids(text)
        if len(ids) > length:
            raise ValueError(f"the text has {len(ids)} tokens, more than {length}: shorten it or raise the length")
        return ids + [self.end_id] * (length - len(ids))

    def blanks(self, prompt: str, length: int, keep_end: bool = False) -> list[int]:
        """A given prompt, "" for none, and blanks up to the length.

        keep_end: with the prompt's `</s>` before the blanks, as the original's pipeline has it and its training has
        not. ValueError if the prompt leaves no blank.
        """
        ids = self.ids(prompt, end=keep_end) if prompt else []
        if len(ids) >= length:
            raise ValueError(f"the prompt has {len(ids)} tokens and the whole text {length} places: nothing is left "
                             "for the answer; shorten the prompt or raise the length")
        return ids + [self.mask_id] * (length - len(ids))

    def template(self, text: str, length: int) -> list[int]:
        """A text in which {n} stands for n blanks ("a {1} house"), then `</s>` up to the length.

        ValueError if there is no blank, or the text is too long.
        """
        mask = self.tokenizer.convert_ids_to_tokens(self.mask_id)
        ids = self.whole(_BLANK.sub(lambda found: mask * int(found[1]), text), length)
        if self.mask_id not in ids:
            raise ValueError(f"nothing to fill in {text!r}: write {{n}} where n tokens are wanted, as in "
                             "'a {1} house'")
        return ids

    def answer(self, ids: list[int], start: int = 0) -> str:
        """The text from a place on, up to the first `</s>`."""
        ids = ids[start:]
        return self.text(ids[:ids.index(self.end_id)] if self.end_id in ids else ids)

    def text(self, ids: list[int]) -> str:
        """All tokens as text, `</s>` left out: what lies behind it is glued on."""
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=True).replace("</s>", "").strip()

    def training_pair(self, question: str, answer: str, length: int, answer_first: bool = False,
                      question_last: bool = False) -> tuple[list[int], list[int]]:
        """(token numbers, label mask) of a question with its answer, cut or padded to the length (spec 7.5).

        question: with the sentence of its style. Label 0: the question, which is never masked; 1: answer and padding.
        answer_first: the other order; question_last: with the padding between the two.
        """
        if not answer_first:
            parts = [(self.ids(f"Q: {question} A: ", end=False), 0), (self.ids(answer), 1)]
        else:
            parts = [(self.ids(answer, end=False), 1), (self.ids(f" Q: {question}"), 0)]
        padding = [self.end_id] * (length - sum(len(ids) for ids, _ in parts)), 1
        parts.insert(1 if answer_first and question_last else 2, padding)
        ids = [token for part, _ in parts for token in part]
        labels = [label for part, label in parts for _ in part]
        return ids[:length], labels[:length]


def _settings(source: Path | None) -> dict:
    file = source and source / "tokenizer_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}
