"""Jodi Role Switch: what happens to each domain, and the latent and conditioning that follow from it."""

import node_helpers
from comfy_api.latest import io

from ..jodi_core.domains import JODI_DOMAINS
from ..jodi_core.fitting import FIT_MODES, Fit
from . import joint
from .given import AUTOMATIC, CONDITION, CUSTOM, EDIT, GENERATE, IGNORE, LIKE_PICTURE, TIMED, Choice, Given

MoreDomains = io.Custom("JODI_DOMAINS")    # domain -> what its role input holds, of Jodi Domain
PIXELS = {"default": 1024, "min": 16, "max": 8192, "step": 16,
          "tooltip": "In pixels, cut down to a multiple of the autoencoder's factor."}


def text_rows(conditioning: list) -> int | None:
    """Number of valid text rows of a positive CONDITIONING; None if it has no text."""
    cond, values = conditioning[0]
    if values.get(joint.NULL):
        return None
    mask = values.get("attention_mask")
    return cond.shape[1] if mask is None else int(mask.sum())


def require_choices(choices: dict) -> None:
    """ValueError for dynamic combos with a value that the host does not know: it hands no dictionary on for these."""
    unknown = [name for name, choice in choices.items() if not isinstance(choice, dict)]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: not one of the choices that the node offers")


def given_inputs(name: str) -> list[io.Input]:
    # Not the domain's own name, which its role already has as its path.
    return [io.Image.Input(f"{name}_picture", optional=True, tooltip=f"The {name} picture that is given."),
            io.Latent.Input(f"{name}_latent", optional=True,
                            tooltip="In place of a picture: a joint latent, of which this domain is taken, or the "
                                    "latent of one picture.")]


def role_input(name: str) -> io.DynamicCombo.Input:
    start = io.Float.Input(f"{name}_start", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                           tooltip="From this part of the steps on the condition is seen.")
    end = io.Float.Input(f"{name}_end", default=1.0, min=0.0, max=1.0, step=0.01, optional=True,
                         tooltip="Until this part of the steps the condition is seen; outside it is ignored.")
    mask = io.Mask.Input(f"{name}_mask", optional=True,
                         tooltip="Where it is made anew; elsewhere it stays. Without a mask all of it is made anew "
                                 "from what is given (denoise below 1 in the sampler).")
    return io.DynamicCombo.Input(
        name, tooltip=f"{name}: generate it, give it as a picture (condition), leave it out (ignore), or edit a given "
                      "one. Ignored domains cost nothing, and what the model does not have is left out.",
        options=[
            io.DynamicCombo.Option(GENERATE, []),
            io.DynamicCombo.Option(CONDITION, given_inputs(name)),
            io.DynamicCombo.Option(IGNORE, []),
            io.DynamicCombo.Option(EDIT, [*given_inputs(name), mask]),
            io.DynamicCombo.Option(TIMED, [*given_inputs(name), start, end]),
        ])


