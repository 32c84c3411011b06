"""What the tests of the host's own nodes share: prompts, latents read back, and the table that they declare."""

import importlib
from pathlib import Path
from typing import NamedTuple

import torch
from jodi_prompts import joint_prompt, link, node
from safetensors.torch import load_file

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "stock_nodes.md"
CHAPTERS = {"test_stock_samplers": "Samplers", "test_stock_models": "Models", "test_stock_conditioning": "Conditioning",
            "test_stock_latents": "Latents and autoencoder", "test_stock_jointnet": "JointNet",
            "test_stock_dual_diffusion": "Dual Diffusion"}
WORKS, LIMITED, REFUSED = "works", "limited", "does not"
GIVEN, DRAWN = 2, [0, 1]    # slots of `scene`: the normals are the condition


class Row(NamedTuple):
    nodes: str
    verdict: str
    why: str


def stock(nodes: str, verdict: str, why: str):
    """Declares one row of the table; the test underneath is its proof."""
    def declare(test):
        test.stock_rows = [Row(nodes, verdict, why), *getattr(test, "stock_rows", [])]
        return test
    return declare


def scene(**settings) -> dict:
    """Loader, text and role switch: image and depth are generated, the normals given as a flat picture."""
    prompt = joint_prompt({"image": "generate", "depth": "generate", "normal": "flat"}, **settings)
    kept = {name: prompt[name] for name in ("load", "text", "roles")}
    return kept | {"flat": node("EmptyImage", width=128, height=128, batch_size=1, color=0x8080FF),
                   "text2": node("CLIPTextEncode", clip=link("load", 1), text="a blue car on the right")}


def ksampler(**changes) -> dict:
    return node("KSampler", **{
        "model": link("load"), "positive": link("roles"), "negative": link("roles", 1),
        "latent_image": link("roles", 2), "seed": 1, "steps": 2, "cfg": 3.0, "sampler_name": "euler",
        "scheduler": "simple", "denoise": 1.0} | changes)


def latents(server, prompt: dict, *names: str) -> list[torch.Tensor]:
    """Run the prompt and read the samples of the nodes' LATENT; "roles" is the latent of the role switch."""
    savers = {f"save_{name}": node("SaveLatent", samples=link(name, 2 if name == "roles" else 0),
                                   filename_prefix=f"latents/{name}") for name in names}
    outputs = server.run(prompt | savers)
    files = [outputs[saver]["latents"][0] for saver in savers]
    return [load_file(server.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]
            for file in files]


def left_half(right: float = 0.0) -> dict:
    """A MASK "mask" that is 1 in the left half of 128 x 128 pixels, and `right` in the other."""
    return {"right": node("SolidMask", value=right, width=128, height=128),
            "left": node("SolidMask", value=1.0, width=64, height=128),
            "mask": node("MaskComposite", destination=link("right"), source=link("left"), x=0, y=0, operation="add")}


def changed(server, prompt: dict, **nodes: dict) -> list[torch.Tensor]:
    """What the sampler "plain" makes, and what it makes with the MODEL that the node "new" gives."""
    plain = prompt["plain"]
    made = node(plain["class_type"], **plain["inputs"] | {"model": link("new")})
    return latents(server, prompt | nodes | {"made": made}, "plain", "made")


def folder(server, name: str) -> Path:
    """Among the server's models."""
    path = server.base / "models" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute value of `other`."""
    return float((one - other).abs().max() / other.abs().max())


def table() -> str:
    """The document, from what the tests declare."""
    lines = ["# The host's own nodes with joint models", "",
             "Made by `python tests/host/stock_table.py` from the declarations in `tests/host/test_stock_*.py`; the "
             "test of each row runs on a real ComfyUI (on the CPU, with the tiny model). The first four chapters are "
             "about Jodi."]
    for module, title in CHAPTERS.items():
        tests = vars(importlib.import_module(module)).values()
        rows = [row for test in tests for row in getattr(test, "stock_rows", ())]
        lines += ["", f"## {title}", "", "| stock node | verdict | why, or what to do |", "|---|---|---|",
                  *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines) + "\n"
