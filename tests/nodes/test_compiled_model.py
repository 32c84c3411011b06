"""TorchCompileModel around a joint model: what is compiled when, counted by a backend that compiles nothing."""

import pytest
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from nodes_fixtures import relative, switch, text

from jodi_pack.nodes.sampling import JodiJointSampler

DRAW, PERCEIVE = {"generate": ("image", "depth")}, {"generate": ("depth",), "condition": ("image",)}
WIDE, SQUARE = ({"size": "custom", "width": width, "height": height} for width, height in ((64, 32), (96, 96)))


@pytest.fixture
def graphs():
    """Every graph that was handed to the compiler."""
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


def test_coming_back_compiles_nothing(loaded, graphs):
    """A choice of roles is compiled once, as one graph; another seed never is, prompts and sizes at most once more."""
    model, clip, vae = loaded
    compiled = TorchCompileModel.execute(model, lambda graph, *_, **__: graphs.append(graph) or graph.forward).result[0]

    def compilations(words="a tree", size=None, seed=1, **roles):
        before = len(graphs)
        conditioned = switch(vae, text(clip, words), None, size=size, **roles)
        plain, made = (JodiJointSampler.execute(used, *conditioned, seed, 2, 3.0).result[0]["samples"]
                       for used in (model, compiled))
        assert relative(made, plain) < 1e-5
        return len(graphs) - before

    assert compilations(**DRAW) == 1
    assert compilations(**DRAW, seed=2) == 0
    # The second length of a prompt makes torch compile for any length, the second size for any size.
    assert compilations("a red house on the left of a tree", **DRAW) <= 1
    assert compilations("a bush, a tree, a dog and a car", **DRAW) == 0
    assert compilations(**DRAW, size=WIDE) <= 1
    assert compilations("a bush", **DRAW, size=SQUARE) == 0
    assert compilations(**PERCEIVE) == 1
    assert compilations(**DRAW) == compilations(**PERCEIVE) == 0
