"""Products on a CPU by oneDNN in place of torch's own: the same numbers, and only where they may be."""

import pytest
import torch

from jodi_core.models import layers
from jodi_core.models.jodi import JodiConfig, JodiTransformer

JOINT, PERCEIVE = [0] * 8, [1, 2, 2, 0, 2, 2, 0, 2]


@pytest.fixture
def model():
    torch.manual_seed(3)
    config = JodiConfig(hidden_size=64, depth=2, num_heads=4, in_channels=4, input_size=8, caption_channels=24,
                        model_max_length=10, y_norm_scale_factor=1.0)
    model = JodiTransformer(config).eval().requires_grad_(False)
    for name, value in model.state_dict().items():
        value.normal_(std=0.3 if value.ndim == 1 or "table" in name else 1.5 * value[0].numel() ** -0.5)
    return model


def arguments(roles):
    """x, t, y, role, mask, clean_x."""
    x, clean = torch.randn(2, 1, 8, 4, 4, 6, generator=torch.Generator().manual_seed(5))
    return x, torch.tensor([300.0]), torch.randn(1, 1, 10, 24), torch.tensor([roles]), None, clean


@pytest.mark.skipif(not layers.ONEDNN, reason="torch without oneDNN")
@pytest.mark.parametrize("roles", [JOINT, PERCEIVE])
def test_products_of_onednn_are_those_of_torch(monkeypatch, model, roles):
    called, product, given = [], layers.onednn_product, arguments(roles)
    monkeypatch.setattr(layers, "onednn_product", lambda *given: called.append(1) or product(*given))
    with torch.no_grad():
        found = model(*given)
        assert len(called) > 8 * model.config.depth
        monkeypatch.setattr(layers, "ONEDNN", False)
        expected = model(*given)
    assert (found - expected).abs().max() < 2e-6 * expected.abs().max()


def test_what_needs_gradients_or_is_no_plain_layer_takes_the_layer_itself(monkeypatch, model):
    monkeypatch.setattr(layers, "onednn_product", None)
    model(*arguments(JOINT))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(*arguments(JOINT))

    class HostLinear(torch.nn.Linear):
        """As a host's, it casts its weight first."""
    with torch.no_grad():
        layers.linear(HostLinear(4, 4), torch.ones(2, 4))


@pytest.mark.parametrize("room, parts", [
    (21, [(3, 7)]), (14, [(2, 7), (1, 7)]), (13, 3 * [(1, 7)]), (6, 3 * [(1, 6), (1, 1)]),
    (3, 3 * [(1, 3), (1, 3), (1, 1)]), (0, 3 * [(1, 2), (1, 2), (1, 2), (1, 1)])])
def test_mixffn_in_parts(monkeypatch, model, room, parts):
    """Pictures and lines of the grid between the convolutions at once, where there is room for so many lines. Nothing
    changes; with a gradient, which keeps everything, it is left."""
    mlp, calls, widen = model.blocks[0].mlp, [], layers.MixFFN.widen
    x_BDNC = torch.randn(1, 3, 7 * 5, 64, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(layers.MixFFN, "widen", lambda self, x: calls.append(tuple(x.shape[:2])) or widen(self, x))
    expected = mlp(x_BDNC, (7, 5))
    monkeypatch.setitem(layers.WIDE_BYTES, "cpu", room * 4 * 5 * mlp.width)
    assert torch.equal(mlp(x_BDNC, (7, 5)), expected) and calls == 2 * [(3, 7)]
    calls.clear()
    with torch.no_grad():
        found = mlp(x_BDNC, (7, 5))
    assert (found - expected).abs().max() < 2e-6 * expected.abs().max() and calls == parts
