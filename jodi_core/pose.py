"""Skeletons out of OpenPose drawings: joints by the colours of their dots, people by the colours of their limbs.

The drawing: 18 joints (nose, neck, right shoulder, elbow, wrist, the same on the left, right hip, knee, ankle, the same
on the left, right eye, left eye, right ear, left ear) as dots, over 17 limbs as strokes. Dot i and limb i both have the
hue 20 i degrees, fully saturated; some drawings paint limbs at 0.6 of the brightness of dots (the published labels do),
others (the toy world, ComfyUI) as bright as dots.

A limb is believed as far as the line between its ends shows its colour, as in OpenPose (Cao et al. 2017); a person is
the tree of limbs that is believed most, found by dynamic programming as in pictorial structures (Felzenszwalb and
Huttenlocher 2005), which also finds its way through blurred drawings.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

JOINTS = 18
LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
         (0, 14), (14, 16), (0, 15), (15, 17))    # from the neck outwards
HUE_STEP = 20.0  # degrees
SEEN, GUESSED = 1.0, 0.5  # scores of joints: a dot was found; only strokes tell
DOT_BONUS = 1.0, 3.0  # what a dot counts in a blurred and in a crisp drawing, in limbs of two radii
HUE_TOLERANCE = 12.0  # degrees at which a limb's colour counts half
LONG = 4.0  # radii: a longer blob is no single dot
WIDEST = 64  # pixels; half a stroke is narrower
HIDDEN = 0.2  # how far another colour speaks for a limb, which it may hide
LEAST_GAIN = 1.0  # what a joint must add
SAMPLES = 16  # points at which a limb is looked at
MOST_BLOBS, MOST_PLACES, MOST_PEOPLE = 64, 600, 32  # so that any picture ends in time
LEAST_SCORE, FEWEST_JOINTS = 9.0, 3  # what counts less is no person but stray strokes


@dataclass(frozen=True)
class Strokes:
    """A drawing taken apart; fields are (H, W) unless said otherwise."""

    hue: torch.Tensor  # degrees
    drawn: torch.Tensor  # bool: coloured at all
    bright: torch.Tensor  # bool: may belong to a dot
    radius: float  # half the width of a stroke, pixels
    dot_bonus: float  # what a dot counts


@dataclass(frozen=True)
class Places:
    """Where a joint may be."""

    xy_N2: torch.Tensor  # pixels, 0 at the centre of the first
    seen_N: torch.Tensor  # bool: a dot was found there


def find_people(picture_3HW: torch.Tensor) -> list[list[tuple[float, float, float]]]:
    """People in a drawing (3, H, W) in [0, 1], each as 18 joints (x, y, score).

    x and y are pixels with 0 at the centre of the first one; score is 1 for a joint whose dot was found, 0.5 where
    only strokes tell its place, and 0 (at 0, 0) for a joint that is not drawn. White points (faces) are passed over.
    People come from left to right.
    """
    strokes = read_strokes(picture_3HW)
    if strokes is None:
        return []
    places = find_places(strokes)
    people = []
    for chosen in connect(strokes, places):
        joints = [(0.0, 0.0, 0.0)] * JOINTS
        for joint, number in chosen.items():
            x, y = places[joint].xy_N2[number].tolist()
            joints[joint] = x, y, SEEN if places[joint].seen_N[number] else GUESSED
        people.append(joints)
    return sorted(people, key=lambda joints: min(x for x, _, score in joints if score))


def read_strokes(picture_3HW: torch.Tensor) -> Strokes | None:
    """Colours and width of the strokes; None if there are none."""
    picture_3HW = picture_3HW.float()
    high_HW, low_HW = picture_3HW.amax(0), picture_3HW.amin(0)
    drawn_HW, hue_HW = (high_HW > 0.2) & (high_HW - low_HW > 0.35 * high_HW), hue(picture_3HW)
    if not drawn_HW.any():
        return None
    values = high_HW[drawn_HW].sort().values
    middle, top = float(values[len(values) // 2]), float(values[int(0.95 * len(values))])
    dark_limbs = middle < 0.72 * top
    bright_HW = drawn_HW & (high_HW > 0.8 * top) if dark_limbs else drawn_HW
    return Strokes(hue_HW, drawn_HW, bright_HW, half_width(drawn_HW), dot_bonus(hue_HW[drawn_HW]))


def dot_bonus(hues_N: torch.Tensor) -> float:
    """What a dot counts: little where colours run into one another, so that a dot may be a chance patch."""
    off_N = hues_N % HUE_STEP
    blur = float(torch.minimum(off_N, HUE_STEP - off_N).mean()) / (HUE_STEP / 4)    # 0: pure colours, 1: any colours
    blurred, crisp = DOT_BONUS
    return blurred + (crisp - blurred) * min(max((0.9 - blur) / 0.4, 0.0), 1.0)


def hue(picture_3HW: torch.Tensor) -> torch.Tensor:
    """Hue in degrees, (H, W): 0 red, 120 green, 240 blue."""
    red, green, blue = picture_3HW
    return torch.rad2deg(torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue)) % 360


def half_width(drawn_HW: torch.Tensor) -> float:
    """Typical half width of strokes: pixels of a long band lie half of it from the border, on average."""
    inside_11HW, depths, total = drawn_HW[None, None].float(), 0.0, float(drawn_HW.sum())
    for _ in range(WIDEST):
        depths += float(inside_11HW.sum()) / total
        inside_11HW = -F.max_pool2d(-F.pad(inside_11HW, (1, 1, 1, 1)), 3, 1)
    return 2 * depths - 1


def find_places(strokes: Strokes) -> list[Places]:
    """Where each of the 18 joints may be: found dots, and places all over the strokes of a like colour.

    True places and false ones; the limbs between them tell which is which.
    """
    off_18HW = hue_distance(strokes.hue, torch.arange(JOINTS)[:, None, None] * HUE_STEP)
    found = [blobs(strokes.bright & (off_HW <= HUE_STEP / 2), strokes.radius) for off_HW in off_18HW]
    round_sizes = sorted(len(blob_N2) for joint in found for blob_N2 in joint if not is_long(blob_N2, strokes.radius))
    dot_radius = math.sqrt(round_sizes[len(round_sizes) // 2] / math.pi) if round_sizes else strokes.radius
    grid_G2 = grid_places(strokes)
    column_G, row_G = grid_G2.round().long().unbind(1)
    places = []
    for joint in range(JOINTS):
        dots = [place for blob_N2 in found[joint] for place in (
            stroke_ends(blob_N2, dot_radius) if is_long(blob_N2, strokes.radius) else [blob_N2.mean(0).tolist()])]
        hues = [joint, *(limb for limb, ends in enumerate(LIMBS) if joint in ends)]
        like_G2 = grid_G2[off_18HW[hues][:, row_G, column_G].amin(0) < HUE_STEP]
        like_G2 = like_G2[::1 + len(like_G2) // MOST_PLACES]
        dots_N2 = torch.tensor(dots).view(-1, 2)
        like_G2 = like_G2[(like_G2[:, None] - dots_N2).norm(dim=-1).ge(2 * dot_radius).all(1)]    # a dot stands alone
        places.append(Places(torch.cat([dots_N2, like_G2]), torch.arange(len(dots) + len(like_G2)) < len(dots)))
    return places


def hue_distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Degrees between two hues, 0 to 180."""
    return ((one - other + 180) % 360 - 180).abs()


