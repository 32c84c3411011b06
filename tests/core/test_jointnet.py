"""The network of JointNet: the recorded single calls of the original, its keys, and which part is computed when."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jodi_core.domains import JointRoles
from jodi_core.jointnet.config import JointNetConfig
from jodi_core.jointnet.network import JointNet, known_input

diffusers = pytest.importorskip("diffusers")
from jodi_core.jointnet.unet import DiffusersBranch  # noqa: E402

GOLDEN = Path(__file__).parent.parent / "golden" / "jointnet"
DOMAINS = ("image", "depth")
BOTH = JointRoles.of(DOMAINS, generate=DOMAINS)


@pytest.fixture(scope="module")
def tensors():
    return load_file(GOLDEN / "jointnet_tiny.safetensors")


@pytest.fixture(scope="module")
def tiny(tensors):
    """The recorded tiny model, of the inpaint variant."""
    config = JointNetConfig.from_published(json.loads((GOLDEN / "jointnet_tiny.json").read_text())["unet_config"], True)
    model = JointNet(config, lambda: DiffusersBranch(config))
    model.load_state_dict({name.replace("/", "."): tensor.float() for name, tensor in tensors.items()
                           if name.startswith(("unet/", "jointnet/"))})
    return model.eval().requires_grad_(False)


@pytest.fixture
def call(tensors):
    """Latents (1, 4, 2, h, w), text and the inpaint variant's input of a recorded call."""
    parts = {name.removeprefix("case/forward_inpaint/"): tensor for name, tensor in tensors.items()}
    masks, latents = (torch.stack([parts[name.format(modality)] for modality in ("image", "joint")], dim=2)
                      for name in ("mask_{}", "masked_{}_latents"))
    return parts["latents"].unflatten(1, (2, 4)).transpose(1, 2), parts["encoder_hidden_states"], \
        known_input(masks, latents)


def test_a_recorded_call_and_what_a_row_reads(tiny, tensors, call):
    """Four rows that share two texts: the recorded ones come first and last."""
    x, text, known = call
    texts = tiny.read_text(torch.cat([text, -text]))
    out = tiny(torch.cat([x, x, x * 0.5, x]), torch.tensor([261]), texts, BOTH, known)
    swapped = tiny(x, torch.tensor([261]), tiny.read_text(-text), BOTH, known)
    for slot, branch in enumerate(("rgb", "joint")):
        recorded = tensors[f"case/forward_inpaint/{branch}/eps"]
        for row in (0, 1):
            assert (out[row, :, slot] - recorded[0]).abs().max() < 1e-5 * recorded.abs().max()
    torch.testing.assert_close(out[3:], swapped, atol=1e-5, rtol=1e-5)
    assert (out[3] - out[0]).abs().max() > 1e-3    # text does something


def test_a_text_with_masked_rows_is_the_shorter_text(tiny, call):
    x, text, known = call
    padded, mask = torch.cat([text, torch.ones_like(text)], 1), torch.arange(2 * text.shape[1])[None] < text.shape[1]
    short, masked, longer = (tiny(x, torch.tensor([261]), tiny.read_text(*features), BOTH, known)
                             for features in ((text,), (padded, mask), (padded,)))
    torch.testing.assert_close(masked, short, atol=1e-5, rtol=1e-5)
    assert (longer - short).abs().max() > 1e-3


@pytest.mark.parametrize("given", [0, 1])
def test_the_decoder_of_a_given_domain_is_left_out(tiny, call, given):
    x, text, known = call
    t, text = torch.tensor([261]), tiny.read_text(text)
    both = tiny(x, t, text, BOTH, known)
    roles = JointRoles.of(DOMAINS, generate=[DOMAINS[1 - given]], condition=[DOMAINS[given]])
    decoded = []
    handles = [branch.conv_out.register_forward_hook(lambda module, *rest: decoded.append(module))
               for branch in tiny.branches]
    one = tiny(x, t, text, roles, known)
    for handle in handles:
        handle.remove()
    assert decoded == [tiny.branches[1 - given].conv_out]
    assert torch.equal(one[:, :, 1 - given], both[:, :, 1 - given]) and not one[:, :, given].any()


