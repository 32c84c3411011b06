"""Sets with weights: how often their samples are drawn, and that none is left out."""

from collections import Counter

import pytest
import torch

from training.config import SetConfig
from training.config_file import build
from training.order import BatchOrder

SETS = {"small": (30, 4.0), "plain": (120, 1.0), "large": (300, 0.5)}    # samples, weight
NAMES = [name for name, (count, _) in SETS.items() for _ in range(count)]
WEIGHTS = torch.tensor([weight for count, weight in SETS.values() for _ in range(count)], dtype=torch.float64)
BINS = torch.arange(len(NAMES)) % 3 // 2    # two sizes, one with twice the samples
TOTAL = sum(count * weight for count, weight in SETS.values())


def test_sets_are_drawn_in_proportion_to_their_weights():
    """Over the run, and in each part of it."""
    order = BatchOrder(BINS, 8, 1200, 0, WEIGHTS)
    for steps in (range(1200), range(300), range(700, 1000)):
        drawn = Counter(NAMES[index] for step in steps for index in order.samples(step))
        for name, (count, weight) in SETS.items():
            assert drawn[name] / (8 * len(steps)) == pytest.approx(count * weight / TOTAL, abs=0.02)


def test_nothing_is_left_out_and_passes_stay_whole():
    """The samples of a set and size come in one permutation after the other."""
    order = BatchOrder(BINS, 8, 1200, 0, WEIGHTS)
    drawn = [index for step in range(1200) for index in order.samples(step)]
    assert set(drawn) == set(range(len(NAMES)))
    for name in SETS:
        for which in (0, 1):
            members = [index for index in range(len(NAMES)) if NAMES[index] == name and BINS[index] == which]
            own = [index for index in drawn if index in set(members)]
            passes = [own[start:start + len(members)] for start in range(0, len(own) - len(members), len(members))]
            assert len(passes) > 5 and all(sorted(turn) == members for turn in passes)


def test_the_order_is_a_function_of_the_step():
    one, again = (BatchOrder(BINS, 8, 400, 3, WEIGHTS) for _ in range(2))
    longer = BatchOrder(BINS, 8, 800, 3, WEIGHTS)
    for step in (390, 7, 200, 0, 399, 8):
        assert one.samples(step) == again.samples(step) == longer.samples(step)
    assert one.samples(5) != BatchOrder(BINS, 8, 400, 4, WEIGHTS).samples(5)


@pytest.mark.parametrize("weight", [1.0, 0.3, 7.0])
def test_equal_weights_change_nothing(weight):
    plain, weighted = BatchOrder(BINS, 4, 200, 1), BatchOrder(BINS, 4, 200, 1, torch.full((len(BINS),), weight))
    assert [plain.samples(step) for step in range(200)] == [weighted.samples(step) for step in range(200)]


def test_a_set_does_not_keep_to_one_task():
    """Tasks take turns by micro-batch; three sets of equal shares must not take turns with them."""
    weights = torch.tensor([1.0] * 40 + [2.0] * 20 + [4.0] * 10)
    order = BatchOrder(torch.zeros(70, dtype=torch.long), 3, 900, 0, weights)
    seen = Counter((place, weights[index].item()) for step in range(900)
                   for place, index in enumerate(order.samples(step)))
    assert len(seen) == 9 and all(count == pytest.approx(300, abs=60) for count in seen.values())


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none(weight):
    with pytest.raises(ValueError, match="must be above 0; to leave the set out, remove it"):
        build(SetConfig, {"path": "x", "weight": weight})
