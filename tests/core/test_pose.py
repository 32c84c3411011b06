"""Skeletons out of drawings: of the toy world, in the published style, blurred by the tiny model, and none at all."""

import math
import time

import pytest
import torch

from jodi_core import JodiPipeline
from jodi_core.pose import JOINTS, LIMBS, find_people
from training.objects import joints
from training.raster import Canvas
from training.world import render, sample_scene

# x right, y down, in hundredths of the person's height; the head turned a little, one arm up.
FIGURE = ((51, 12), (50, 22), (39, 23), (30, 36), (33, 50), (61, 22), (72, 12), (66, -2), (44, 52), (43, 73), (40, 95),
          (56, 52), (58, 72), (63, 93), (48, 9), (54, 9), (44, 11), (58, 10))


def draw(people, height, width, radius, limb_light):
    """OpenPose drawing (3, H, W): tapered limbs, over them the dots of all joints that are not None."""
    y_HW, x_HW = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    picture_3HW = torch.zeros(3, height, width)
    for person in people:
        for limb, (start, end) in enumerate(LIMBS):
            if person[start] and person[end]:
                (ax, ay), (bx, by) = person[start], person[end]
                half = math.hypot(bx - ax, by - ay) / 2
                along = ((x_HW - (ax + bx) / 2) * (bx - ax) + (y_HW - (ay + by) / 2) * (by - ay)) / (2 * half)
                across = ((x_HW - (ax + bx) / 2) * (by - ay) - (y_HW - (ay + by) / 2) * (bx - ax)) / (2 * half)
                inside = (along / half) ** 2 + (across / radius) ** 2 < 1
                picture_3HW[:, inside] = limb_light * colour(limb)
    for person in people:
        for joint, place in enumerate(person):
            if place:
                picture_3HW[:, torch.hypot(x_HW - place[0], y_HW - place[1]) <= radius] = colour(joint)
    return picture_3HW


def colour(number):
    """Hue 20 degrees times `number`, as (3, 1) in [0, 1]."""
    sixth, part = divmod(20 * number / 60, 1)
    ramps = ((1, part, 0), (1 - part, 1, 0), (0, 1, part), (0, 1 - part, 1), (part, 0, 1), (1, 0, 1 - part))
    return torch.tensor(ramps[int(sixth)]).float()[:, None]


def figure(x, y, size, mirrored=False):
    """FIGURE at a place; a mirrored one is seen from behind."""
    return [(x + size * (100 - px if mirrored else px) / 100, y + size * py / 100) for px, py in FIGURE]


def errors(found, truth):
    """Distances in pixels of all joints; infinite for one that was missed or invented."""
    return [math.dist(joint[:2], place) if joint[2] and place else 0.0 if not joint[2] and not place else math.inf
            for joint, place in zip(found, truth)]


def world_joints(scene, side):
    thing, unit = scene.thing("person"), Canvas(1, side, side).unit
    x, y = thing.x * side, (scene.horizon + (1 - scene.horizon) * thing.y) * side
    return [(x + unit * thing.size * jx - 0.5, y - unit * thing.size * jy - 0.5)
            for jx, jy in joints(thing.pose, thing.flip)] + [None] * 4


def scenes_with_a_person(first, count):
    scenes = (sample_scene(seed) for seed in range(first, first + 1000))
    return [scene for scene in scenes if scene.thing("person")][:count]


@pytest.mark.parametrize("limb_light", [0.6, 1.0])
@pytest.mark.parametrize("size, radius", [((360, 480), 4), ((1024, 1024), 9)])
def test_two_people_are_told_apart(size, radius, limb_light):
    height, width = size
    truth = [figure(0.05 * width, 0.1 * height, 0.8 * height), figure(0.5 * width, 0.2 * height, 0.55 * height, True)]
    people = find_people(draw(truth, height, width, radius, limb_light))
    assert len(people) == 2
    for found, places in zip(people, truth):
        assert max(errors(found, places)) < 2
        assert {score for _, _, score in found} == {1.0}


def test_missing_joints_stay_missing():
    truth = [place if joint not in (4, 10, 15, 17) else None for joint, place in enumerate(figure(40, 30, 300))]
    (found,) = find_people(draw([truth], 360, 360, 4, 0.6))
    assert max(errors(found, truth)) < 2 and found[4] == (0.0, 0.0, 0.0)


def test_crossed_limbs():
    truth = figure(60, 30, 300)
    truth[3], truth[4] = (165, 120), (230, 160)    # the right forearm lies across the trunk
    (found,) = find_people(draw([truth], 360, 360, 4, 0.6))
    assert max(errors(found, truth)) < 2


@pytest.mark.parametrize("side", [128, 512])
def test_people_of_the_toy_world(side):
    scenes = scenes_with_a_person(30_000_000, 12)
    for scene, drawing in zip(scenes, render(scenes, side, side)["openpose"]):
        (found,) = find_people(drawing.float() / 255)
        assert max(errors(found, world_joints(scene, side))) < 3


def test_what_the_tiny_model_draws():
    scenes = scenes_with_a_person(20_000_000, 6)
    pictures = render(scenes, 128, 128)["image"].float() / 255
    drawn = JodiPipeline.from_pretrained("tiny", device="cpu")(
        conditions={"image": pictures}, generate=["openpose"], seed=1).pictures["openpose"]
    distances = []
    for scene, drawing in zip(scenes, drawn):
        (found,) = find_people(drawing)
        distances += [math.dist(joint[:2], place) for joint, place in zip(found, world_joints(scene, 128))
                      if joint[2] and place]
    assert len(distances) > 0.85 * 14 * len(scenes)
    assert sum(distances) / len(distances) < 10    # pixels; people are about 50 high


def test_no_people_where_none_are_drawn():
    assert find_people(torch.zeros(3, 64, 96)) == []
    assert find_people(torch.full((3, 64, 64), 0.8)) == []
    dots = torch.zeros(3, 200, 200)
    dots[0, 50:58, 50:58] = dots[1, 120:128, 90:98] = 1
    assert find_people(dots) == []


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 64)])
def test_pictures_too_small_for_people(size):
    assert find_people(torch.rand(3, *size, generator=torch.manual_seed(0))) == []


def test_any_picture_ends_in_time():
    began = time.monotonic()
    people = find_people(torch.rand(3, 256, 256, generator=torch.manual_seed(0)))
    assert all(len(person) == JOINTS for person in people)
    assert time.monotonic() - began < 30
