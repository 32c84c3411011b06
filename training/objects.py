"""The things of the toy world, each drawn with a brush whose y = 0 is the ground under it.

A drawing takes (brush, depth_n11, colour_n3, things) and is about a third to a half of a unit large.
"""


import torch

from training.raster import ball_normal, box, capsule, convex, ellipse
from training.scene import COLOURS

# Classes of the 12-colour segmentation.
UNLABELED, PERSON, ANIMAL, PLANT, WATER, MOUNTAIN, SKY, BUILDING, VEHICLE, WALL, ROAD, FURNITURE = range(12)


def rgb(red, green, blue):
    return (red / 255, green / 255, blue / 255)


ROOF, DOOR, GLASS = rgb(78, 72, 92), rgb(96, 62, 44), rgb(196, 228, 250)
BARK, LEAF, NEEDLE = rgb(112, 72, 44), rgb(48, 150, 58), rgb(22, 104, 76)
BRICK, COPING = rgb(176, 92, 70), rgb(206, 190, 176)
TYRE, HUB = rgb(38, 38, 46), rgb(206, 208, 214)
WOOD, IRON = rgb(196, 142, 88), rgb(70, 66, 70)
FUR, EAR = rgb(128, 78, 44), rgb(74, 44, 28)
SKIN, HAIR, TROUSERS = rgb(244, 196, 160), rgb(72, 46, 32), rgb(66, 66, 78)

FRONT, UP = (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)
_ROUND = (0.0, 0.45, 0.893)  # a face that leans back a little


def draw_house(brush, depth, colour, things):
    x, y = brush.x, brush.y
    far = (depth - 0.35 * (x - 0.07).clamp_min(0)).clamp_min(0.1)
    brush.shadow(ellipse(x, y, -0.12 * _away(brush), 0.0, 0.24, 0.035))
    brush.paint(convex(x, y, (0.04, 0.21), (0.20, 0.20), (0.20, 0.03), (0.07, 0.0), (0.04, 0.0)), colour, (0.8, 0, 0.6),
                far, BUILDING, 33)
    brush.paint(convex(x, y, (-0.09, 0.36), (0.09, 0.35), (0.23, 0.185), (0.03, 0.175)), ROOF, (0.5, 0.66, 0.56), far,
                BUILDING, 34)
    brush.paint(convex(x, y, (-0.21, 0.0), (-0.21, 0.205), (-0.08, 0.335), (0.07, 0.205), (0.07, 0.0)), colour, FRONT,
                depth, BUILDING, 35)
    brush.paint(convex(x, y, (-0.245, 0.185), (-0.09, 0.362), (-0.07, 0.33), (-0.21, 0.17)), ROOF, (-0.5, 0.66, 0.56),
                depth, BUILDING, 36)
    brush.paint(box(x, y, -0.175, -0.105, 0.0, 0.125), DOOR, FRONT, depth, BUILDING, 37)
    brush.paint(box(x, y, -0.055, 0.035, 0.085, 0.165), GLASS, FRONT, depth, BUILDING, 38)


def draw_wall(brush, depth, colour, things):
    x, y = brush.x, brush.y
    brush.shadow(ellipse(x, y, -0.06 * _away(brush), 0.0, 0.25, 0.03))
    brush.paint(box(x, y, -0.22, 0.22, 0.0, 0.17), BRICK, FRONT, depth, WALL, 49)
    brush.paint(box(x, y, -0.235, 0.235, 0.165, 0.2), COPING, _ROUND, depth, WALL, 50)


def draw_tree(brush, depth, colour, things):
    x, y = brush.x, brush.y
    brush.shadow(ellipse(x, y, -0.1 * _away(brush), 0.0, 0.17, 0.03))
    trunk = ball_normal(x, torch.zeros_like(y), 0, 0, 0.03, 1)
    brush.paint(box(x, y, -0.028, 0.028, 0.0, 0.2), BARK, trunk, depth, PLANT, 65)
    pine = torch.tensor([thing.variant == "pine" for thing in things])[:, None, None]
    none = torch.ones_like(x)  # far outside
    for face, low, high, half in ((66, 0.09, 0.38, 0.175), (67, 0.26, 0.53, 0.135)):
        slope = (x / (half * (high - y) / (high - low)).clamp_min(0.01)).clamp(-1, 1)
        cone = torch.stack((0.92 * slope, 0.4 * torch.ones_like(x), 0.92 * (1 - slope**2).clamp_min(0).sqrt()), 1)
        shape = convex(x, y, (-half, low), (0, high), (half, low))
        brush.paint(torch.where(pine, shape, none), NEEDLE, cone, depth, PLANT, face)
    crown = ellipse(x, y, 0, 0.32, 0.17, 0.17)
    brush.paint(torch.where(pine, none, crown), LEAF, ball_normal(x, y, 0, 0.32, 0.17, 0.17), depth, PLANT, 68)


