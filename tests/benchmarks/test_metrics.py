"""The numbers of the quality report, on pictures whose answer is known."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.prompts import Surroundings, chance, named_words, obedience, seen_words
from jodi_core import metrics
from jodi_core.domains import JODI_DOMAINS
from training.scene import Scene, Thing, sample_scene
from training.world import render


@pytest.fixture(scope="module")
def scenes():
    return [sample_scene(seed) for seed in range(16)]


@pytest.fixture(scope="module")
def truth(scenes):
    return render(scenes, 128, 128)


def grey(values, count=1):
    """(count, 3, 1, len(values)) uint8"""
    return torch.tensor(values, dtype=torch.uint8).expand(count, 3, 1, -1)


def test_truth_agrees_with_itself(truth):
    scores = metrics.compare(truth, truth)
    errors = {("depth", "abs_rel"), ("normal", "mean"), ("normal", "median")}
    assert {name for name, _ in scores} == set(JODI_DOMAINS)
    for key, value in scores.items():
        assert value == pytest.approx(0 if key in errors else 70 if key[1] == "psnr" else 1, abs=1e-4), key


def test_depth_leaves_the_sky_out_and_has_a_floor():
    truth = grey([0, 0, 100, 200, 5])
    found = grey([255, 0, 124, 255, 0])  # 5 and 0 both lie below the floor
    scores = metrics.depth(found, truth)
    assert scores["delta1"] == pytest.approx(2 / 3)  # 1.24 and 1 pass, 1.275 does not
    assert scores["abs_rel"] == pytest.approx((0.24 + 0.275 + 0) / 3)


def test_normal_angles():
    up, front = torch.tensor([0., 1, 0]), torch.tensor([0., 0, 1])
    tilted = torch.tensor([0., math.sin(0.5), math.cos(0.5)])

    def picture(*normals):
        return metrics.to_bytes((torch.stack(normals, 1)[None, :, None] + 1) / 2)
    scores = metrics.normal(picture(up, front, tilted), picture(front, front, front))
    assert scores["mean"] == pytest.approx((90 + 0 + math.degrees(0.5)) / 3, abs=0.5)
    assert scores["median"] == pytest.approx(math.degrees(0.5), abs=0.5)


def test_segmentation_counts_classes_of_the_truth_only(truth):
    half = truth["segmentation"].clone()
    half[..., 64:] = torch.tensor([127, 0, 255], dtype=torch.uint8)[:, None, None]  # vehicle
    numbers = metrics.classes(truth["segmentation"])
    found = metrics.classes(half)
    expected = [((numbers == k) & (found == k)).sum() / ((numbers == k) | (found == k)).sum()
                for k in numbers.unique()]
    scores = metrics.segmentation(half, truth["segmentation"])
    assert scores["miou"] == pytest.approx(float(sum(expected) / len(expected)))
    assert scores["accuracy"] == pytest.approx(float((numbers == found).float().mean()))


@pytest.mark.parametrize("shift, f1", [(0, 1), (1, 1), (2, 0)])
def test_lines_may_be_one_pixel_off(shift, f1):
    truth = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    truth[..., 5] = 255
    assert metrics.lines(truth.roll(shift, -1), truth)["f1"] == f1


def test_a_map_without_lines_or_skeleton_scores_nothing(truth):
    empty = torch.zeros_like(truth["edge"])
    assert metrics.lines(empty, truth["edge"])["f1"] == 0
    assert metrics.pose(empty, truth["openpose"])["iou"] == 0


def test_psnr_is_the_mean_over_pictures():
    truth = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    found = truth.clone()
    found[0], found[1] = 51, 5  # a fifth and a fifty-first of the range
    assert metrics.psnr(found, truth)["psnr"] == pytest.approx((20 * math.log10(5) + 20 * math.log10(51)) / 2)


@pytest.mark.parametrize("low, high", [(0.2, 0.8), (20.0, 2.0)])
def test_share_works_both_ways(low, high):
    assert metrics.share(low, low, high) == 0 and metrics.share(high, low, high) == 1
    assert metrics.share((low + high) / 2, low, high) == pytest.approx(0.5)


def test_true_labels_obey_their_own_caption_and_not_another(scenes, truth):
    named = [named_words(scene) for scene in scenes]
    seen = seen_words(truth["albedo"], truth["segmentation"], Surroundings.of(scenes, truth))
    obeyed, random = obedience(named, seen), chance(named, seen)
    assert obeyed["sky"] == obeyed["ground"] == 1
    assert obeyed["colour"] > 0.9 and obeyed["present"] > 0.9 and obeyed["side"] > 0.9
    assert random["colour"] < 0.4 and random["sky"] < 0.7


def test_a_missing_thing_has_no_colour():
    scene = Scene("clear", "sand", "", (), 0.5, 1, 0.5, (Thing("car", "left", 0.22, 0.73, 1.0, 1, "red"),))
    empty, blue = replace(scene, things=()), replace(scene, things=(replace(scene.things[0], variant="blue"),))
    shown = [scene, empty, blue]
    pictures = render(shown, 128, 128)
    seen = seen_words(pictures["albedo"], pictures["segmentation"], Surroundings.of(shown, pictures))
    scores = obedience([named_words(scene)] * 3, seen)
    assert scores["present"] == pytest.approx(2 / 3) == scores["side"]
    assert scores["colour"] == pytest.approx(1 / 3) and scores["colour_if_present"] == pytest.approx(1 / 2)
