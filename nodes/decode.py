"""Jodi Label Decode: pictures and labels out of a joint latent."""

import numpy as np
import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..jodi_core.domains import JODI_DOMAINS
from ..jodi_core.pictures import contact_sheet, postprocess
from . import joint


def decode_labels(vae, samples_BCDHW: torch.Tensor, roles) -> dict[str, torch.Tensor]:
    """Domain -> post-processed picture (B, 3, H, W) in [0, 1] of every generated domain."""
    slots = list(roles.generated_slots)
    decoded_BDHW3 = vae.decode(samples_BCDHW[:, :, slots])
    return {roles.active_names[slot]: postprocess(roles.active_names[slot], picture_BHW3.movedim(-1, 1) * 2 - 1)
            for slot, picture_BHW3 in zip(slots, decoded_BDHW3.unbind(1))}


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
            inputs=[
                io.Latent.Input("samples", tooltip="A sampled joint latent."),
                io.Vae.Input("vae", tooltip="From Jodi Loader."),
            ],
            outputs=[
                *(io.Image.Output(name, tooltip=f"The generated {name}. Nodes behind it do not run if it was given or "
                                                "ignored.") for name in JODI_DOMAINS),
                io.Image.Output("sheet", tooltip="Everything that was generated, labelled, on one picture."),
            ],
        )

    @classmethod
    def execute(cls, samples, vae) -> io.NodeOutput:
        latent_BCDHW = samples["samples"]
        roles = joint.roles_of(samples, latent_BCDHW, vae.joint_config.domains)
        pictures = decode_labels(vae, latent_BCDHW, roles.require_work())
        sheet_HW3 = torch.from_numpy(np.array(contact_sheet(pictures))).float() / 255
        outputs = [pictures[name].movedim(1, -1) if name in pictures else ExecutionBlocker(None)
                   for name in JODI_DOMAINS]
        return io.NodeOutput(*outputs, sheet_HW3[None])