def draw_bench(brush, depth, colour, things):
    x, y = brush.x, brush.y
    brush.shadow(ellipse(x, y, -0.03 * _away(brush), 0.0, 0.18, 0.025))
    brush.paint(torch.minimum(box(x, y, -0.14, -0.105, 0.0, 0.13), box(x, y, 0.105, 0.14, 0.0, 0.13)), IRON, FRONT,
                depth, FURNITURE, 81)
    brush.paint(box(x, y, -0.17, 0.17, 0.13, 0.205), WOOD, FRONT, depth, FURNITURE, 82)
    brush.paint(box(x, y, -0.185, 0.185, 0.065, 0.11), WOOD, (0, 0.8, 0.6), depth, FURNITURE, 83)


def draw_car(brush, depth, colour, things):
    x, y = brush.x, brush.y
    brush.shadow(ellipse(x, y, -0.03 * _away(brush), 0.0, 0.19, 0.028))
    brush.paint(convex(x, y, (-0.125, 0.1), (-0.085, 0.185), (0.04, 0.185), (0.095, 0.1)) - 0.008, colour, _ROUND,
                depth, VEHICLE, 97)
    brush.paint(convex(x, y, (-0.1, 0.108), (-0.072, 0.168), (-0.025, 0.168), (-0.025, 0.108)), GLASS, _ROUND, depth,
                VEHICLE, 98)
    brush.paint(convex(x, y, (-0.005, 0.108), (-0.005, 0.168), (0.033, 0.168), (0.07, 0.108)), GLASS, _ROUND, depth,
                VEHICLE, 98)
    brush.paint(box(x, y, -0.155, 0.165, 0.055, 0.095) - 0.015, colour, FRONT, depth, VEHICLE, 99)
    for cx in (-0.09, 0.1):
        brush.paint(ellipse(x, y, cx, 0.042, 0.042, 0.042), TYRE, FRONT, depth, VEHICLE, 100)
        brush.paint(ellipse(x, y, cx, 0.042, 0.018, 0.018), HUB, FRONT, depth, VEHICLE, 101)


def draw_dog(brush, depth, colour, things):
    x, y = brush.x, brush.y
    brush.shadow(ellipse(x, y, -0.03 * _away(brush), 0.0, 0.13, 0.022))
    brush.paint(capsule(x, y, (-0.1, 0.11), (-0.135, 0.17), 0.014), FUR, FRONT, depth, ANIMAL, 113)
    for leg in (-0.085, -0.045, 0.045, 0.085):
        brush.paint(capsule(x, y, (leg, 0.08), (leg, 0.014), 0.016), FUR, FRONT, depth, ANIMAL, 114)
    brush.paint(ellipse(x, y, 0, 0.1, 0.115, 0.05), FUR, ball_normal(x, y, 0, 0.1, 0.115, 0.05), depth, ANIMAL, 115)
    brush.paint(capsule(x, y, (0.13, 0.158), (0.175, 0.15), 0.02), FUR, FRONT, depth, ANIMAL, 116)
    brush.paint(ellipse(x, y, 0.12, 0.168, 0.044, 0.044), FUR, ball_normal(x, y, 0.12, 0.168, 0.044, 0.044), depth,
                ANIMAL, 116)
    brush.paint(capsule(x, y, (0.1, 0.19), (0.082, 0.15), 0.017), EAR, FRONT, depth, ANIMAL, 117)
    brush.paint(ellipse(x, y, 0.192, 0.155, 0.011, 0.011), EAR, FRONT, depth, ANIMAL, 118)


# The 14 joints that are drawn, in the order of OpenPose: nose, neck, right shoulder, elbow, wrist, left the same, right
# hip, knee, ankle, left the same. A person faces us, so right lies on the left of the picture.
_TRUNK = {"nose": (0, 0.375), "neck": (0, 0.315)}
_ARMS = {  # shoulder is fixed; elbow and wrist of the right arm, then of the left arm
    "standing": ((-0.088, 0.235), (-0.1, 0.165), (0.088, 0.235), (0.1, 0.165)),
    "waving": ((-0.125, 0.335), (-0.135, 0.425), (0.088, 0.235), (0.1, 0.165)),
    "walking": ((-0.105, 0.24), (-0.15, 0.19), (0.105, 0.24), (0.15, 0.19)),
    "cheering": ((-0.12, 0.345), (-0.14, 0.435), (0.12, 0.345), (0.14, 0.435)),
}
_LEGS = {"standing": ((-0.04, 0.095), (-0.045, 0.02), (0.04, 0.095), (0.045, 0.02)),
         "walking": ((-0.065, 0.1), (-0.11, 0.025), (0.06, 0.1), (0.09, 0.02))}
