"""Jodi Label Decode: pictures and labels out of a joint latent."""

import numpy as np
import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..jodi_core.domains import JODI_DOMAINS
from ..jodi_core.fitting import Fit
from ..jodi_core.pictures import contact_sheet
from . import joint

AS_GENERATED, LIKE_GIVEN = SIZES = ("as generated", "like the given picture")
LATENT = {"tooltip": "A sampled joint latent."}
VAE = {"tooltip": "From Jodi Loader or JointNet Loader."}
SIZE = {"options": list(SIZES), "default": AS_GENERATED, "optional": True, "tooltip":
        f"'{LIKE_GIVEN}': scaled back to the first given picture and laid over it pixel for pixel; padding is cut "
        "off, and what was cropped away is black."}
CIRCULAR = {"default": False, "optional": True, "tooltip":
            "The right edge goes on at the left one: decoded without a seam. For what Jodi Tiles made with 'circular'."}
TILE = {"default": 0, "min": 0, "max": 8192, "step": 16, "optional": True, "tooltip":
        "Decodes in overlapping tiles of so many pixels a side, for large pictures; 0: as a whole."}
WRAPPED = 8    # cells of the opposite side that a circular picture is decoded with, at least 256 pixels of DC-AE


def decode_pixels(vae, samples_BCDhw: torch.Tensor, circular: bool, tile: int) -> torch.Tensor:
    """(B, D, H, W, 3) in [0, 1]. tile: pixels, of which a quarter is shared; 0: in one piece."""
    factor, wrapped = vae.spacial_compression_decode(), min(WRAPPED, samples_BCDhw.shape[-1]) if circular else 0
    if wrapped:
        samples_BCDhw = torch.cat([samples_BCDhw[..., -wrapped:], samples_BCDhw, samples_BCDhw[..., :wrapped]], dim=-1)
    cells = max(4, tile // factor)
    decoded_BDHW3 = vae.decode_tiled(samples_BCDhw, cells, cells, cells // 4) if tile else vae.decode(samples_BCDhw)
    return decoded_BDHW3[..., wrapped * factor:decoded_BDHW3.shape[-2] - wrapped * factor, :]


def decode_labels(decoded_BDHW3: torch.Tensor, names: list[str], finish, fit: Fit | None) -> dict[str, torch.Tensor]:
    """Domain -> post-processed picture (B, 3, H, W) in [0, 1], brought back to the source of `fit`.

    finish(domain, picture in [-1, 1]): of the model's family.
    """
    pictures = {}
    for name, picture_BHW3 in zip(names, decoded_BDHW3.unbind(1)):
        picture_B3HW = picture_BHW3.movedim(-1, 1) * 2 - 1
        if fit is None:
            pictures[name] = finish(name, picture_B3HW)
        else:    # padding must not count in the range of a depth map
            seen_B3HW = finish(name, fit.cut_padding(picture_B3HW))
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
            inputs=[io.Latent.Input("samples", **LATENT), io.Vae.Input("vae", **VAE), io.Combo.Input("size", **SIZE),
                    io.Boolean.Input("circular", **CIRCULAR), io.Int.Input("tile", **TILE)],
            outputs=[
                *(io.Image.Output(name, tooltip=f"The generated {name}. Nodes behind it do not run if it was given or "
                                                "ignored.") for name in JODI_DOMAINS),
                io.Image.Output("sheet", tooltip="Everything that was generated, labelled, on one picture."),
            ],
        )

    @classmethod
    def execute(cls, samples, vae, size=AS_GENERATED, circular=False, tile=0) -> io.NodeOutput:
        pictures = decode(samples, vae, size, circular, tile)
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
                    io.String.Input("name", default="image", tooltip="The domain as the model calls it."),
                    io.Boolean.Input("circular", **CIRCULAR), io.Int.Input("tile", **TILE)],
            outputs=[io.Image.Output(tooltip="The domain, post-processed as its label is used.")],
        )

    @classmethod
    def execute(cls, samples, vae, name, size=AS_GENERATED, circular=False, tile=0) -> io.NodeOutput:
        pictures = decode(samples, vae, size, circular, tile, name.strip())
        return io.NodeOutput(pictures[name.strip()].movedim(1, -1))


def decode(samples: dict, vae, size: str, circular: bool, tile: int,
           name: str | None = None) -> dict[str, torch.Tensor]:
    """Domain -> picture (B, 3, H, W) in [0, 1]: of all generated domains of a LATENT, or of the active one `name`."""
    latent_BCDhw, factor = samples["samples"], vae.spacial_compression_decode()
    roles = joint.roles_of(samples, latent_BCDhw, joint.config_of(vae).domains).require_work()
    if name is not None and name not in roles.active_names:
        raise ValueError(f"this latent has no domain '{name}'; it has {', '.join(roles.active_names)}")
    slots = list(roles.generated_slots) if name is None else [roles.active_names.index(name)]
    fit = fit_to_undo(samples, size, tuple(side * factor for side in latent_BCDhw.shape[-2:]))
    decoded_BDHW3 = decode_pixels(vae, latent_BCDhw[:, :, slots], circular, tile)
    return decode_labels(decoded_BDHW3, [roles.active_names[slot] for slot in slots], vae.postprocess, fit)
