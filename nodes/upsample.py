"""Jodi Upsample: a joint latent at a larger size, to be worked out again from the middle of the path."""

from dataclasses import replace

import node_helpers
import torch
from comfy_api.latest import io

from ..jodi_core.domains import JointRoles
from ..jodi_core.fitting import resize
from . import joint
from .given import whole_cells
from .host.sampling import denoise_from

EVERYTHING, PICTURE, LABELS = WHAT = ("everything", "the picture", "the labels")
SHARED = 4    # a tile shares a part of 1/4 with the next one


def roles_for(what: str, roles: JointRoles) -> JointRoles:
    """All active domains generated, or the picture or the labels alone, the others given (JointNet spec 4.5)."""
    image, *labels = roles.domains
    chosen = {EVERYTHING: roles.domains, PICTURE: (image,), LABELS: labels}[what]
    made = [name for name in roles.active_names if name in chosen]
    if not made:
        raise ValueError(f"this latent has {', '.join(roles.active_names)}: nothing of {what} to work out again")
    return JointRoles.of(roles.domains, made, [name for name in roles.active_names if name not in made])


def enlarge(vae, samples_BCDhw: torch.Tensor, size: tuple[int, int], tile: int) -> torch.Tensor:
    """Every domain decoded, stretched to (height, width) in pixels and encoded in tiles: one at a time in memory."""
    cells = [max(1, tile // vae.spacial_compression_decode())] * 2
    slots = []
    for part_BC1hw in samples_BCDhw.split(1, dim=2):
        decoded_BHW3 = vae.decode_tiled(part_BC1hw, *cells, cells[0] // SHARED)[:, 0]
        large_BHW3 = resize(decoded_BHW3.movedim(-1, 1), size).clamp(0, 1).movedim(1, -1)
        slots.append(vae.encode_tiled(large_BHW3, tile, tile, tile // SHARED))
    return torch.cat(slots, dim=2).float()


class JodiUpsample(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiUpsample",
            display_name="Jodi Upsample",
            category="latent/jodi",
            description="Prepares a joint latent to be worked out at up to four times its size: picture and labels, or "
                        "one of them with the other given. Behind it a sampler whose model has Jodi Tiles.",
            search_aliases=["upscale", "hires fix", "super resolution", "enlarge", "refine depth", "latent upscale"],
            inputs=[
                io.Model.Input("model", tooltip="That will be sampled with: its time decides about denoise."),
                io.Vae.Input("vae", tooltip="From the loader of the model."),
                io.Conditioning.Input("positive", tooltip="From Jodi Role Switch; conditions of it are made anew."),
                io.Conditioning.Input("negative", tooltip="From Jodi Role Switch."),
                io.Latent.Input("samples", tooltip="A sampled joint latent, or that of Jodi Role Switch with given "
                                                   "pictures to 'edit'."),
                io.Combo.Input("what", options=list(WHAT), default=EVERYTHING,
                               tooltip=f"What is worked out again. '{PICTURE}': the labels are given and keep its "
                                       f"structure. '{LABELS}': the picture is given. Both at the new size."),
                io.Float.Input("scale", default=2.0, min=1.0, max=4.0, step=0.05, tooltip="How much larger."),
                io.Float.Input("start", default=0.5, min=0.05, max=0.99, step=0.01,
                               tooltip="Flow time at which to start, the same for all models: part of noise in what the"
                                       " sampler begins with. More invents more, less keeps more."),
                io.Int.Input("tile", default=1024, min=64, max=8192, step=64,
                             tooltip="The autoencoder works in tiles of so many pixels a side."),
            ],
            outputs=[
                io.Conditioning.Output("positive"), io.Conditioning.Output("negative"),
                io.Latent.Output(tooltip="Enlarged, with new roles and without masks."),
                io.Float.Output("denoise", tooltip="For the sampler: the end of its steps, from that time on."),
            ],
        )

    @classmethod
    def execute(cls, model, vae, positive, negative, samples, what, scale, start, tile) -> io.NodeOutput:
        samples_BCDhw, config = samples["samples"], vae.joint_config
        roles = roles_for(what, joint.roles_of(samples, samples_BCDhw, config.domains))
        factor = vae.spacial_compression_decode()
        size = whole_cells(tuple(round(side * factor * scale) for side in samples_BCDhw.shape[-2:]),
                           factor * config.patch_size)
        large_BCDhw = enlarge(vae, samples_BCDhw, size, tile)
        latent = {"samples": large_BCDhw, joint.ROLES: roles}
        if joint.FIT in samples:
            latent[joint.FIT] = replace(samples[joint.FIT], target=size)
        values = {joint.ROLES: roles, joint.CLEAN: large_BCDhw.clone(), joint.SPANS: {}}
        return io.NodeOutput(*(node_helpers.conditioning_set_values(text, values) for text in (positive, negative)),
                             latent, denoise_from(model, start))
