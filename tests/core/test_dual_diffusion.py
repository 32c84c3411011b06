"""The Dual Diffusion transformer: its published layout, its two heads, and what it leaves out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jodi_core.dual_diffusion.config import PUBLISHED, DualDiffusionConfig
from jodi_core.dual_diffusion.network import DualDiffusionTransformer
from jodi_core.dual_diffusion.start import start_from_sd3
from jodi_core.files import WeightsError

GOLDEN = Path(__file__).parent.parent / "golden" / "dual_diffusion"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def weights(golden):
    return {name.removeprefix("transformer."): value.float() for name, value in golden.items()
            if name.startswith("transformer.")}


@pytest.fixture(scope="module")
def network(weights):
    values = json.loads((GOLDEN / "golden.json").read_text())
    network = DualDiffusionTransformer(DualDiffusionConfig.from_dict(values["transformer_config"]))
    network.load_state_dict(weights, strict=True)
    return network.eval().requires_grad_(False)


def test_published_layout():
    """Names, shapes and counts of spec 2.3."""
    shapes = {name: tuple(tensor.shape) for name, tensor in
              DualDiffusionTransformer(PUBLISHED, device="meta").state_dict().items()}
    assert len(shapes) == 688
    assert shapes["pos_embed.pos_embed"] == (1, 36864, 1536) and shapes["null_image_embd"] == (1, 8, 1536)
    assert shapes["transformer_blocks.23.norm1_context.linear.weight"] == (9216, 1536)
    assert shapes["transformer_blocks.23.ff_context.net.0.proj.weight"] == (6144, 1536)
    assert shapes["time_text_embed.timestep_embedder.linear_1.weight"] == (1536, 256)
    assert shapes["text_proj_out.weight"] == (32100, 1536) and shapes["image_proj_out.bias"] == (64,)
    del shapes["pos_embed.pos_embed"]
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 2_102_856_100
    assert DualDiffusionConfig.from_state_dict(shapes | {"pos_embed.pos_embed": (1, 36864, 1536)}) == PUBLISHED


def test_configuration_of_a_folder():
    values = {"_class_name": "SD3JointModelFlexible", "vocab_size": 80, "out_channels": None, "in_channels": 4,
              "qk_norm": None, "dual_attention_layers": [], "pooled_projection_dim": 32}
    assert DualDiffusionConfig.from_dict(values) == DualDiffusionConfig(vocab_size=80, in_channels=4, out_channels=4)
    with pytest.raises(ValueError, match="no vocab_size.*Stable Diffusion 3"):
        DualDiffusionConfig.from_dict({"num_layers": 24})


@pytest.mark.parametrize("values, message", [
    ({"caption_projection_dim": 1536}, "1536 must be num_attention_heads x attention_head_dim = 18 x 64 = 1152"),
    ({"num_layers": 0}, "num_layers must be a whole number of at least 1"),
    ({"num_attention_heads": 1, "attention_head_dim": 6, "caption_projection_dim": 6}, "6 is not divisible by 4"),
    ({"sample_size": 7}, "sample_size 7 is not divisible by patch_size 2"),
])
def test_sizes_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        DualDiffusionConfig(vocab_size=80, **values)


def test_position_table_can_be_rebuilt(network, weights):
    fresh = DualDiffusionTransformer(network.config)
    fresh.init_weights()
    torch.testing.assert_close(fresh.pos_embed.pos_embed, weights["pos_embed.pos_embed"], atol=1e-6, rtol=0)


def test_image_head_alone(network, golden):
    """`velocity` leaves out the text head and most of the last block; a text of two branches shares the picture."""
    latents, states, t = (golden[f"forward.0.{name}"] for name in ("latents", "encoder_hidden_states", "timestep"))
    text = torch.cat([network.embed_text(states), network.embed_text(states.flip(1))])
    expected = torch.cat([network(latents, states, t)[0], network(latents, states.flip(1), t)[0]])
    torch.testing.assert_close(network.velocity(latents, text, t), expected, atol=5e-5, rtol=0)
    one_time = network.velocity(latents, text[:2], t[:1])
    torch.testing.assert_close(one_time, network(latents, states, t[:1].expand(2))[0], atol=5e-5, rtol=0)


def test_text_head_alone(network, golden):
    """`text_logits` at the asked places is what the whole network says there."""
    latents, states = golden["forward.0.latents"], golden["forward.0.encoder_hidden_states"]
    places = torch.rand(states.shape[:2], generator=torch.Generator().manual_seed(0)) < 0.4
    logits = network(latents, states, torch.zeros(2))[1]
    seen = network.look(latents)
    torch.testing.assert_close(network.text_logits(seen, states, places), logits[places], atol=5e-5, rtol=0)
    second = network.text_logits(seen.rows(torch.tensor([1])), states[1:], places[1:])
    torch.testing.assert_close(second, logits[1][places[1]], atol=5e-5, rtol=0)


@pytest.mark.parametrize("size", [(5, 4), (4, 26)])
def test_latents_that_cannot_be(network, golden, size):
    with pytest.raises(ValueError, match="must be divisible by 2 and at most 24"):
        network.look(torch.zeros(1, 16, *size))


# ---- from Stable Diffusion 3 ------------------------------------------------------------------------------------

def sd3_transformer(config: DualDiffusionConfig):
    """Random, with pooled text features that contribute nothing."""
    diffusers = pytest.importorskip("diffusers")
    names = ("sample_size", "patch_size", "in_channels", "out_channels", "num_layers", "attention_head_dim",
             "num_attention_heads", "joint_attention_dim", "caption_projection_dim", "pos_embed_max_size")
    sd3 = diffusers.SD3Transformer2DModel(**{name: getattr(config, name) for name in names}, pooled_projection_dim=32)
    torch.manual_seed(0)
    for name, parameter in sd3.named_parameters():
        torch.nn.init.normal_(parameter, std=0.0 if "text_embedder" in name else 0.1)
    return sd3.eval().requires_grad_(False)


def test_most_of_it_is_in_stable_diffusion_3(network, weights):
    """All but 15 tensors, at any depth: 673 of the published 688."""
    theirs = sd3_transformer(network.config).state_dict()
    assert sum(name in theirs and theirs[name].shape == value.shape for name, value in weights.items()) == \
        len(weights) - 15


def test_it_begins_as_stable_diffusion_3(network, golden):
    """Pictures are the same; what is new reaches the text alone."""
    sd3, latents = sd3_transformer(network.config), golden["forward.0.latents"]
    states, t = golden["forward.0.encoder_hidden_states"], golden["forward.0.timestep"]
    begun = DualDiffusionTransformer(network.config)
    begun.init_weights()
    begun.load_state_dict(start_from_sd3(sd3.state_dict(), begun.state_dict()), strict=True)
    expected = sd3(latents, states, torch.randn(2, 32), t).sample
    torch.testing.assert_close(begun.eval()(latents, states, t)[0], expected, atol=5e-5, rtol=0)
    for name in ("transformer_blocks.1.ff_context.net.2.weight", "transformer_blocks.1.attn.to_add_out.weight"):
        begun.state_dict()[name].mul_(3)
    torch.testing.assert_close(begun(latents, states, t)[0], expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("change, message", [
    (lambda sd3: {"text_proj_out.weight": torch.zeros(1)}, "this is a Dual Diffusion transformer, but a Stable"),
    (lambda sd3: sd3 | {"context_embedder.weight": torch.zeros(128, 64)},
     r"context_embedder.weight is \(128, 48\) in the new network and \(128, 64\).*not of one size"),
    (lambda sd3: sd3 | {"transformer_blocks.0.attn2.to_q.weight": torch.zeros(1)}, "another version of it, or larger"),
])
def test_another_beginning_is_refused(network, change, message):
    sd3 = sd3_transformer(network.config).state_dict()
    with pytest.raises(WeightsError, match=message):
        start_from_sd3(change(sd3), network.state_dict())
