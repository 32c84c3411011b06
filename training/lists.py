"""Data sets that are a JSON list of pictures with captions, or of pictures with conversations about them (spec 7.5).

Captions: `image_path`, `height`, `width`, and texts under any of CAPTIONS. Conversations, as LLaVA's tuning data:
`image` and `conversations`, a list of turns with `value`, question and answer alternating; entries without a picture
are left out. Paths start in the folder of the list, or in `root`.
"""

import json
from pathlib import Path

from .config import SetConfig
from .folders import Sample, inside

CAPTIONS = ("caption", "re_caption", "org_caption")
PICTURE_MARK = "<image>"    # stands for the picture in a question


class ListSet:
    """One list, in memory. `sizes` are (1, 1) for conversations, which do not tell them."""

    def __init__(self, config: SetConfig):
        self.path, self.chances = Path(config.path), config.captions
        self.root = Path(config.root) if config.root else self.path.parent
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.path} is no JSON file: {error}") from None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{self.path} must be a list of objects, one per picture")
        kinds = {"conversations" in entry for entry in entries}
        if len(kinds) > 1:
            raise ValueError(f"{self.path} mixes captions and conversations: make two lists of it")
        self.of_conversations = kinds == {True}
        self.entries = [(number, entry) for number, entry in enumerate(entries)
                        if not self.of_conversations or entry.get("image")]
        self.sizes = [(1, 1) if self.of_conversations else size_in(entry, self.name(number))
                      for number, entry in self.entries]

    def name(self, number: int) -> str:
        return f"{self.path}, entry {number}"

    def __len__(self) -> int:
        return len(self.entries)

    def sample(self, index: int, domains: tuple[str, ...]) -> Sample:
        number, entry = self.entries[index]
        name, key = self.name(number), "image" if self.of_conversations else "image_path"
        pictures = {domains[0]: inside(self.root, entry.get(key), f"{name}: {key}")}
        captions = {key: entry[key] for key in (*CAPTIONS, *self.chances) if entry.get(key)}
        turns = turns_of(entry["conversations"], name) if self.of_conversations else ()
        return Sample(name, self.sizes[index], pictures, captions, self.chances, turns)


def size_in(entry: dict, name: str) -> tuple[int, int]:
    height, width = entry.get("height"), entry.get("width")
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        raise ValueError(f"{name}: height {height!r} and width {width!r} must be the picture's, in pixels")
    return height, width


def turns_of(conversation: list, name: str) -> tuple[tuple[str, str], ...]:
    """(question, answer) of every turn. ValueError if there is none."""
    try:
        said = [turn["value"].replace(PICTURE_MARK, "").strip() for turn in conversation]
    except (TypeError, KeyError, AttributeError):
        raise ValueError(f"{name}: conversations must be a list of objects with a `value`") from None
    if len(said) < 2:
        raise ValueError(f"{name}: a conversation of {len(said)} turns has no answer")
    return tuple(zip(said[::2], said[1::2]))
