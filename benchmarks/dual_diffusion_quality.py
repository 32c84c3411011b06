"""Captions, answers and pictures of the tiny Dual Diffusion on toy scenes that it has never seen; tables in Markdown.

    python benchmarks/dual_diffusion_quality.py

A few minutes on one CPU core.
"""

import argparse
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.prompts import Surroundings, chance, named_words, obedience, seen_words  # noqa: E402
from benchmarks.tiny_quality import BASELINE_SEEDS, FIRST_SEED, sampled, truth_of  # noqa: E402
from jodi_core import DualDiffusionPipeline, JodiPipeline  # noqa: E402
from jodi_core.metrics import to_bytes, unit  # noqa: E402
from jodi_core.pictures import contact_sheet  # noqa: E402
from jodi_core.weights import TINY  # noqa: E402
from training.captions import caption, facts  # noqa: E402
from training.questions import THINGS, questions  # noqa: E402
from training.scene import COLOURS, GROUNDS, PATHS, POSES, SIDES, SKIES, TREES, sample_scene  # noqa: E402

ANSWER_STEPS, CAPTION_STEPS, PICTURE_STEPS = 8, 48, 28
BATCH = 64
# What of a caption is replaced by blanks; the group is what must come back.
BLANKS = {
    "colour of a thing": re.compile(rf"\b(?:{'|'.join(COLOURS)})(?= house| car| shirt)"),
    "side of a thing": re.compile(rf"\b(?:{'|'.join(SIDES)})\b"),
    "kind of tree": re.compile(rf"\b(?:{'|'.join(TREES)})(?= tree)"),
    "sky": re.compile(rf"\b(?:a|an) (?:\w+ )?(?:{'|'.join(SKIES)})(?: blue)?(?= sky)"),
    "ground": re.compile(rf"\b(?:\w+ )?(?:{'|'.join(GROUNDS)})\b"),
}
VALUES = {"sky": SKIES, "ground": GROUNDS}    # of several words the one that counts

Table = dict[str, tuple[int, int, int]]    # row -> (cases, right, right of the most frequent answer)


def asked_answers(pipe: DualDiffusionPipeline, pictures: Tensor, scenes: list) -> Table:
    """Every question that a scene has, by topic. The baseline is the most frequent answer in scenes of training."""
    usual = defaultdict(Counter)
    for seed in BASELINE_SEEDS:
        for pairs in questions(sample_scene(seed)).values():
            for question, answer in pairs:
                usual[question][answer] += 1
    rows = defaultdict(list)    # (topic, question) -> (scene, answer)
    for number, scene in enumerate(scenes):
        for topic, pairs in questions(scene).items():
            for question, answer in pairs:
                rows[topic, question].append((number, answer))
    table = defaultdict(lambda: (0, 0, 0))
    for (topic, question), cases in rows.items():
        numbers, answers = zip(*cases)
        found = [text for part in torch.tensor(numbers).split(BATCH)
                 for text in pipe.ask(pictures[part], question, steps=ANSWER_STEPS, seed=0)]
        right = sum(one == other for one, other in zip(found, answers))
        majority = usual[question].most_common(1)[0][0]
        table[topic] = tuple(map(sum, zip(table[topic], (len(cases), right, answers.count(majority)))))
    return dict(table)


def filled_words(pipe: DualDiffusionPipeline, pictures: Tensor, captions: list[str]) -> Table:
    """One word of a caption is left out at a time, the rest given. The baseline is the most frequent word. Captions
    that are longer than the model writes are left out."""
    cases = defaultdict(list)    # what -> (true word, found word)
    for picture, text in zip(pictures, captions):
        if len(pipe.words.ids(text)) > pipe.words.longest:
            continue
        for what, pattern in BLANKS.items():
            for found in pattern.finditer(text):
                blank = " ".join(["{1}"] * len(found[0].split()))
                whole, = pipe.fill(picture[None], text[:found.start()] + blank + text[found.end():], steps=1, seed=0)
                given = Counter(pieces(text[:found.start()] + text[found.end():]))
                cases[what].append((key_word(what, found[0].split()),
                                    key_word(what, list((Counter(pieces(whole)) - given).elements()))))
    table = {}
    for what, pairs in cases.items():
        true = [one for one, _ in pairs]
        table[what] = len(pairs), sum(one == other for one, other in pairs), Counter(true).most_common(1)[0][1]
    return table