def test_an_ignored_domain_leaves_a_plain_unet(tiny, call):
    x, text, known = call
    for own, branch in enumerate(tiny.branches):
        roles = JointRoles.of(DOMAINS, generate=[DOMAINS[own]])
        alone = tiny(x[:, :, own:own + 1], torch.tensor([261]), tiny.read_text(text), roles)
        plain = diffusers.UNet2DConditionModel(**tiny.config.unet_settings()).eval()
        plain.load_state_dict({name: value for name, value in branch.state_dict().items()
                               if not name.startswith("jointnet_")})
        torch.testing.assert_close(alone[:, :, 0], plain(x[:, :, own], 261, text).sample, atol=2e-5, rtol=1e-4)


def test_untrained_exchange_changes_nothing(tiny, call):
    x, text, known = call
    fresh = JointNet(tiny.config, lambda: DiffusersBranch(tiny.config)).eval()
    t, texts = torch.tensor([700]), fresh.read_text(text)
    with torch.no_grad():
        joint = fresh(x, t, texts, BOTH, known)
        alone = fresh(x[:, :, :1], t, texts, JointRoles.of(DOMAINS, generate=["image"]))
    torch.testing.assert_close(joint[:, :, :1], alone)


def test_keys_and_shapes_of_the_published_size():
    recorded = json.loads((GOLDEN / "published_state_dict_keys.json").read_text())["keys"]
    config = JointNetConfig(masked_input=True)
    with torch.device("meta"):
        model = JointNet(config, lambda: DiffusersBranch(config))
    expected = {f"{branch}.{name}": tuple(shape) for branch in ("unet", "jointnet") for name, shape in recorded.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == expected and len(recorded) == 716
    branch = {name.removeprefix("unet."): shape for name, shape in shapes.items() if name.startswith("unet.")}
    assert JointNetConfig.from_state_dict(branch) == config
    parts = sum(parameter.numel() for name, parameter in model.named_parameters() if "masked_latent" not in name)
    assert parts == 1_754_804_488
    with torch.device("meta"):
        text = model.read_text(torch.empty(2, 77, 1024))
        out = model(torch.empty(2, 4, 2, 64, 100), torch.empty(1), text, BOTH)
    assert out.shape == (2, 4, 2, 64, 100)
    assert {k.shape[1] for branch in text for k, *_ in branch.values()} == {5, 10, 20}    # heads, all 64 wide
    assert {k.shape[-1] for branch in text for k, *_ in branch.values()} == {64}


def test_a_latent_of_other_domains_is_refused(tiny, call):
    x, text, _ = call
    with pytest.raises(ValueError, match="domain axis"):
        tiny(x[:, :, :1], torch.tensor([261]), tiny.read_text(text), BOTH)


@pytest.mark.parametrize("change, told", [
    ({"in_channels": 9}, "in_channels 9"), ({"prediction_type": "v_prediction"}, "v_prediction"),
    ({"down_block_types": ["AttnDownBlock2D"] * 3}, "AttnDownBlock2D"), ({"joint_in_channels": 3}, "joint_in_channels"),
    ({"attention_head_dim": [2, 5, 2]}, "5 heads"), ({"block_out_channels": [32, 32]}, "levels"),
    ({"class_embed_type": "timestep"}, "class_embed_type"),
])
def test_settings_of_other_networks_are_refused(change, told):
    values = json.loads((GOLDEN / "jointnet_tiny.json").read_text())["unet_config"]
    with pytest.raises(ValueError, match=told):
        JointNetConfig.from_published(values | change, False)


def test_a_config_survives_json():
    config = JointNetConfig(masked_input=True, domains=("image", "normal"))
    assert JointNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="depths"):
        JointNetConfig.from_dict(config.to_dict() | {"depths": 3})


def test_what_every_joint_model_tells_of_itself():
    assert list(JointNetConfig().bins.values()) == [(384, 704), (448, 576), (512, 512), (576, 448), (704, 384)]
    tiny = JointNetConfig(channels=(32, 64), attention=(True, True), heads=(1, 2), sample_size=8, in_channels=32,
                          latent_factor=16, latent_scale=0.4)
    assert tiny.bins[1.0] == (128, 128) and tiny.bins[0.6] == (96, 160)
    with pytest.raises(ValueError, match="scale 0"):
        JointNetConfig(latent_scale=0)
