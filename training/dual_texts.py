"""Texts as Dual Diffusion is trained on them: token numbers, and which of them are to be learned (spec 7.5)."""

import torch
from torch import Tensor

from jodi_core.dual_diffusion.words import Words


def caption_text(words: Words, caption: str, length: int) -> Tensor:
    """(L, 2) token numbers and labels: a caption, cut or padded with `</s>`; all of it is learned."""
    ids = words.ids(caption)[:length]
    return labelled(ids + [words.end_id] * (length - len(ids)), [1] * length)


def conversation_text(words: Words, turns: list[tuple[str, str]], length: int) -> Tensor:
    """(L, 2) token numbers and labels of questions with their answers, one after the other; questions are given.

    Cut or padded with `</s>`. A turn after the first is left out if it does not fit, and so are those behind it.
    """
    ids, labels, (question, answer) = [], [], turns[0]
    for coming in turns[1:]:
        turn = turn_of(words, question, answer)
        if sum(map(len, (ids, *turn, *turn_of(words, *coming)))) >= length:
            break
        ids, labels = [*ids, *turn[0], *turn[1]], [*labels, *[0] * len(turn[0]), *[1] * len(turn[1])]
        question, answer = coming
    last = words.training_pair(question, answer, length - len(ids))
    return labelled([*ids, *last[0]], [*labels, *last[1]])


def turn_of(words: Words, question: str, answer: str) -> tuple[list[int], list[int]]:
    return words.ids(f"Q: {question} A: ", end=False), words.ids(answer, end=False)


def labelled(ids: list[int], labels: list[int]) -> Tensor:
    return torch.tensor([ids, labels]).T
