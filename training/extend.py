"""More domains for a joint model (spec 7, "new domains"): new layers start as copies of other domains' layers."""

import torch

from jodi_core.models.jodi import JodiTransformer
from jodi_core.models.jodi_config import JodiConfig


def extend(model: JodiTransformer, new: dict[str, str]) -> JodiTransformer:
    """A model with the domains of `model`, and after them the new ones: name -> domain whose layers they start from.

    The row of a new domain in the domain table starts as small noise, as in a model from nothing.
    ValueError if a name is taken or a source unknown.
    """
    old = model.config.domains
    for name, source in new.items():
        if name in old:
            raise ValueError(f"start.extend: the model already has a domain {name}")
        if source not in old:
            raise ValueError(f"start.extend: {name} starts from {source}, but the model has {', '.join(old)}")
    extended = JodiTransformer(JodiConfig(**{**vars(model.config), "domains": (*old, *new)}))
    torch.nn.init.normal_(extended.domain_embedding.weight, std=0.02)
    tensors = dict(model.state_dict())
    rows = tensors.pop("domain_embedding")
    for place, source in enumerate(new.values(), len(old)):
        for layers in ("x_embedders", "final_layers"):
            start = f"{layers}.{old.index(source)}."
            tensors |= {f"{layers}.{place}.{key.removeprefix(start)}": value.clone()
                        for key, value in model.state_dict().items() if key.startswith(start)}
    with torch.no_grad():
        extended.domain_embedding.weight[:len(old)] = rows
    extended.load_state_dict(tensors | {"domain_embedding": extended.domain_embedding.weight.detach()})
    return extended


def train_new_only(model: JodiTransformer, count: int) -> None:
    """Freeze all but the last `count` domains: their layers, and their rows of the domain table."""
    model.requires_grad_(False)
    for layers in (model.x_embedders, model.final_layers):
        layers[-count:].requires_grad_(True)
    table = model.domain_embedding.weight.requires_grad_(True)
    old_L1 = torch.arange(len(table))[:, None] < len(table) - count
    table.register_hook(lambda grad: grad.masked_fill(old_L1.to(grad.device), 0.0))