def grid_places(strokes: Strokes) -> torch.Tensor:
    """Places (G, 2), x and y, on the strokes, one in each square of half a stroke's width that is mostly drawn."""
    cell = max(2, round(strokes.radius))
    y_HW, x_HW = torch.meshgrid(*(torch.arange(side).float() for side in strokes.drawn.shape), indexing="ij")
    share_3hw = F.avg_pool2d(torch.stack((torch.ones_like(x_HW), x_HW, y_HW)) * strokes.drawn, cell, ceil_mode=True)
    full_hw = share_3hw[0] > 0.6
    return (share_3hw[1:, full_hw] / share_3hw[0, full_hw]).T


def blobs(mask_HW: torch.Tensor, radius: float) -> list[torch.Tensor]:
    """Connected parts (diagonals count) of at least a third of a dot's area: pixels x, y (N, 2) each, largest first.

    Pixels and the pairs of neighbours are a graph; every pixel takes the smallest number that it can reach.
    """
    height, width = mask_HW.shape
    y_N, x_N = mask_HW.nonzero(as_tuple=True)
    number_HW = torch.full((height + 1, width + 2), -1)    # a margin below and on both sides
    number_HW[y_N, x_N + 1] = torch.arange(len(y_N))
    pairs = torch.cat([torch.stack((number_HW[y_N, x_N + 1], number_HW[y_N + down, x_N + 1 + right]))
                       for down, right in ((0, 1), (1, -1), (1, 0), (1, 1))], 1)
    one, other = pairs[:, pairs[1] >= 0]
    label_N, before_N = torch.arange(len(y_N)), None
    while before_N is None or not torch.equal(label_N, before_N):
        before_N = label_N
        least = torch.minimum(label_N[one], label_N[other])
        label_N = label_N.scatter_reduce(0, one, least, "amin").scatter_reduce(0, other, least, "amin")
        label_N = label_N[label_N]
    order = label_N.argsort(stable=True)
    sizes = label_N.unique(return_counts=True)[1].tolist()
    parts = torch.stack((x_N, y_N), 1)[order].float().split(sizes)
    return sorted((part for part in parts if len(part) > math.pi / 3 * radius**2), key=len, reverse=True)[:MOST_BLOBS]


def main_axis(blob_N2: torch.Tensor) -> torch.Tensor:
    """Direction (2,) in which a blob is longest."""
    offset_N2 = blob_N2 - blob_N2.mean(0)
    return torch.linalg.eigh(offset_N2.T @ offset_N2)[1][:, 1]


def is_long(blob_N2: torch.Tensor, radius: float) -> bool:
    """Whether a blob is longer than a dot is wide: a limb, maybe merged with a dot of its colour."""
    along_N = blob_N2 @ main_axis(blob_N2)
    return bool(along_N.max() - along_N.min() > LONG * radius)


