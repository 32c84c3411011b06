"""What is done to prompts that make sense until they do not."""

import copy
import math
import random

from jodi_prompts import LABELS, link, node

STRINGS = ("", " ", "../../../etc/passwd", "/etc/passwd", "..\\..\\secret", "C:\\secret", "\0", "\u202e\U0001f3e0" * 50,
           "a" * 20_000, "%s%n", "{{7*7}}", "generate", "condition", "edit", "nan", "checkpoints: ../x")
NUMBERS = (-1, 0, -2**63, 2**63, 2**64, 2**200, 1e308, -1e308, math.nan, math.inf, -math.inf, 0.5)
# A link to nowhere in an input that the host does not check (unknown ones, the choice of a dynamic combo) ends its
# worker thread, with its own nodes too; so links of OTHERS go where it checks.
OTHERS = (None, True, [], {}, [[]], {"a": 1}, ["load"], ["load", 99], ["nowhere", 0], [0, 0], ["load", -1])
# Numbers inside these inputs' ranges would be right, and slow.
SLOW = ("steps", "width", "height", "batch_size", "resolution", "tile")
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"    # a choice that brings inputs of its own, called after it and a dot
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC)
ODD_PICTURES = (dict(width=1, height=1, batch_size=1), dict(width=5000, height=2, batch_size=1),
                dict(width=37, height=61, batch_size=3), dict(width=16, height=16, batch_size=7))


def spoil(prompt: dict, rng: random.Random) -> dict:
    """A copy with one to three things wrong, or at least unusual."""
    prompt = copy.deepcopy(prompt)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice((spoil_value, spoil_value, spoil_value, drop_input, relink, relink, stray_input, odd_picture,
                    odd_latent, odd_mask, other_class))(prompt, rng)
    return prompt


def is_no_prompt(prompt: dict, object_info: dict) -> bool:
    """Whether a socket (a latent, a model, ...) holds something else than a link, or a node has an input that it does
    not know: the host lets both through, and its own nodes answer with Python's words."""
    for part in prompt.values():
        sections = object_info[part["class_type"]]["input"]
        known = {**sections.get("required", {}), **sections.get("optional", {})}
        for name, value in part["inputs"].items():
            kind, parent = (known.get(key, [None])[0] for key in (name, name.partition(".")[0]))
            kind = parent if parent == DYNAMIC else kind
            socket = name.endswith(("_picture", "_latent", "_mask")) or (isinstance(kind, str) and kind not in WIDGETS)
            if kind is None or (socket and not isinstance(value, list)):
                return True
    return False


def some_node(prompt: dict, rng: random.Random) -> tuple[str, dict]:
    """A node with inputs, ours three times out of four."""
    names = [name for name, part in prompt.items() if part["inputs"]]
    ours = [name for name in names if prompt[name]["class_type"].startswith("Jodi")]
    name = rng.choice(ours if ours and rng.random() < 0.75 else names)
    return name, prompt[name]["inputs"]


def spoil_value(prompt: dict, rng: random.Random) -> None:
    _, inputs = some_node(prompt, rng)
    key = rng.choice(list(inputs))
    values = rng.choice((STRINGS, NUMBERS, NUMBERS, OTHERS))
    slow, unchecked = key.rpartition(".")[2] in SLOW, "." in key or isinstance(inputs[key], str)
    inputs[key] = rng.choice([value for value in values if not (slow and value in (0.5, True)) and not (
        unchecked and isinstance(value, list) and value)])


def drop_input(prompt: dict, rng: random.Random) -> None:
    _, inputs = some_node(prompt, rng)
    inputs.pop(rng.choice(list(inputs)))


def relink(prompt: dict, rng: random.Random) -> None:
    _, inputs = some_node(prompt, rng)
    links = [key for key, value in inputs.items() if isinstance(value, list)]
    if links:
        inputs[rng.choice(links)] = link(rng.choice(list(prompt)), rng.randrange(4))


def stray_input(prompt: dict, rng: random.Random) -> None:
    """An input that the node does not have."""
    name, inputs = some_node(prompt, rng)
    domain = rng.choice(("image", *LABELS))
    inputs[rng.choice((f"{domain}.{domain}_picture", f"{domain}.{domain}_mask", f"{domain}.{domain}_latent", "more",
                       "unknown", f"{domain}", "size.width"))] = rng.choice((link(rng.choice(list(prompt))), "x", 7))


def odd_picture(prompt: dict, rng: random.Random) -> None:
    prompt["picture"] = node("EmptyImage", color=0, **rng.choice(ODD_PICTURES))


def odd_mask(prompt: dict, rng: random.Random) -> None:
    width, height = rng.choice(((1, 1), (1, 4000), (17, 33)))
    prompt["mask"] = node("SolidMask", value=rng.random(), width=width, height=height)


def odd_latent(prompt: dict, rng: random.Random) -> None:
    """Something between the role switch and what reads its latent."""
    places = [(part["inputs"], key) for part in prompt.values() for key in ("latent_image", "samples")
              if isinstance(part["inputs"].get(key), list)]
    if not places:
        return
    inputs, key = rng.choice(places)
    source = inputs[key]
    prompt["odd"] = rng.choice((
        node("EmptyLatentImage", width=64, height=64, batch_size=2),
        node("LatentUpscaleBy", samples=source, upscale_method="bilinear", scale_by=1.5),
        node("LatentCut", samples=source, dim="t", index=0, amount=1),
        node("LatentCut", samples=source, dim="x", index=0, amount=2),
        node("LatentFromBatch", samples=source, batch_index=3, length=1),
        node("RepeatLatentBatch", samples=source, amount=3),
        node("LatentFlip", samples=source, flip_method="x-axis: vertically"),
        node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=1),
        node("SetLatentNoiseMask", samples=source, mask=link("mask"))))
    prompt.setdefault("mask", node("SolidMask", value=1.0, width=9, height=9))
    inputs[key] = link("odd")


def other_class(prompt: dict, rng: random.Random) -> None:
    """Two role switches: conditioning of the one, latent of the other."""
    if "roles" not in prompt:
        return
    prompt["roles2"] = copy.deepcopy(prompt["roles"])
    prompt["roles2"]["inputs"]["lineart"] = rng.choice(("generate", "ignore"))
    prompt["sample"]["inputs"]["latent_image"] = link("roles2", 2)
