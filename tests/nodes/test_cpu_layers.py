"""On a CPU the host's layers take float32 products from oneDNN: the same numbers, and only where they may."""

import pytest
import torch
from nodes_fixtures import golden, relative

from jodi_core.domains import JODI_DOMAINS, JointRoles
from jodi_core.models import layers
from jodi_pack.nodes.host import cpu_layers
from jodi_pack.nodes.host.cpu_layers import CPULayers

pytestmark = pytest.mark.skipif(not layers.ONEDNN, reason="torch without oneDNN")


@pytest.fixture
def products(monkeypatch):
    """One entry for each product by oneDNN."""
    found, product = [], cpu_layers.onednn_product
    monkeypatch.setattr(cpu_layers, "onednn_product", lambda *given: found.append(1) or product(*given))
    return found


def filled(layer: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    for value in layer.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=generator))
    return layer


def test_a_model_takes_them_and_stays_the_same(model_a, monkeypatch, products):
    tensors, inputs = golden("model_a.forward.safetensors"), golden("model_a.json")["cases"][0]["inputs"]
    x_BLChw, text = tensors[f"{inputs}.x"].float(), tensors[f"{inputs}.y"][:1, 0].float()
    roles, network = JointRoles(JODI_DOMAINS, [0] * 8), model_a.model.diffusion_model

    def run():
        return network(x_BLChw[:1].transpose(1, 2), torch.tensor([700.0]), context=text, roles=roles)

    found = run()
    assert len(products) > 8 * network.config.depth
    monkeypatch.setattr(cpu_layers, "onednn_takes", lambda x: False)
    assert relative(found, run()) < 2e-6


@pytest.mark.parametrize("layer, shape, many", [
    (lambda: CPULayers.Linear(6, 4), (2, 3, 6), 1), (lambda: CPULayers.Linear(6, 4, bias=False), (3, 6), 1),
    (lambda: CPULayers.Conv2d(6, 4, 1), (2, 5, 3, 6), 1),
    (lambda: CPULayers.Conv2d(6, 4, 1, stride=2), (2, 5, 3, 6), 0),
    (lambda: CPULayers.Conv2d(6, 6, 1, groups=6), (2, 5, 3, 6), 0),
    (lambda: CPULayers.Conv2d(6, 4, 3, padding=1), (2, 5, 3, 6), 0)])
def test_layers(products, layer, shape, many):
    layer, x = filled(layer()), torch.randn(shape)
    plain = torch.nn.functional.linear(x, layer.weight, layer.bias) if isinstance(layer, torch.nn.Linear) else \
        torch.nn.Conv2d._conv_forward(layer, x.permute(0, 3, 1, 2), layer.weight, layer.bias)
    found = layer(x) if isinstance(layer, torch.nn.Linear) else layer(x.permute(0, 3, 1, 2))
    assert len(products) == many and relative(found, plain) < 1e-6


def test_what_it_does_not_take(products):
    """Pictures channel by channel, other number types, gradients."""
    filled(CPULayers.Conv2d(6, 4, 1))(torch.randn(2, 6, 5, 3))
    filled(CPULayers.Linear(6, 4, dtype=torch.bfloat16))(torch.randn(3, 6, dtype=torch.bfloat16))
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.randn(3, 6, requires_grad=True)
        filled(CPULayers.Linear(6, 4, dtype=torch.float32).requires_grad_(False))(x).sum().backward()
        assert x.grad.any()
    assert not products


def test_weights_come_through_the_host_s_cast(products):
    layer, x = filled(CPULayers.Linear(6, 4, dtype=torch.bfloat16)), torch.randn(3, 6)
    weight, bias = layer.weight.float(), layer.bias.float()
    assert relative(layer(x), torch.nn.functional.linear(x, weight, bias)) < 1e-6    # stored in fewer bits
    layer.weight_function = [lambda weight: weight * 2]    # as a LoRA of a model that is partly loaded
    assert relative(layer(x), torch.nn.functional.linear(x, weight * 2, bias)) < 1e-6
    assert len(products) == 2
