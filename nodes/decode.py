"""Jodi Label Decode: pictures and labels out of a joint latent."""

import numpy as np
import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..jodi_core.domains import JODI_DOMAINS
from ..jodi_core.fitting import Fit
from ..jodi_core.pictures import contact_sheet, postprocess
from . import joint

AS_GENERATED, LIKE_GIVEN = SIZES = ("as generated", "like the given picture")
LATENT = {"tooltip": "A sampled joint latent."}
VAE = {"tooltip": "From Jodi Loader."}
SIZE = {"options": list(SIZES), "default": AS_GENERATED, "optional": True, "tooltip":
        f"'{LIKE_GIVEN}': scaled back to the first given picture and laid over it pixel for pixel; padding is cut "
        "off, and what was cropped away is black."}


def decode_labels(vae, samples_BCDHW: torch.Tensor, roles, slots, fit: Fit | None) -> dict[str, torch.Tensor]:
    """Domain -> post-processed picture (B, 3, H, W) in [0, 1] of some slots, brought back to the source of `fit`."""
    decoded_BDHW3 = vae.decode(samples_BCDHW[:, :, slots])
    pictures = {}
    for slot, picture_BHW3 in zip(slots, decoded_BDHW3.unbind(1)):
        name, picture_B3HW = roles.active_names[slot], picture_BHW3.movedim(-1, 1) * 2 - 1
        if fit is None:
            pictures[name] = postprocess(name, picture_B3HW)
        else:    # padding must not count in the range of a depth map
            seen_B3HW = postprocess(name, fit.cut_padding(picture_B3HW))
            pictures[name] = fit.restore(seen_B3HW, nearest=name == "segmentation")
    return pictures


def fit_to_undo(latent: dict, size: str, pixels: tuple[int, int]) -> Fit | None:
    """What `size` asks to undo; None if nothing was given. ValueError if the latent was resized since."""
    fit = latent.get(joint.FIT) if size == LIKE_GIVEN else None
    if fit is not None and fit.target != pixels:
        raise ValueError(f"this latent is {pixels[1]}x{pixels[0]} pixels, but the given picture was brought to "
                         f"{fit.target[1]}x{fit.target[0]}: it was resized since, so choose size '{AS_GENERATED}'")
    return fit


class JodiLabelDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiLabelDecode",
            display_name="Jodi Label Decode",
            category="latent/jodi",
            description="Decodes the generated domains of a joint latent, each as its label is used: depth over its "
                        "full range, unit normals, class colours for segmentation. Plus all of them on one sheet.",
            search_aliases=["vae decode", "depth map", "normal map", "segmentation map", "albedo", "contact sheet"],
            inputs=[io.Latent.Input("samples", **LATENT), io.Vae.Input("vae", **VAE), io.Combo.Input("size", **SIZE)],
            outputs=[
                *(io.Image.Output(name, tooltip=f"The generated {name}. Nodes behind it do not run if it was given or "
                                                "ignored.") for name in JODI_DOMAINS),
                io.Image.Output("sheet", tooltip="Everything that was generated, labelled, on one picture."),
            ],
        )

    @classmethod
    def execute(cls, samples, vae, size=AS_GENERATED) -> io.NodeOutput:
        pictures = decode(samples, vae, size)
        sheet_HW3 = torch.from_numpy(np.array(contact_sheet(pictures))).float() / 255
        outputs = [pictures[name].movedim(1, -1) if name in pictures else ExecutionBlocker(None)
                   for name in JODI_DOMAINS]
        return io.NodeOutput(*outputs, sheet_HW3[None])


class JodiDomainDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiDomainDecode",
            display_name="Jodi Domain Decode",
            category="latent/jodi",
            description="Decodes one domain of a joint latent by its name: a given one too, and domains that a model "
                        "has beside the usual eight.",
            search_aliases=["vae decode", "extra domain", "custom label"],
            inputs=[io.Latent.Input("samples", **LATENT), io.Vae.Input("vae", **VAE), io.Combo.Input("size", **SIZE),
                    io.String.Input("name", default="image", tooltip="The domain as the model calls it.")],
            outputs=[io.Image.Output(tooltip="The domain, post-processed as its label is used.")],
        )

    @classmethod
    def execute(cls, samples, vae, name, size=AS_GENERATED) -> io.NodeOutput:
        return io.NodeOutput(decode(samples, vae, size, name.strip())[name.strip()].movedim(1, -1))


def decode(samples: dict, vae, size: str, name: str | None = None) -> dict[str, torch.Tensor]:
    """Domain -> picture (B, 3, H, W) in [0, 1]: of all generated domains of a LATENT, or of the active one `name`."""
    latent_BCDhw, factor = samples["samples"], vae.spacial_compression_decode()
    roles = joint.roles_of(samples, latent_BCDhw, vae.joint_config.domains).require_work()
    if name is not None and name not in roles.active_names:
        raise ValueError(f"this latent has no domain '{name}'; it has {', '.join(roles.active_names)}")
    slots = list(roles.generated_slots) if name is None else [roles.active_names.index(name)]
    fit = fit_to_undo(samples, size, tuple(side * factor for side in latent_BCDhw.shape[-2:]))
    return decode_labels(vae, latent_BCDhw, roles, slots, fit)
