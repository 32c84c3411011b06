"""A joint model from Sana, the text-to-image model that Jodi was made from (spec 7, "from Sana")."""

from pathlib import Path

import torch

from jodi_core.files import WeightsError, read_tensors
from jodi_core.models.jodi import JodiTransformer
from jodi_core.weights import check_keys

IMAGE_ONLY = ("linear.weight", "linear.bias", "scale_shift_table")    # of the final layer: the first domain's
FRESH = ("role_embedder.", "role_block.", "domain_embedding", "final_layers.", "y_embedder.y_embedding")


def load_sana(model: JodiTransformer, path: Path) -> None:
    """Fill an initialised joint model from a Sana checkpoint (safetensors, or .pth read weights-only).

    The patch embedding serves every domain, the final layer the first one; roles, the domain table and the other final
    layers keep their start, and so does the stored caption. WeightsError if tensors are missing or do not fit.
    """
    found = {name.removeprefix("model."): value for name, value in read_tensors(path).items()}
    found.pop("pos_embed", None)
    if "x_embedder.proj.weight" not in found:
        raise WeightsError(f"{path} is no Sana checkpoint: it has no x_embedder.proj.weight")
    tensors = {name: value for name, value in found.items()
               if not name.startswith(("x_embedder.", "final_layer.", "y_embedder.y_embedding"))}
    for part in ("weight", "bias"):
        tensors |= {f"x_embedders.{place}.proj.{part}": found[f"x_embedder.proj.{part}"]
                    for place in range(model.config.num_domains)}
    tensors |= {f"final_layers.0.{part}": found[f"final_layer.{part}"] for part in IMAGE_ONLY}
    own = model.state_dict()
    fresh = {name: value for name, value in own.items() if name.startswith(FRESH) and name not in tensors}
    complete = fresh | tensors
    check_keys(*({name: tuple(value.shape) for name, value in part.items()} for part in (own, complete)), str(path))
    model.load_state_dict({name: value.to(torch.float32) for name, value in complete.items()})
