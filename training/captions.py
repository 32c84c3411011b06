"""Words for toy scenes: short captions to train on, and the closed list of facts that they may state."""

import random
import re

from training.scene import COLOURS, GROUNDS, PATHS, POSES, SIDES, SKIES, TREES, Scene

# Every fact and the values it can take; "" says that there is no such thing in the scene.
FACTS: dict[str, tuple[str, ...]] = {
    "sky": SKIES, "ground": GROUNDS, "mountains": ("", "mountains"), "path": ("", *PATHS),
    "house": ("", *COLOURS), "house_side": ("", *SIDES),
    "tree": ("", *TREES), "tree_side": ("", *SIDES),
    "wall": ("", "wall"), "wall_side": ("", *SIDES),
    "car": ("", *COLOURS), "car_side": ("", *SIDES),
    "person": ("", *COLOURS), "person_side": ("", *SIDES), "pose": ("", *POSES),
    "dog": ("", "dog"), "dog_side": ("", *SIDES),
    "bench": ("", "bench"), "bench_side": ("", *SIDES),
}

_SKY = {"clear": ("under a clear blue sky", "a clear blue sky"),
        "sunset": ("under an orange sunset sky", "a sunset sky"),
        "overcast": ("under a grey overcast sky", "a grey overcast sky")}
_GROUND = {"grass": ("on green grass", "green grass"), "sand": ("on yellow sand", "yellow sand"),
           "snow": ("on white snow", "white snow")}
_PATH = {"road": ("a road", "a grey road"), "lake": ("a lake", "a blue lake", "beside a lake")}
_MOUNTAINS = ("mountains in the distance", "mountains behind")
_POSE = {"standing": "standing", "waving": "waving", "walking": "walking", "cheering": "with arms up"}
_SIDE = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
_NOUN = {"tree": {"round": ("a round tree",), "pine": ("a pine tree",)}, "wall": {"": ("a brick wall", "a wall")},
         "dog": {"": ("a dog", "a brown dog")}, "bench": {"": ("a bench", "a wooden bench")}}
_STARTS = ("", "a picture of ", "a photo of ", "a drawing of ", "a scene with ", "there is ")
_JOINTS = (" and ", " with ", ", and ", " beside ", " near ", " next to ", ". ", "; ", " ")
_FILLERS = ("big", "small", "nice", "old", "very", "beautiful", "some")


def facts(scene: Scene) -> dict[str, str]:
    """The value of every fact in FACTS for a scene. house, car and person give a colour word (of the shirt)."""
    known = {"sky": scene.sky, "ground": scene.ground, "path": scene.path,
             "mountains": "mountains" if scene.mountains else ""}
    for thing in scene.things:
        known[thing.kind] = thing.variant or thing.kind
        known[f"{thing.kind}_side"] = thing.side
        if thing.pose:
            known["pose"] = thing.pose
    return {name: known.get(name, "") for name in FACTS}


def caption(scene: Scene, seed: int, shorten: float = 0.1) -> str:
    """A caption of the scene: one phrase per fact, in an order drawn with `seed`.

    With probability `shorten` only some of the phrases are kept (never none).
    """
    rng = random.Random(seed)
    phrases = [_phrase(thing, rng) for thing in scene.things]
    phrases += [rng.choice(_SKY[scene.sky]), rng.choice(_GROUND[scene.ground])]
    if scene.mountains:
        phrases.append(rng.choice(_MOUNTAINS))
    if scene.path:
        phrases.append(rng.choice(_PATH[scene.path]))
    rng.shuffle(phrases)
    if rng.random() < shorten:
        phrases = phrases[:rng.randint(1, len(phrases))]
    return ", ".join(phrases)


def _phrase(thing, rng):
    if thing.kind == "person":
        noun = f"a person in {_article(thing.variant)} shirt {_POSE[thing.pose]}"
    elif thing.kind in _NOUN:
        noun = rng.choice(_NOUN[thing.kind][thing.variant])
    else:
        noun = f"{_article(thing.variant)} {thing.kind}"
    return f"{noun} {_SIDE[thing.side]}"


def _article(word):
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def vary(text: str, rng: random.Random) -> str:
    """The caption as somebody else might type it: other joints, fewer sides and articles, stray words."""
    if rng.random() < 0.4:
        text = re.sub(", ", lambda _: rng.choice(_JOINTS) if rng.random() < 0.5 else ", ", text)
    if rng.random() < 0.3:
        text = re.sub(" (on|in) the (left|middle|right)", lambda side: side[0] if rng.random() < 0.4 else "", text)
    if rng.random() < 0.15:
        text = re.sub(r"\b(an?|the|on|in|under) ", "", text)
    if rng.random() < 0.2:
        words = text.split(" ")
        stray = rng.choice(_FILLERS) if rng.random() < 0.7 else "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5))
        words.insert(rng.randrange(len(words)), stray)
        text = " ".join(words)
    return rng.choice(_STARTS) * (rng.random() < 0.2) + text