def pieces(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def key_word(what: str, words: list[str]) -> str:
    return next((word for word in words if word in VALUES.get(what, words)), "")


def stated(text: str) -> dict[str, str]:
    """The facts (training.captions.FACTS) that a caption states."""
    found = {}
    for phrase in text.split(","):
        words = pieces(phrase)
        kind = next((thing for thing in THINGS if thing in words), "")
        for name, values in (("sky", SKIES), ("ground", GROUNDS), ("path", PATHS), ("pose", POSES),
                             ("mountains", ("mountains",))):
            found |= {name: word for word in words if word in values}
        if kind:
            found[kind] = next((word for word in words if word in COLOURS or word in TREES), kind) \
                if kind in ("house", "car", "person", "tree") else kind
            found |= {f"{kind}_side": word for word in words if word in SIDES}
    return found


def caption_facts(texts: list[str], scenes: list) -> tuple[int, int, int]:
    """(facts stated, of them true, facts that the scenes have)."""
    counts = [0, 0, 0]
    for text, scene in zip(texts, scenes):
        said, known = stated(text), {name: value for name, value in facts(scene).items() if value}
        counts[0] += len(said)
        counts[1] += sum(known.get(name) == value for name, value in said.items())
        counts[2] += len(known)
    return tuple(counts)


def obeyed_prompts(pipe: DualDiffusionPipeline, captions: list[str], scenes: list, guidance: float) -> tuple[dict, ...]:
    """(obeyed, by chance, readable in the pictures of the scenes themselves), and the pictures."""
    reader = JodiPipeline.from_pretrained("tiny")
    made = torch.cat([to_bytes(pipe(captions[start:start + BATCH], steps=PICTURE_STEPS, guidance=guidance,
                                    seed=start).pictures["image"]) for start in range(0, len(captions), BATCH)])
    baseline = [sample_scene(seed) for seed in BASELINE_SEEDS]
    palette = Surroundings.of(baseline, truth_of(BASELINE_SEEDS))

    def words(pictures):
        labels = sampled(reader, conditions={"image": pictures}, generate=("albedo", "segmentation"))
        return seen_words(labels["albedo"], labels["segmentation"], palette)
    named, seen = [named_words(scene) for scene in scenes], words(made)
    true = truth_of(range(FIRST_SEED, FIRST_SEED + len(scenes)))["image"]
    return obedience(named, seen), chance(named, seen), obedience(named, words(true)), made


def print_table(title: str, table: Table, baseline: str) -> None:
    print(f"\n| {title} | cases | right | {baseline} |\n|---|---|---|---|")
    rows = table | {"all": tuple(map(sum, zip(*table.values())))}
    for name, (cases, right, usual) in rows.items():
        print(f"| {name} | {cases} | {right / cases:.3f} | {usual / cases:.3f} |")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY / "dual_diffusion"), help="folder of a model")
    parser.add_argument("--scenes", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=128, help="pictures made; 0: none")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--sheet", type=Path, default=None, help="PNG file to write some of the pictures to")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    pipe = DualDiffusionPipeline.from_pretrained(options.model, autoencoder="tiny")
    seeds = range(FIRST_SEED, FIRST_SEED + options.scenes)
    scenes = [sample_scene(seed) for seed in seeds]
    captions = [caption(scene, seed, shorten=0) for seed, scene in zip(seeds, scenes)]
    pictures = unit(truth_of(seeds)["image"])
    print_table("answers", asked_answers(pipe, pictures, scenes), "most frequent answer")
    print_table("words of a given caption", filled_words(pipe, pictures, captions), "most frequent word")
    texts = [text for part in pictures.split(BATCH) for text in pipe.caption(part, steps=CAPTION_STEPS, seed=0)]
    said, true, known = caption_facts(texts, scenes)
    by_chance = caption_facts(texts[1:] + texts[:1], scenes)[1]
    print(f"\n| captions | |\n|---|---|\n| facts per caption | {said / len(texts):.2f} |\n| of them true | "
          f"{true / said:.3f} |\n| true of the next picture, which they were not made for | {by_chance / said:.3f} |\n"
          f"| facts of the scenes that are told | {true / known:.3f} |\n")
    print("\n".join(f"* {text}" for text in texts[:4]))
    if options.prompts:
        first = slice(options.prompts)
        obeyed, usual, readable, made = obeyed_prompts(pipe, captions[first], scenes[first], options.guidance)
        print("\n| words of prompts | obeyed | by chance | readable in the true picture |\n|---|---|---|---|")
        for name in obeyed:
            print(f"| {name} | {obeyed[name]:.3f} | {usual.get(name, 0):.3f} | {readable[name]:.3f} |")
        if options.sheet:
            contact_sheet({"truth": pictures[:8], "made": unit(made[:8])}).save(options.sheet)


if __name__ == "__main__":
    main()