_POSE_COLOURS = ((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
                 (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255))
_BONES = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0))


def joints(pose: str, flip: int) -> list[tuple[float, float]]:
    """(x, y) in units of the 14 joints of a pose; flip -1 mirrors it (the other hand waves)."""
    arms, legs = _ARMS[pose], _LEGS.get(pose, _LEGS["standing"])
    right = [(-0.062, 0.3), arms[0], arms[1]], [(-0.034, 0.17), legs[0], legs[1]]
    left = [(0.062, 0.3), arms[2], arms[3]], [(0.034, 0.17), legs[2], legs[3]]
    if flip < 0:
        right, left = ([[(-x, y) for x, y in limb] for limb in side] for side in (left, right))
    return [_TRUNK["nose"], _TRUNK["neck"], *right[0], *left[0], *right[1], *left[1]]


def draw_person(brush, depth, colour, things):
    x, y = brush.x, brush.y
    table = torch.tensor([joints(thing.pose, thing.flip) for thing in things])[..., None, None]  # (n, 14, 2, 1, 1)
    at = [(table[:, i, 0], table[:, i, 1]) for i in range(14)]
    brush.shadow(ellipse(x, y, -0.06 * _away(brush), 0.0, 0.13, 0.022))
    for hip, knee, ankle in ((8, 9, 10), (11, 12, 13)):
        leg = torch.minimum(capsule(x, y, at[hip], at[knee], 0.028), capsule(x, y, at[knee], at[ankle], 0.024))
        brush.paint(leg, TROUSERS, FRONT, depth, PERSON, 129)
    brush.paint(capsule(x, y, (0, 0.3), (0, 0.34), 0.02), SKIN, FRONT, depth, PERSON, 130)
    torso = convex(x, y, (-0.05, 0.165), (-0.062, 0.295), (0.062, 0.295), (0.05, 0.165)) - 0.02
    brush.paint(torso, colour, ball_normal(x, torch.zeros_like(y), 0, 0, 0.1, 1), depth, PERSON, 131)
    for shoulder, elbow, wrist in ((2, 3, 4), (5, 6, 7)):
        brush.paint(capsule(x, y, at[elbow], at[wrist], 0.019), SKIN, FRONT, depth, PERSON, 132)
        brush.paint(capsule(x, y, at[shoulder], at[elbow], 0.025), colour, FRONT, depth, PERSON, 133)
    brush.paint(ellipse(x, y, 0, 0.385, 0.048, 0.048), SKIN, ball_normal(x, y, 0, 0.385, 0.048, 0.048), depth, PERSON,
                134)
    hair = torch.maximum(ellipse(x, y, 0, 0.39, 0.052, 0.052), 0.395 - y)
    brush.paint(hair, HAIR, ball_normal(x, y, 0, 0.39, 0.055, 0.055), depth, PERSON, 135)
    for (start, end), limb_colour in zip(_BONES, _POSE_COLOURS):
        brush.mark(capsule(x, y, at[start], at[end], 0.014), rgb(*limb_colour))
    for point, joint_colour in zip(at, _POSE_COLOURS):
        brush.mark(torch.hypot(x - point[0], y - point[1]) - 0.017, rgb(*joint_colour))


def _away(brush):
    """(n, 1, 1) direction of the sun in the brush's own x: shadows fall the other way."""
    return (brush.towards_sun[:, 0] / 0.55)[:, None, None]


# kind -> (drawing, window in units: left, right, bottom, top)
DRAWINGS = {
    "wall": (draw_wall, (-0.33, 0.33, -0.05, 0.22)), "house": (draw_house, (-0.38, 0.38, -0.05, 0.38)),
    "tree": (draw_tree, (-0.29, 0.29, -0.05, 0.55)), "bench": (draw_bench, (-0.24, 0.24, -0.04, 0.22)),
    "car": (draw_car, (-0.24, 0.24, -0.04, 0.2)), "dog": (draw_dog, (-0.22, 0.22, -0.03, 0.23)),
    "person": (draw_person, (-0.2, 0.2, -0.04, 0.47)),
}


def colours_of(things):
    """(n, 3) main colour of each thing; black for kinds that have a colour of their own."""
    return torch.tensor([COLOURS.get(thing.variant, (0, 0, 0)) for thing in things]) / 255
