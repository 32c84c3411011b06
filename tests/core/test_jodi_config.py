"""Published key layouts, state dicts, what a file's shapes tell, and configurations that cannot be."""

import json
from pathlib import Path

import pytest
import torch

from jodi_core.domains import JODI_DOMAINS
from jodi_core.models.jodi import JodiConfig, JodiTransformer, module_name, published_name

PUBLISHED = json.loads((Path(__file__).parent.parent / "golden" / "jodi_published_keys.json").read_text())
SMALL = dict(hidden_size=64, depth=2, num_heads=4, in_channels=4, input_size=8, caption_channels=24,
             model_max_length=10)
M600 = dict(hidden_size=1152, depth=28, num_heads=16)


def shapes(model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_the_published_layout_key_by_key():
    model = JodiTransformer(JodiConfig(), device="meta")
    assert shapes(model) == {name: tuple(shape) for name, shape in PUBLISHED["shapes"].items()}
    assert len(PUBLISHED["shapes"]) == PUBLISHED["entries"] == 356
    assert [name for name, _ in model.named_buffers()] == PUBLISHED["buffers"], "the stored caption is not trained"


@pytest.mark.parametrize("sizes, parameters", [
    ({}, 1_635_657_216), ({"patch_size": 2}, 1_639_098_624), (M600, 600_270_592),
    (M600 | {"patch_size": 2}, 602_040_832), (M600 | {"patch_size": 4}, 609_121_792),
])
def test_sizes_of_the_published_variants(sizes, parameters):
    model = JodiTransformer(JodiConfig(**sizes), device="meta")
    assert sum(value.numel() for value in model.parameters()) == parameters
    found = JodiConfig.from_state_dict(shapes(model))
    assert found == model.config, "a published file needs no metadata"


@pytest.mark.parametrize("changes", [
    {"patch_size": 4}, {"patch_embed_kernel": 3}, {"patch_size": 2, "patch_embed_kernel": 5}, {"qk_norm": True},
    {"cross_norm": True}, {"y_norm": False}, {"mlp_ratio": 1.5}, {"in_channels": 8, "depth": 3},
    {"domains": JODI_DOMAINS[:3]}, {"domains": (*JODI_DOMAINS, "label_8", "label_9")},
], ids=str)
def test_shapes_tell_the_configuration(changes):
    model = JodiTransformer(JodiConfig(**SMALL | changes), device="meta")
    assert JodiConfig.from_state_dict(shapes(model), num_heads=4, input_size=8) == model.config


@pytest.mark.parametrize("hidden", [64, 96, 224])
def test_a_width_of_the_mlp_survives_being_told_as_a_ratio(hidden):
    for width in range(hidden, 3 * hidden, 7):
        model = {"blocks.0.mlp.point_conv.conv.weight": (hidden, width, 1, 1), "domain_embedding": (1, hidden),
                 "x_embedders.0.proj.weight": (hidden, 4, 1, 1), "final_layers.0.linear.weight": (4, hidden),
                 "y_embedder.y_embedding": (10, 24)}
        assert JodiConfig.from_state_dict(model, num_heads=4).mlp_hidden == width


@pytest.mark.parametrize("change, message", [
    ({"final_layers.0.linear.weight": None}, "final_layers.0.linear.weight"),
    ({"x_embedders.0.proj.weight": (64, 4)}, "not a Jodi transformer"),
    ({"domain_embedding": ()}, "not a Jodi transformer"),
    ({}, "num_heads can't be read from shapes"),
])
def test_shapes_of_something_else(change, message):
    found = shapes(JodiTransformer(JodiConfig(**SMALL), device="meta")) | change
    with pytest.raises(ValueError, match=message):
        JodiConfig.from_state_dict({name: shape for name, shape in found.items() if shape is not None})


@pytest.mark.parametrize("values, message", [
    ({"hidden_size": 70}, "position table"), ({"num_heads": 5}, "num_heads 5"), ({"num_heads": 0}, "num_heads 0"),
    ({"linear_head_dim": 48}, "linear_head_dim 48"), ({"domains": ()}, "at least one"),
    ({"domains": ("image", "image")}, "distinct"), ({"patch_embed_kernel": 4}, "must be odd"),
    ({"patch_size": 3}, "input_size 8 is not divisible by patch_size 3"),
])
def test_sizes_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        JodiConfig(**SMALL | values)


def test_a_configuration_survives_json():
    config = JodiConfig(**SMALL, domains=("image", "heat"), bins={0.5: (32, 64), 1.0: (48, 48)}, patch_embed_kernel=3)
    assert JodiConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="unknown configuration keys colour.*newer"):
        JodiConfig.from_dict(config.to_dict() | {"colour": 1})


def test_constructor_names_of_the_original():
    config = JodiConfig.from_reference({"hidden_size": 64, "depth": 2, "num_heads": 4, "num_conditions": 9,
                                        "attn_type": "linear", "mlp_acts": ["silu", "silu", None], "use_pe": True})
    assert config.domains == (*JODI_DOMAINS, "label_8", "label_9") and config.use_pe
    assert config.y_norm_scale_factor == 1.0, "the original's default, where the published model says 0.01"
    with pytest.raises(ValueError, match="attn_type 'vanilla' is not supported"):
        JodiConfig.from_reference({"attn_type": "vanilla"})


def test_a_state_dict_goes_round_under_the_published_names():
    torch.manual_seed(0)
    model, other = (JodiTransformer(JodiConfig(**SMALL)) for _ in range(2))
    for each in (model, other):
        each.init_weights()
    saved = model.state_dict()
    names = list(saved)
    other.load_state_dict(saved, strict=True)
    assert list(saved) == names and "blocks.0.scale_shift_table" in names, "loading must not rename them"
    assert all(torch.equal(value, saved[name]) for name, value in other.state_dict().items())
    with pytest.raises(RuntimeError, match="blocks.1.scale_shift_table"):
        other.load_state_dict({name: value for name, value in saved.items() if "table" not in name}, strict=True)


def test_names_map_both_ways():
    model = JodiTransformer(JodiConfig(**SMALL), device="meta")
    modules = {*dict(model.named_parameters()), *dict(model.named_buffers())}
    assert {module_name(name) for name in model.state_dict()} == modules
    assert {published_name(name) for name in modules} == set(model.state_dict())


def test_every_layer_with_weights_comes_from_operations():
    """A host's layers cast and offload; they also need the tables under module names."""
    class Operations:
        Linear, Conv2d, Embedding, LayerNorm, RMSNorm = (
            type(base.__name__, (base,), {}) for base in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding,
                                                          torch.nn.LayerNorm, torch.nn.RMSNorm))
    config = JodiConfig(**SMALL, qk_norm=True, cross_norm=True)
    model = JodiTransformer(config, dtype=torch.bfloat16, operations=Operations)
    weighted = [module for module in model.modules() if list(module.parameters(recurse=False))]
    assert all(type(module) in vars(Operations).values() for module in weighted)
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    assert "domain_embedding.weight" in model.state_dict()
    model.load_state_dict(JodiTransformer(config).state_dict(), strict=True)
