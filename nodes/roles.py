"""Jodi Role Switch: what happens to each domain, and the latent and conditioning that follow from it."""

import node_helpers
import torch
from comfy_api.latest import io

from ..jodi_core.domains import JODI_DOMAINS, JointRoles, nearest_bin
from ..jodi_core.pictures import fit, load_picture
from . import joint

GENERATE, CONDITION, IGNORE = ROLE_NAMES = ("generate", "condition", "ignore")
AUTOMATIC, CUSTOM = "automatic", "custom"


def picture_input(name: str) -> str:
    """The input that appears for a condition. Not the domain's own name, which its role already has as its path."""
    return f"{name}_picture"


def given_pictures(choices: dict) -> dict[str, torch.Tensor]:
    """Domain -> picture (B, 3, H, W) in [0, 1] of the domains that are conditions. ValueError where one is missing."""
    given = {name: choice.get(picture_input(name)) for name, choice in choices.items() if choice[name] == CONDITION}
    missing = [name for name, pixels_BHWC in given.items() if pixels_BHWC is None]
    if missing:
        raise ValueError(f"{', '.join(missing)}: set to 'condition', but no picture is connected to "
                         f"{', '.join(map(picture_input, missing))}")
    return {name: load_picture(pixels_BHWC.movedim(-1, 1)) for name, pixels_BHWC in given.items()}


def picture_size(size: dict, pictures: dict, config, factor: int) -> tuple[int, int]:
    """(height, width) in pixels, multiples of what one token covers."""
    if size["size"] == CUSTOM:
        unit = factor * config.patch_size
        return max(1, size["height"] // unit) * unit, max(1, size["width"] // unit) * unit
    shape = next(iter(pictures.values())).shape[-2:] if pictures else (1, 1)
    return nearest_bin(*shape, config.bins)


def batch_of(pictures: dict, batch_size: int) -> int:
    """Rows of the joint latent: a single picture serves all, several must be as many as the rows."""
    sizes = {name: len(picture) for name, picture in pictures.items() if len(picture) > 1}
    rows = max([batch_size, *sizes.values()])
    if any(count != rows for count in sizes.values()) or (sizes and batch_size not in (1, rows)):
        told = ", ".join(f"{name} has {count}" for name, count in sizes.items())
        raise ValueError(f"batch sizes disagree: batch_size is {batch_size}, {told} pictures. "
                         "Give one picture for all, or as many as the batch has")
    return rows


def encode_given(vae, roles: JointRoles, pictures: dict, rows: int, size: tuple[int, int]) -> torch.Tensor:
    """Unscaled joint latent (B, C, D, h, w) with the given pictures in their slots, zeros in the others."""
    factor = vae.spacial_compression_encode()
    clean_BCDHW = torch.zeros(rows, vae.latent_channels, len(roles.active), size[0] // factor, size[1] // factor)
    for slot in roles.condition_slots:
        fitted_B3HW = fit(pictures[roles.active_names[slot]], size)
        clean_BCDHW[:, :, slot:slot + 1] = vae.encode(fitted_B3HW.movedim(1, -1)).float()
    return clean_BCDHW


def text_rows(conditioning: list) -> int | None:
    """Number of valid text rows of a positive CONDITIONING; None if it has no text."""
    cond, values = conditioning[0]
    if values.get(joint.NULL):
        return None
    mask = values.get("attention_mask")
    return cond.shape[1] if mask is None else int(mask.sum())


class JodiRoleSwitch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiRoleSwitch",
            display_name="Jodi Role Switch",
            category="model/conditioning/jodi",
            description="Chooses the task: a role for each domain. All 'generate': joint generation. Image 'generate', "
                        "some labels 'condition': controllable generation. Image 'condition', labels 'generate': "
                        "perception.",
            search_aliases=["depth to image", "controlnet", "image to depth", "depth estimation", "normal map",
                            "lineart", "openpose", "preprocessor", "joint latent", "jodi conditioning"],
            inputs=[
                io.Vae.Input("vae", tooltip="From Jodi Loader; it also tells the model's domains and sizes."),
                io.Conditioning.Input("positive", optional=True,
                                      tooltip="The prompt. Without it the model invents. Unused for perception."),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="The negative prompt. Without it: the model's stored empty prompt."),
                *(role_input(name) for name in JODI_DOMAINS),
                io.DynamicCombo.Input("size", tooltip="Size of what is generated.", options=[
                    io.DynamicCombo.Option(AUTOMATIC, []),
                    io.DynamicCombo.Option(CUSTOM, [
                        io.Int.Input("width", default=1024, min=16, max=8192, step=16,
                                     tooltip="In pixels, cut down to a multiple of the autoencoder's factor."),
                        io.Int.Input("height", default=1024, min=16, max=8192, step=16,
                                     tooltip="In pixels, cut down to a multiple of the autoencoder's factor."),
                    ]),
                ]),
                io.Int.Input("batch_size", default=1, min=1, max=4096,
                             tooltip="Number of scenes. A single given picture serves all of them."),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="With the roles and the given pictures."),
                io.Conditioning.Output("negative", tooltip="As long as the positive one, as the model expects."),
                io.Latent.Output(tooltip="Joint latent: one slot per domain that is not ignored."),
            ],
        )

    @classmethod
    def execute(cls, vae, size, batch_size, positive=None, negative=None, **choices) -> io.NodeOutput:
        config = vae.joint_config
        chosen = {role: [name for name, choice in choices.items() if choice[name] == role] for role in ROLE_NAMES}
        roles = JointRoles.of(config.domains, chosen[GENERATE], chosen[CONDITION]).require_work()
        pictures = given_pictures(choices)
        rows = batch_of(pictures, batch_size)
        clean_BCDHW = encode_given(vae, roles, pictures, rows,
                                   picture_size(size, pictures, config, vae.spacial_compression_encode()))
        positive, negative = positive or joint.null_conditioning(), negative or joint.null_conditioning()
        values = {joint.ROLES: roles, joint.CLEAN: clean_BCDHW}
        return io.NodeOutput(
            node_helpers.conditioning_set_values(positive, values),
            node_helpers.conditioning_set_values(negative, values | {joint.ROWS: text_rows(positive)}),
            {"samples": clean_BCDHW.clone(), joint.ROLES: roles})


def role_input(name: str) -> io.DynamicCombo.Input:
    return io.DynamicCombo.Input(
        name, tooltip=f"{name}: generate it, give it as a picture (condition), or leave it out (ignore). "
                      "Ignored domains cost nothing.",
        options=[
            io.DynamicCombo.Option(GENERATE, []),
            io.DynamicCombo.Option(CONDITION, [io.Image.Input(
                picture_input(name), optional=True,
                tooltip=f"The {name} picture that is given; scaled to cover the size, centre cropped.")]),
            io.DynamicCombo.Option(IGNORE, []),
        ])
