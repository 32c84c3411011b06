"""The host's conditioning nodes on what the role switch and the text encoder give."""

import pytest
from jodi_prompts import link, node
from stock import DRAWN, GIVEN, REFUSED, WORKS, difference, ksampler, latents, scene, stock

from scripts.comfy import ComfyError

AREA = {"width": 0.5, "height": 1.0, "x": 0.0, "y": 0.0, "strength": 1.0}


def conditioned(server, **nodes: dict):
    """(plain, changed) samples; the node "new" stands in for the positive conditioning of "changed"."""
    prompt = scene() | nodes | {"plain": ksampler(), "changed": ksampler(positive=link("new"))}
    return latents(server, prompt, "plain", "changed")


def has_effect_on_drawn_domains(plain, changed) -> bool:
    return changed.isfinite().all() and difference(changed[:, :, GIVEN], plain[:, :, GIVEN]) < 1e-5 \
        and difference(changed[:, :, DRAWN], plain[:, :, DRAWN]) > 1e-4


@stock("ConditioningCombine", WORKS, "after the role switch; two equal entries are one")
def test_combine(comfy):
    plain, changed = conditioned(comfy, new=node("ConditioningCombine", conditioning_1=link("roles"),
                                                 conditioning_2=link("roles")))
    assert difference(changed, plain) < 1e-5


@stock("ConditioningConcat", WORKS, "after the role switch")
def test_concat(comfy):
    assert has_effect_on_drawn_domains(*conditioned(
        comfy, new=node("ConditioningConcat", conditioning_to=link("roles"), conditioning_from=link("text2"))))


@stock("ConditioningAverage", WORKS, "after the role switch, with the switched conditioning as `conditioning_to`")
def test_average(comfy):
    def average(strength):
        return node("ConditioningAverage", conditioning_to=link("roles"), conditioning_from=link("text2"),
                    conditioning_to_strength=strength)
    assert has_effect_on_drawn_domains(*conditioned(comfy, new=average(0.5)))
    plain, changed = conditioned(comfy, new=average(1.0))
    assert difference(changed, plain) < 1e-5


@stock("ConditioningZeroOut", WORKS, "features of zero; for an empty prompt rather leave the role switch's input free")
def test_zero_out(comfy):
    assert has_effect_on_drawn_domains(*conditioned(
        comfy, new=node("ConditioningZeroOut", conditioning=link("roles"))))


@stock("ConditioningSetTimestepRange", WORKS, "one prompt at the start and another one later: combine the two")
def test_timestep_range(comfy):
    def part(start, end, of):
        return node("ConditioningSetTimestepRange", conditioning=link(of), start=start, end=end)

    def combine(one, other):
        return node("ConditioningCombine", conditioning_1=link(one), conditioning_2=link(other))

    other = scene()["roles"]
    other["inputs"]["positive"] = link("text2")
    plain, changed = conditioned(comfy, first=part(0, 0.5, "roles"), second=part(0.5, 1, "roles"),
                                 new=combine("first", "second"))
    assert difference(changed, plain) < 1e-5
    assert has_effect_on_drawn_domains(*conditioned(
        comfy, other=other, first=part(0, 0.5, "roles"), second=part(0.5, 1, "other"), new=combine("first", "second")))


@stock("ConditioningSetMask", WORKS, "a region for a prompt, the same in all domains; combine it with the rest")
def test_mask(comfy):
    def masked(value):
        return {"mask": node("SolidMask", value=value, width=128, height=128), "new": node(
            "ConditioningSetMask", conditioning=link("roles"), mask=link("mask"), strength=1.0,
            set_cond_area="default")}
    plain, changed = conditioned(comfy, **masked(1.0))
    assert difference(changed, plain) < 1e-5


@stock("ConditioningSetAreaPercentageVideo", WORKS,
       "with temporal 1 (all domains); combine it with a whole-picture prompt")
def test_area_with_the_domain_axis(comfy):
    def area(**changes):
        return node("ConditioningSetAreaPercentageVideo", conditioning=link("roles"),
                    **AREA | {"temporal": 1.0, "z": 0.0} | changes)
    plain, changed = conditioned(comfy, new=area(width=1.0))
    assert difference(changed, plain) < 1e-5
    other = scene()["roles"]
    other["inputs"]["positive"] = link("text2")
    plain, changed = conditioned(comfy, left=area(), other=other, new=node(
        "ConditioningCombine", conditioning_1=link("left"), conditioning_2=link("other")))
    assert has_effect_on_drawn_domains(plain, changed)


@stock("ConditioningSetArea, ConditioningSetAreaPercentage", REFUSED,
       "flat areas lack the domain axis: a message names ConditioningSetAreaPercentageVideo and ConditioningSetMask")
@pytest.mark.parametrize("kind, area", [
    ("ConditioningSetAreaPercentage", AREA),
    ("ConditioningSetArea", {"width": 64, "height": 128, "x": 0, "y": 0, "strength": 1.0})])
def test_flat_areas_are_refused(comfy, kind, area):
    with pytest.raises(ComfyError, match="ConditioningSetAreaPercentageVideo"):
        conditioned(comfy, new=node(kind, conditioning=link("roles"), **area))