def stroke_ends(blob_N2: torch.Tensor, dot_radius: float) -> list[list[float]]:
    """Where the dots at both ends of a long blob would have their centres."""
    axis_2, ends = main_axis(blob_N2), []
    for along_2 in (axis_2, -axis_2):
        along_N = blob_N2 @ along_2
        last_2 = blob_N2[along_N > along_N.max() - 2 * dot_radius].mean(0)    # about as long as a dot
        ends.append((last_2 + along_2 * (along_N.max() - dot_radius - last_2 @ along_2)).tolist())
    return ends


def connect(strokes: Strokes, places: list[Places]) -> list[dict[int, int]]:
    """People, best first, each as joint -> number of its place. Strokes of one person do not count for the next."""
    dots = [strokes.dot_bonus * found.seen_N for found in places]
    limbs = [limb_scores(strokes, limb, places[start].xy_N2, places[end].xy_N2)
             for limb, (start, end) in enumerate(LIMBS)]
    people = []
    while len(people) < MOST_PEOPLE:
        score, chosen = best_person(dots, limbs)
        if score < LEAST_SCORE + 2 * strokes.dot_bonus or len(chosen) < FEWEST_JOINTS:
            break
        people.append(chosen)
        at = {joint: places[joint].xy_N2[number] for joint, number in chosen.items()}
        for joint, xy_2 in at.items():
            dots[joint][(places[joint].xy_N2 - xy_2).norm(dim=1) < 2 * strokes.radius] = -torch.inf
        for limb, (start, end) in enumerate(LIMBS):
            if start in at and end in at:
                middle_MN2 = (places[start].xy_N2[:, None] + places[end].xy_N2) / 2
                limbs[limb][beside(middle_MN2, at[start], at[end]) < 2.5 * strokes.radius] = -torch.inf
    return people


def best_person(dots: list[torch.Tensor], limbs: list[torch.Tensor]) -> tuple[float, dict[int, int]]:
    """(score, joint -> number of its place) of the best tree: scores are passed from its ends towards its root.

    dots: what each place (N,) of a joint counts; limbs: what each pair of places (M, N) counts. Joints that would only
    lower the score are left out, the neck too if need be.
    """
    best, follow = [dot_N.clone() for dot_N in dots], {}
    for limb in reversed(range(len(LIMBS))):
        start, end = LIMBS[limb]
        if len(best[start]) and len(best[end]):
            gain_M, number_M = (limbs[limb] + best[end]).max(1)
            best[start] += torch.where(gain_M > LEAST_GAIN, gain_M, 0.0)
            follow[limb] = torch.where(gain_M > LEAST_GAIN, number_M, -1)
    root = max((joint for joint in range(JOINTS) if len(best[joint])), key=lambda joint: float(best[joint].max()),
               default=None)
    if root is None:
        return 0.0, {}
    chosen = {root: int(best[root].argmax())}
    for limb, (start, end) in enumerate(LIMBS):
        if start in chosen and limb in follow and (number := int(follow[limb][chosen[start]])) >= 0:
            chosen[end] = number
    return float(best[root].max()), chosen


def limb_scores(strokes: Strokes, limb: int, from_M2: torch.Tensor, to_N2: torch.Tensor) -> torch.Tensor:
    """How much (M, N) the lines between places look like a limb: their length in stroke radii, times -1.5 to 0.5.

    0.5 if all of it shows the limb's hue, -0.3 for another stroke, -1.5 for the ground.
    """
    step_MN2 = to_N2 - from_M2[:, None]
    length_MN = step_MN2.norm(dim=-1)
    # Under the dots themselves the limb is hidden.
    margin_MN = (strokes.radius / length_MN.clamp_min(1e-6)).clamp_max(0.35)
    part_MNS = margin_MN[..., None] + torch.linspace(0, 1, SAMPLES) * (1 - 2 * margin_MN[..., None])
    x_MNS, y_MNS = (from_M2[:, None, None] + part_MNS[..., None] * step_MN2[:, :, None]).round().long().unbind(-1)
    height, width = strokes.hue.shape
    at = y_MNS.clamp(0, height - 1), x_MNS.clamp(0, width - 1)
    shown_MNS = (1.5 - hue_distance(strokes.hue[at], torch.tensor(limb * HUE_STEP)) / HUE_TOLERANCE).clamp(HIDDEN, 1)
    shown_MN = torch.where(strokes.drawn[at], shown_MNS, -1.0).mean(-1)
    return (shown_MN - 0.5) * length_MN / strokes.radius


def beside(points_MN2: torch.Tensor, start_2: torch.Tensor, end_2: torch.Tensor) -> torch.Tensor:
    """Distances (M, N) of points from the line between two others, in pixels."""
    line_2 = end_2 - start_2
    part_MN = ((points_MN2 - start_2) @ line_2 / line_2.square().sum().clamp_min(1e-6)).clamp(0, 1)
    return (points_MN2 - start_2 - part_MN[..., None] * line_2).norm(dim=-1)
