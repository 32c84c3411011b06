"""LoRA (Hu et al. 2021) and DoRA (Liu et al. 2024): low-rank changes of frozen layers.

Written with the names that ComfyUI's own LoRA loader reads: `diffusion_model.LAYER.lora_A.weight` (down),
`.lora_B.weight` (up), `.alpha`, and for DoRA `.dora_scale`.
"""

from fnmatch import fnmatch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jodi_core.models.jodi import JodiTransformer

from .config import AdapterConfig

PREFIX = "diffusion_model."


class Adapter(nn.Module):
    """A frozen linear layer or 1x1 convolution plus alpha / rank * up(down(x)), at first without effect.

    magnitudes: DoRA. The changed matrix keeps its directions per input channel, and their lengths are trained on their
    own; as in section 4.3 of the paper the lengths to divide by count as constants in the backward pass.
    """

    def __init__(self, layer: nn.Module, config: AdapterConfig, magnitudes: bool):
        super().__init__()
        outputs, inputs = layer.weight.shape[:2]
        self.layer, self.scale = layer.requires_grad_(False), config.alpha / config.rank
        like = {"device": layer.weight.device, "dtype": torch.float32}
        self.down = nn.Parameter(torch.empty(config.rank, inputs, **like))
        self.up = nn.Parameter(torch.zeros(outputs, config.rank, **like))
        nn.init.kaiming_uniform_(self.down, a=5 ** 0.5)
        self.magnitude = nn.Parameter(self.lengths()) if magnitudes else None

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """(inputs,) of the columns of the changed matrix."""
        weight = self.layer.weight.flatten(1)
        return (weight.float() + self.scale * self.up @ self.down).norm(dim=0)

    def forward(self, x: Tensor) -> Tensor:
        convolution = x.ndim == 4 and isinstance(self.layer, nn.Conv2d)
        if self.magnitude is not None:
            gain = (self.magnitude / self.lengths()).to(x.dtype)
            x = x * (gain[:, None, None] if convolution else gain)
        if convolution:
            change = F.conv2d(F.conv2d(x, self.down[..., None, None]), self.up[..., None, None])
        else:
            change = F.linear(F.linear(x, self.down), self.up)
        return self.layer(x) + self.scale * change

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The changed weight, in the shape of the layer's."""
        weight = self.layer.weight.flatten(1).float() + self.scale * self.up @ self.down
        if self.magnitude is not None:
            weight = weight * (self.magnitude / self.lengths())
        return weight.view_as(self.layer.weight).to(self.layer.weight)


def add_adapters(model: JodiTransformer, config: AdapterConfig, magnitudes: bool) -> None:
    """Freeze the model and put an adapter around every target layer. ValueError if a target names none."""
    model.requires_grad_(False)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    for target in config.targets:
        if not any(fnmatch(name, target) for name in layers):
            raise ValueError(f"adapter.targets: no layer matches {target}; there are, for instance, "
                             + ", ".join(list(layers)[::max(1, len(layers) // 6)]))
    for name, layer in layers.items():
        if any(fnmatch(name, target) for target in config.targets) and is_matrix(layer):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Adapter(layer, config, magnitudes))


def is_matrix(layer: nn.Module) -> bool:
    """Depth-wise and larger convolutions have no low rank."""
    return isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1)


def adapters_of(model: nn.Module) -> dict[str, Adapter]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapter)}


def merge_adapters(model: JodiTransformer) -> None:
    """Put the changes into the weights and take the adapters away."""
    for name, adapter in adapters_of(model).items():
        adapter.layer.weight.data = adapter.merged()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, adapter.layer)


def adapter_tensors(model: JodiTransformer) -> dict[str, Tensor]:
    """Tensors of a LoRA file, float32."""
    tensors = {}
    for name, adapter in adapters_of(model).items():
        convolution = adapter.layer.weight.ndim == 4
        down, up = (part.detach()[..., None, None] if convolution else part.detach()
                    for part in (adapter.down, adapter.up))
        tensors |= {f"{PREFIX}{name}.lora_A.weight": down, f"{PREFIX}{name}.lora_B.weight": up,
                    f"{PREFIX}{name}.alpha": torch.tensor(adapter.scale * adapter.down.shape[0])}
        if adapter.magnitude is not None:
            shape = (1, -1) + (1,) * (adapter.layer.weight.ndim - 2)
            tensors[f"{PREFIX}{name}.dora_scale"] = adapter.magnitude.detach().view(shape)
    return tensors
