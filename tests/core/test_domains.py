"""Roles, what follows from them, and the size bins."""

import pytest
import torch

from jodi_core.domains import JODI_BINS, JODI_DOMAINS, JointRoles, Role, nearest_bin

NAMES = ("image", "edge", "depth", "normal", "pose")


def test_everything_follows_from_the_roles():
    roles = JointRoles.of(NAMES, generate=["image", "normal"], condition=["pose"])
    assert roles.roles == (0, 2, 2, 0, 1)
    assert roles.active == (0, 3, 4) and roles.active_names == ("image", "normal", "pose")
    assert roles.active_roles == (Role.GENERATE, Role.GENERATE, Role.CONDITION)
    assert roles.generated_slots == (0, 1) and roles.condition_slots == (2,)
    assert not roles.image_given and JointRoles.of(NAMES, ["edge"], ["image"]).image_given


def test_slots_follow_the_order_of_the_model_not_of_the_wish():
    roles = JointRoles.of(NAMES, generate=["pose", "edge"], condition=["depth", "image"])
    assert roles.active_names == ("image", "edge", "depth", "pose")
    assert roles.generated_slots == (1, 3) and roles.condition_slots == (0, 2)


@pytest.mark.parametrize("value", [Role.CONDITION, 1, "condition", "CONDITION"])
def test_a_role_by_name_or_number(value):
    assert Role.parse(value) is Role.CONDITION


@pytest.mark.parametrize("value", [3, -1, "conditon", None])
def test_an_unknown_role(value):
    with pytest.raises(ValueError, match="use generate, condition or ignore"):
        Role.parse(value)


@pytest.mark.parametrize("make, message", [
    (lambda: JointRoles.of(NAMES, ["colour"]), "no domain colour; it has image, edge"),
    (lambda: JointRoles.of(NAMES, ["image"], ["image"]), "image: a domain is either generated or a condition"),
    (lambda: JointRoles(NAMES, (0, 0)), "2 roles for 5 domains"),
    (lambda: JointRoles.of(NAMES).require_work(), r"nothing to generate.*\(conditions: none\)"),
    (lambda: JointRoles.of(NAMES, (), ["edge"]).require_work(), r"at least one domain.*\(conditions: edge\)"),
])
def test_roles_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_joint_latent_has_a_slot_per_active_domain():
    roles = JointRoles.of(NAMES, ["normal"], ["image"])
    full = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(2, 4, 5, 3, 3)
    kept = roles.keep_active(full)
    assert kept.shape == (2, 4, 2, 3, 3) and kept[0, 0, :, 0, 0].tolist() == [0, 3]
    roles.check_latent(kept)
    for wrong in (full, kept[0]):
        with pytest.raises(ValueError, match=r"2 domains \(image, normal\)"):
            roles.check_latent(wrong)


def test_equal_roles_are_equal_values():
    first, again = (JointRoles.of(JODI_DOMAINS, ["image"], ["depth"]) for _ in range(2))
    assert first == again and hash(first) == hash(again) and first != JointRoles.of(JODI_DOMAINS, ["image"])


@pytest.mark.parametrize("size, found", [
    ((1024, 1024), (1024, 1024)), ((1, 1), (1024, 1024)), ((1080, 1920), (704, 1408)), ((1920, 1080), (1408, 704)),
    ((100, 1000), (512, 2048)), ((8000, 1), (2048, 512)), ((2, 3), (768, 1152)),
    ((99, 100), (1024, 1024)), ((90, 100), (896, 1088)),
])
def test_the_nearest_bin(size, found):
    assert nearest_bin(*size) == found


def test_the_first_of_two_equally_near_bins_wins():
    bins = {0.5: (1, 2), 1.5: (3, 2)}
    assert nearest_bin(4, 4, bins) == (1, 2) and nearest_bin(4, 4, dict(reversed(bins.items()))) == (3, 2)


def test_published_bins_are_multiples_of_the_latent_cell_and_near_their_keys():
    assert all(side % 32 == 0 for size in JODI_BINS.values() for side in size)
    assert all(abs(height / width - key) < 0.006 for key, (height, width) in JODI_BINS.items())
