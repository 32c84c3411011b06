"""Questions about toy scenes, and their answers."""

import random

from training.captions import FACTS, facts
from training.scene import BACK_ROW, FRONT_ROW, PATHS, Scene

THINGS = (*BACK_ROW, *FRONT_ROW)
_COLOURED = {"house": "what colour is the house?", "car": "what colour is the car?",
             "person": "what colour is the shirt?"}
_SIDE = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
_POSE = {"standing": "standing", "waving": "waving", "walking": "walking", "cheering": "cheering"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


def questions(scene: Scene) -> dict[str, list[tuple[str, str]]]:
    """Topic -> questions with their answers, of the topics that the scene has. "there": also about what it lacks."""
    known = facts(scene)
    seen = [kind for kind in THINGS if known[kind]]
    asked = {
        "colour": [(question, known[kind]) for kind, question in _COLOURED.items() if known[kind]],
        "side": [(f"where is the {kind}?", _SIDE[known[f"{kind}_side"]]) for kind in seen],
        "there": [(f"is there a {kind}?", "yes" if known[kind] else "no") for kind in THINGS]
        + [(f"is there a {path}?", "yes" if known["path"] == path else "no") for path in PATHS],
        "sky": [("what is the sky like?", known["sky"])],
        "ground": [("what is the ground?", known["ground"])],
        "count": [("how many trees are there?", _NUMBERS[bool(known["tree"])]),
                  ("how many mountains are there?", _NUMBERS[len(scene.mountains)]),
                  ("how many things are there?", _NUMBERS[len(seen)])],
        "tree": [("what kind of tree is it?", known["tree"])] if known["tree"] else [],
        "pose": [("what is the person doing?", _POSE[known["pose"]])] if known["pose"] else [],
    }
    return {topic: pairs for topic, pairs in asked.items() if pairs}


def choose_questions(scene: Scene, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Different ones, each of a topic drawn by lot, things that are there as often as others; fewer if there are no
    more."""
    asked, chosen = questions(scene), []
    while asked and len(chosen) < count:
        topic = rng.choice(list(asked))
        pairs = asked[topic]
        if topic == "there":
            answer = rng.choice(("yes", "no"))
            pairs = [pair for pair in pairs if pair[1] == answer] or pairs
        pair = rng.choice(pairs)
        chosen.append(pair)
        asked[topic].remove(pair)
        if not asked[topic]:
            del asked[topic]
    return chosen


def all_words() -> list[str]:
    """Every text piece that questions and answers are made of."""
    fixed = [*_COLOURED.values(), *_SIDE.values(), *_POSE.values(), *_NUMBERS, "yes", "no", "what is the sky like?",
             "what is the ground?", "how many trees mountains things are there?", "what kind of tree is it?",
             "what is the person doing?", "where is the", "is there a", "Q: A:", *THINGS, *PATHS]
    return fixed + [value for values in FACTS.values() for value in values if value]
