"""Are prompts obeyed? Words of a caption against what the generated albedo and segmentation show."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from jodi_core.metrics import classes
from jodi_core.segmentation import SEGMENTATION_NAMES
from training.captions import facts
from training.scene import SIDES
from training.world import Scene, colour_word

# Things that have a class of their own.
CLASS_OF = {"house": "building", "car": "vehicle", "person": "person", "dog": "animal", "bench": "furniture",
            "wall": "wall"}
COLOURED = ("house", "car", "person")
SIDE_X = (0.22, 0.5, 0.78)  # of SIDES, fractions of the width
PRESENT = 0.006             # share of the picture that a class must fill; the smallest thing fills twice as much
_GROUND_ROWS = 0.55         # below any horizon

Words = dict[str, str]


def seen_words(albedo_N3HW: Tensor, segmentation_N3HW: Tensor, palette: "Surroundings") -> list[Words]:
    """For each picture the facts (names of training.captions.FACTS) that can be read off it; a thing is there if its
    class fills PRESENT of the picture, then `kind` maps to "yes"; its colour and side follow."""
    return [_words(albedo, numbers, palette) for albedo, numbers in zip(albedo_N3HW, classes(segmentation_N3HW))]


def _words(albedo_3HW, classes_HW, palette):
    words = palette.words(albedo_3HW, classes_HW)
    for kind, name in CLASS_OF.items():
        mask_HW = classes_HW == SEGMENTATION_NAMES.index(name)
        if mask_HW.float().mean() < PRESENT:
            continue
        words[kind] = "yes"
        words[f"{kind}_side"] = _side(mask_HW)
        if kind in COLOURED:
            words[f"{kind}_colour"] = colour_word(albedo_3HW, mask_HW)
    return words


def _side(mask_HW):
    x = (mask_HW.nonzero()[:, 1].float().mean() + 0.5) / mask_HW.shape[1]
    return SIDES[int((torch.tensor(SIDE_X) - x).abs().argmin())]


def named_words(scene: Scene) -> Words:
    """The same facts, as the full caption of a scene states them."""
    known = facts(scene)
    words = {"sky": known["sky"], "ground": known["ground"]}
    for kind in CLASS_OF:
        if known[kind]:
            words |= {kind: "yes", f"{kind}_side": known[f"{kind}_side"]}
            if kind in COLOURED:
                words[f"{kind}_colour"] = known[kind]
    return words


@dataclass(frozen=True)
class Surroundings:
    """Mean albedo (0..255) of the sky and of the ground under each word, from scenes with exact labels."""

    sky: dict[str, Tensor]
    ground: dict[str, Tensor]

    @classmethod
    def of(cls, scenes: list[Scene], truth: dict[str, Tensor]) -> "Surroundings":
        found = {"sky": defaultdict(list), "ground": defaultdict(list)}
        for scene, albedo, numbers in zip(scenes, truth["albedo"], classes(truth["segmentation"])):
            for place, colour in _surrounding_colours(albedo, numbers).items():
                found[place][getattr(scene, place)].append(colour)
        return cls(**{place: {word: torch.stack(colours).mean(0) for word, colours in by_word.items()}
                      for place, by_word in found.items()})

    def words(self, albedo_3HW: Tensor, classes_HW: Tensor) -> Words:
        """Nearest word of the sky and of the ground, left out where none is seen."""
        return {place: min(getattr(self, place), key=lambda word: (getattr(self, place)[word] - colour).norm())
                for place, colour in _surrounding_colours(albedo_3HW, classes_HW).items()}


def _surrounding_colours(albedo_3HW, classes_HW):
    rows = torch.arange(classes_HW.shape[0])[:, None] >= _GROUND_ROWS * classes_HW.shape[0]
    grass, bare, sky = (classes_HW == SEGMENTATION_NAMES.index(name) for name in ("plant", "unlabeled", "sky"))
    masks = {"sky": sky, "ground": (grass | bare) & rows}
    return {place: albedo_3HW[:, mask].float().mean(1) for place, mask in masks.items() if mask.any()}


def obedience(named: list[Words], seen: list[Words]) -> dict[str, float]:
    """Shares of right words.

    `present`: things named that are there; `colour`, `side`: of all things named with one, wrong where the thing is
    missing; `colour_if_present`: of those that are there; `sky`, `ground`: of all pictures.
    """
    right, count = defaultdict(int), defaultdict(int)
    for wanted, found in zip(named, seen):
        for fact, word in wanted.items():
            kind, _, detail = fact.partition("_")
            group = detail or (kind if kind in ("sky", "ground") else "present")
            for name in (group, f"{group}_if_present") if detail and kind in found else (group,):
                right[name] += found.get(fact) == word
                count[name] += 1
    return {name: right[name] / count[name] for name in count}


def chance(named: list[Words], seen: list[Words]) -> dict[str, float]:
    """`obedience` to the prompts of other pictures: the mean over a few shifts of the list."""
    results = [obedience(named[shift:] + named[:shift], seen) for shift in range(1, min(9, len(named)))]
    return {name: sum(result.get(name, 0) for result in results) / len(results) for name in results[0]}
