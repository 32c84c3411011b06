"""What a toy scene holds: a handful of large, plainly coloured things at three places, and how one is drawn by lot.

Positions are fractions of the picture: x of the width, y of the *ground* (0 at the horizon, 1 at the bottom edge).
"""

import random
from dataclasses import dataclass

SKIES = ("clear", "sunset", "overcast")
GROUNDS = ("grass", "sand", "snow")
PATHS = ("road", "lake")
SIDES = ("left", "middle", "right")
TREES = ("round", "pine")
POSES = ("standing", "waving", "walking", "cheering")

# Saturated and far from one another, so that the nearest one tells which was meant even in a blurred picture.
COLOURS = {
    "red": (218, 30, 38), "orange": (255, 125, 0), "yellow": (255, 222, 30),
    "blue": (30, 80, 225), "purple": (150, 40, 185), "white": (248, 248, 248),
}

# Painter's order, far to near, with the place on the ground where each kind stands and how likely it is.
BACK_ROW = {"wall": (0.13, 0.15), "house": (0.20, 0.45), "tree": (0.27, 0.40)}
FRONT_ROW = {"bench": (0.66, 0.20), "car": (0.73, 0.40), "dog": (0.82, 0.25), "person": (0.88, 0.40)}


@dataclass(frozen=True)
class Thing:
    """One object: its kind (a key of BACK_ROW or FRONT_ROW) and what can differ between two of the kind."""

    kind: str
    side: str  # one of SIDES
    x: float  # centre, fraction of the width
    y: float  # base line, fraction of the ground
    size: float  # 0.92..1.08
    flip: int  # 1 or -1: which way it faces
    variant: str = ""  # colour word of a house, a car or a shirt; kind of tree
    pose: str = ""  # persons only, one of POSES


@dataclass(frozen=True)
class Scene:
    """A toy scene; at most one thing of a kind. `things` lie in painter's order."""

    sky: str
    ground: str
    path: str  # "" or one of PATHS
    mountains: tuple[tuple[float, float, float], ...]  # (x, height, half width) as fractions, none to two
    horizon: float  # fraction of the height, from the top
    sun: int  # 1: light comes from the right, -1: from the left
    path_x: float  # where the road leads or the lake lies, fraction of the width
    things: tuple[Thing, ...]

    def thing(self, kind: str) -> Thing | None:
        return next((thing for thing in self.things if thing.kind == kind), None)


def sample_scene(seed: int) -> Scene:
    """The scene of a seed: the same for ever, with two or three things on average and sometimes none."""
    rng = random.Random(seed)
    path = rng.choices(("", *PATHS), (0.4, 0.3, 0.3))[0]
    return Scene(
        sky=rng.choice(SKIES), ground=rng.choice(GROUNDS), path=path, mountains=_mountains(rng),
        horizon=rng.uniform(0.44, 0.52), sun=rng.choice((-1, 1)), path_x=rng.uniform(0.3, 0.7),
        things=(*_row(rng, BACK_ROW), *_row(rng, FRONT_ROW)))


def _mountains(rng):
    if rng.random() > 0.4:
        return ()
    first = rng.uniform(0.15, 0.85)
    peaks = [first] if rng.random() < 0.5 else [first, (first + rng.uniform(0.35, 0.5)) % 1]
    return tuple((x, rng.uniform(0.18, 0.27), rng.uniform(0.26, 0.36)) for x in peaks)


def _row(rng, row):
    present = [kind for kind, (_, chance) in row.items() if rng.random() < chance]
    sides = rng.sample(SIDES, 3)
    if len(present) > len(sides):
        present.remove(rng.choice(present))
    return tuple(_thing(rng, kind, row[kind][0], side) for kind, side in zip(present, sides))


def _thing(rng, kind, y, side):
    variant = rng.choice(TREES) if kind == "tree" else ""
    if kind in ("house", "car", "person"):
        variant = rng.choice(tuple(COLOURS))
    return Thing(
        kind, side, x=(0.22, 0.5, 0.78)[SIDES.index(side)] + rng.uniform(-0.03, 0.03), y=y + rng.uniform(-0.03, 0.03),
        size=rng.uniform(0.92, 1.08), flip=rng.choice((-1, 1)), variant=variant,
        pose=rng.choice(POSES) if kind == "person" else "")