class JodiRoleSwitch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiRoleSwitch",
            display_name="Jodi Role Switch",
            category="model/conditioning/jodi",
            description="Chooses the task: a role for each domain. All 'generate': joint generation. Image 'generate', "
                        "some labels 'condition': controllable generation. Image 'condition', labels 'generate': "
                        "perception. 'edit': a given picture or label is made anew where its mask is painted.",
            search_aliases=["depth to image", "controlnet", "image to depth", "depth estimation", "normal map",
                            "lineart", "openpose", "preprocessor", "joint latent", "jodi conditioning", "inpaint"],
            inputs=[
                io.Vae.Input("vae", tooltip="From Jodi or JointNet Loader; it tells the model's domains and sizes."),
                io.Conditioning.Input("positive", optional=True,
                                      tooltip="The prompt. Without it the model invents. Jodi perceives without."),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="The negative prompt. Without it: the empty prompt."),
                *(role_input(name) for name in JODI_DOMAINS),
                io.DynamicCombo.Input("size", tooltip="Size of what is generated.", options=[
                    io.DynamicCombo.Option(AUTOMATIC, []),
                    io.DynamicCombo.Option(CUSTOM, [io.Int.Input("width", **PIXELS), io.Int.Input("height", **PIXELS)]),
                    io.DynamicCombo.Option(LIKE_PICTURE, []),
                ]),
                io.Int.Input("batch_size", default=1, min=1, max=4096,
                             tooltip="Number of scenes. A single given picture serves all of them."),
                io.Combo.Input("fit", options=list(FIT_MODES), default=FIT_MODES[0], optional=True,
                               tooltip="How given pictures of another shape come to the size: cropped at the centre, "
                                       "padded with their border, or stretched. Jodi Label Decode can undo it."),
                MoreDomains.Input("more", optional=True,
                                  tooltip="Domains that a model has beside the usual eight, from Jodi Domain."),
                io.Int.Input("feather", default=0, min=0, max=1024, step=8, optional=True,
                             tooltip="Masks of edited domains fade out over so many pixels around what they cover."),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="With the roles and the given pictures."),
                io.Conditioning.Output("negative", tooltip="As long as the positive one, as the model expects."),
                io.Latent.Output(tooltip="Joint latent: one slot per domain that is not ignored."),
            ],
        )

    @classmethod
    def execute(cls, vae, size=None, batch_size=1, positive=None, negative=None, fit=FIT_MODES[0], more=None,
                feather=0, **roles) -> io.NodeOutput:
        config, factor = joint.config_of(vae), vae.spacial_compression_encode()
        require_choices({"size": size} | {name: roles.get(name) for name in JODI_DOMAINS})
        # A model without a domain generates it as little as it ignores it; to give it something is a mistake.
        told = {name: roles[name] for name in JODI_DOMAINS
                if name in config.domains or roles[name][name] not in (GENERATE, IGNORE)} | (more or {})
        given = Given({name: Choice.read(name, values, config.domains) for name, values in told.items()},
                      config, factor)
        pixels, rows = given.size(size), given.rows(batch_size)
        samples_BCDhw = given.samples(vae, rows, pixels, fit)
        latent = {"samples": samples_BCDhw, joint.ROLES: given.roles}
        if (source := given.first_picture_size()) is not None:
            latent[joint.FIT] = Fit(fit, source, pixels)
        if (mask := given.noise_mask(rows, pixels, fit, feather)) is not None:
            latent["noise_mask"] = mask
        positive, negative = positive or joint.null_conditioning(), negative or joint.null_conditioning()
        values = {joint.ROLES: given.roles, joint.CLEAN: samples_BCDhw.clone(), joint.SPANS: given.spans}
        return io.NodeOutput(
            node_helpers.conditioning_set_values(positive, values),
            node_helpers.conditioning_set_values(negative, values | {joint.ROWS: text_rows(positive)}), latent)


class JodiDomain(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiDomain",
            display_name="Jodi Domain",
            category="model/conditioning/jodi",
            description="The role of a domain that a model has beside the usual eight, for the input 'more' of Jodi "
                        "Role Switch.",
            search_aliases=["extra domain", "new label", "custom label"],
            inputs=[
                io.String.Input("name", default="", tooltip="The domain as the model calls it; an error lists them."),
                role_input("domain"),
                MoreDomains.Input("more", optional=True, tooltip="Further domains, from another Jodi Domain."),
            ],
            outputs=[MoreDomains.Output("more", tooltip="For Jodi Role Switch or the next Jodi Domain.")],
        )

    @classmethod
    def execute(cls, name, domain=None, more=None) -> io.NodeOutput:
        require_choices({"domain": domain})
        name, more = name.strip(), more or {}
        if not name or name in more:
            raise ValueError(f"give each Jodi Domain the name of another domain, not {name!r}")
        told = {key.replace("domain", name, 1): value for key, value in domain.items()}
        return io.NodeOutput(more | {name: told})
