"""Roles, captions and batches of training samples."""

from collections import Counter

import pytest
import torch

from jodi_core.buckets import bin_batches, pass_order
from jodi_core.domains import Role
from jodi_core.role_sampling import TASKS, caption_chances, draw_roles, role_chances

PRESENT = (True, False, True, True)


@pytest.mark.parametrize("task, rows", [("j", 1), ("c", 8), ("p", 7)])
def test_draws_follow_the_chances(task, rows):
    generator = torch.Generator().manual_seed(5)
    counts = Counter(draw_roles(PRESENT, task, generator) for _ in range(4000))
    chances = role_chances(PRESENT, [task])
    assert set(counts) == set(chances) and len(chances) == rows
    assert all(abs(counts[row] / 4000 - chance) < 5 * (chance / 4000) ** 0.5 for row, chance in chances.items())


def test_chances_of_all_tasks():
    chances = role_chances(PRESENT)
    assert sum(chances.values()) == pytest.approx(1)
    assert chances[(0, 0, 2, 0, 0)] == pytest.approx(1 / 3)
    assert chances[(0, 2, 2, 2, 2)] == pytest.approx(1 / 24), "plain text to picture is among the control rows"
    assert (1, 2, 2, 2, 2) not in chances, "perception of nothing is not trained"
    assert all(row[2] == Role.IGNORE for row in chances), "an absent label is always ignored"


def test_nothing_present():
    generator = torch.Generator().manual_seed(0)
    assert draw_roles((False, False), "j", generator) == draw_roles((False, False), "c", generator) == (0, 2, 2)
    with pytest.raises(ValueError, match="at least one label"):
        draw_roles((False, False), "p", generator)


def test_a_seed_gives_the_same_draws():
    first, again = (
        [draw_roles(PRESENT, task, generator) for task in TASKS * 5]
        for generator in (torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)))
    assert first == again


def test_caption_weights():
    weights = {"long": 4, "short": 1, "odd": 5}
    assert caption_chances(["long", "short"], weights) == {"long": 0.8, "short": 0.2}
    assert caption_chances(["other", "short"], weights) == {"other": 0.0, "short": 1.0}
    assert caption_chances(["other", "new"], weights) == caption_chances(["other", "new"]) == {"other": 0.5, "new": 0.5}


def test_processes_share_a_pass_without_overlap():
    shares = [pass_order(41, epoch=3, rank=rank, ranks=4) for rank in range(4)]
    assert sorted(sum(shares, [])) == list(range(40))
    assert pass_order(41, 3) != pass_order(41, 4)


def test_batches_are_full_and_of_one_bin():
    bins = {0.5: (64, 128), 1.0: (96, 96)}
    sizes = [(100, 100 + 100 * (i % 2)) for i in range(30)]
    batches = list(bin_batches(range(30), sizes, 4, bins))
    assert len(batches) == 6 and all(len({sizes[i] for i in batch}) == 1 for batch in batches)
    assert batches[0] == [0, 2, 4, 6]
