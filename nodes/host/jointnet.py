"""MODEL: JointNet out of the host's own Stable Diffusion U-Nets, so that its samplers, LoRA and offloading apply."""

from pathlib import Path

import comfy.model_base
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, forward_timestep_embed
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding

from ...jodi_core.files import WeightsError, read_header
from ...jodi_core.jointnet.config import JointNetConfig
from ...jodi_core.jointnet.loading import read_jointnet
from ...jodi_core.jointnet.network import add_exchange, known_input, predict_noise
from ...jodi_core.weights import check_keys, kind_of, metadata_tensor
from .. import joint
from .joint_model import JointCall, JointModel, build, place
from .latent import JointLatent
from .sampling import KnownDDIM, ddim_levels
from .version import require


class HostBranch(UNetModel):
    """The host's U-Net in two halves, see `jointnet.network.Branch`. text: (features, the host's options)."""

    def embed_time(self, t_B, dtype):
        return self.time_embed(timestep_embedding(t_B, self.model_channels).to(dtype))

    def encode(self, x_BCHW, temb, text, added_BCHW):
        skips, text[1]["original_shape"] = [], list(x_BCHW.shape)
        for number, block in enumerate(self.input_blocks):
            x_BCHW = run_block(block, ("input", number), x_BCHW, temb, text)
            if number == 0 and added_BCHW is not None:
                x_BCHW = x_BCHW + added_BCHW
            for patch in patches("input_block_patch", text):
                x_BCHW = patch(x_BCHW, text[1])
            skips.append(x_BCHW)
            for patch in patches("input_block_patch_after_skip", text):
                x_BCHW = patch(x_BCHW, text[1])
        return skips, run_block(self.middle_block, ("middle", 0), x_BCHW, temb, text)

    def decode(self, skips, middle, temb, text):
        x_BCHW, skips = middle, list(skips)
        for number, block in enumerate(self.output_blocks):
            skip = skips.pop()
            text[1]["block"] = ("output", number)
            for patch in patches("output_block_patch", text):
                x_BCHW, skip = patch(x_BCHW, skip, text[1])
            shape = skips[-1].shape if skips else None
            x_BCHW = run_block(block, ("output", number), torch.cat([x_BCHW, skip], dim=1), temb, text, shape)
        return self.out(x_BCHW)


def run_block(block, place: tuple, x_BCHW, temb, text: tuple, shape=None):
    """One block of a U-Net; place: what patches of attention are told. shape: of the next skip connection."""
    features, options = text
    options["block"] = place
    return forward_timestep_embed(block, x_BCHW, temb, features, options, shape)


def patches(kind: str, text: tuple) -> list:
    return text[1].get("patches", {}).get(kind, [])


class JointNetNetwork(JointCall, HostBranch):
    """Both branches. The picture's is this module itself, whose parameters so have the names that LoRA of Stable
    Diffusion 2.1 look for; the map's is in `jointnet`."""

    def __init__(self, config: JointNetConfig, *, device=None, dtype=None, operations=None, **unet):
        super().__init__(**unet, device=device, dtype=dtype, operations=operations)
        self.config = config
        jointnet = HostBranch(**unet, device=device, dtype=dtype, operations=operations)
        for branch in (self, jointnet):
            add_exchange(branch, config, operations, device=device, dtype=dtype)
        self.jointnet = jointnet
        for module in self.modules():
            if isinstance(module, torch.nn.GroupNorm):    # the host always makes 32 groups
                module.num_groups = config.norm_groups

    def predict(self, x, timesteps, context, roles, clean, options):
        """Predicted noise. clean: `known_input`, of the variant with masks and of the other."""
        options["transformer_index"] = 0
        return predict_noise((self, self.jointnet), self.config.masked_input, x, timesteps,
                             ((context, options), (context, options)), roles, clean)


class JointNetModel(JointModel):
    def __init__(self, model_config, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.EPS, device=device, unet_model=JointNetNetwork)
        self.empty_text_1MC = None

    def caption(self, roles, spans, cross_attn, device, **values) -> torch.Tensor:
        """The text features as they are, 77 rows of them mostly; those of the empty prompt if there is no text."""
        if values.get(joint.NULL):
            cross_attn = self.empty_text_1MC
        if cross_attn is None:
            raise ValueError("JointNet has no stored empty prompt: choose a text encoder in JointNet Loader, and "
                             "connect prompts to Jodi Role Switch")
        wanted = self.diffusion_model.config.text_width
        if cross_attn.shape[-1] != wanted:
            raise ValueError(f"the text features are {cross_attn.shape[-1]} wide, but this model takes {wanted}: "
                             "choose the text encoder that belongs to the model in JointNet Loader")
        return cross_attn.to(device, torch.float32)

    def given(self, roles, clean, noise, latent_image=None, denoise_mask=None, **values) -> torch.Tensor:
        """`known_input` (B, 1 + C, D, h, w): where masks and conditions leave nothing to generate, the latents there.

        Those that a mask keeps are the run's own, maybe of an earlier run. Half-known cells of a mask count as unknown
        from 0.5 on (spec 2).
        """
        latents_BCDhw = torch.zeros_like(noise)
        if latent_image is not None:    # PerpNeg asks without it
            latents_BCDhw += latent_image
        unknown_B1Dhw = (torch.ones_like(noise) if denoise_mask is None else denoise_mask)[:, :1].ge(0.5).to(noise)
        if slots := list(roles.condition_slots):
            clean = comfy.utils.repeat_to_batch_size(self.process_latent_in(clean).to(noise), len(noise))
            latents_BCDhw[:, :, slots] = clean[:, :, slots]
            unknown_B1Dhw[:, :, slots] = 0
        return known_input(unknown_B1Dhw, latents_BCDhw)

    def published_sampler(self) -> KnownDDIM:
        return KnownDDIM()

    def published_sigmas(self, sampling, steps, denoise):
        return ddim_levels(sampling, steps, denoise)


class JointNetModelConfig(comfy.supported_models_base.BASE):
    unet_extra_config = {}
    memory_usage_factor = 1.0

    def __init__(self, config: JointNetConfig):
        self.latent_format = lambda: JointLatent(config)
        super().__init__({"config": config} | unet_settings(config))

    def get_model(self, state_dict, prefix="", device=None):
        return JointNetModel(self, device=device)

    def process_unet_state_dict_for_saving(self, state_dict):
        """Under the names of our files, without the host's prefix for U-Nets that its own loader would take."""
        config = self.unet_config["config"]
        names = published_names(config, state_dict)
        return {names[name]: tensor for name, tensor in state_dict.items()} | metadata_tensor("jointnet", config)


def load_jointnet(path: str, model_options: dict = {}, empty_text_1MC: torch.Tensor | None = None,
                  disable_dynamic: bool = False):
    """MODEL from a published folder or a file made of one. model_options as for the host's loaders.

    empty_text_1MC: features of the empty prompt, for conditioning without text. WeightsError if it is no complete
    JointNet, or was made from the 768 pixel version of Stable Diffusion 2.1, which predicts velocity.
    """
    require("model")
    require("JointNet")
    if Path(path).is_file() and kind_of(read_header(Path(path)).shapes) == "transformer":
        raise WeightsError(f"{path} is a Jodi transformer: choose it in Jodi Loader, or a JointNet here")
    config, tensors = read_jointnet(path)
    if empty_text_1MC is not None and empty_text_1MC.shape[-1] != config.text_width:
        raise WeightsError(f"this text encoder gives {empty_text_1MC.shape[-1]} numbers per token, but the model takes "
                           f"{config.text_width}: use that of Stable Diffusion 2.1 with the published model")
    patcher = from_tensors(config, tensors, path, model_options, disable_dynamic)
    patcher.model.empty_text_1MC = empty_text_1MC
    patcher.cached_patcher_init = (load_jointnet, (path, model_options, empty_text_1MC))
    return patcher


def unet_settings(config: JointNetConfig) -> dict:
    """Arguments of the host's U-Net for one branch. ValueError for sizes that it cannot have."""
    widths = {channels // heads for channels, heads in zip(config.channels, config.heads)}
    uneven = any(channels % config.channels[0] for channels in config.channels)
    if len(widths) > 1 or uneven or config.channels[0] % 32:
        raise ValueError(f"channels {config.channels} with {config.heads} heads: the U-Net of ComfyUI needs heads of "
                         "one width, channels that are multiples of the first, and that a multiple of 32")
    depths = [int(attends) for attends in config.attention for _ in range(config.layers)]
    return {
        "image_size": config.sample_size, "in_channels": config.in_channels, "out_channels": config.in_channels,
        "model_channels": config.channels[0], "num_res_blocks": [config.layers] * len(config.channels),
        "channel_mult": [channels // config.channels[0] for channels in config.channels],
        "num_head_channels": widths.pop(), "use_spatial_transformer": True, "legacy": False,
        "use_linear_in_transformer": config.linear_projection, "context_dim": config.text_width,
        "transformer_depth": depths, "transformer_depth_middle": 1,
        "transformer_depth_output": [int(attends) for attends in config.attention for _ in range(config.layers + 1)],
        "attn_precision": torch.float32,
    }


def published_names(config: JointNetConfig, names) -> dict[str, str]:
    """Name in `JointNetNetwork` -> name in a file, by the host's own table; exchange layers are called alike."""
    table = {ours: published for published, ours in comfy.utils.unet_to_diffusers(unet_settings(config)).items()}
    of_map = "jointnet."
    return {name: of_map + table.get(name.removeprefix(of_map), name.removeprefix(of_map)) if name.startswith(of_map)
            else "unet." + table.get(name, name) for name in names}


def from_tensors(config: JointNetConfig, tensors: dict, what: str, model_options: dict, disable_dynamic: bool):
    """MODEL from tensors under the names of the files; `what` says whose. WeightsError if they do not fit."""
    try:
        model = build(JointNetModelConfig(config), tensors, model_options)
    except ValueError as error:
        raise WeightsError(f"{what}: {error}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.diffusion_model.state_dict().items()}
    names = published_names(config, shapes)
    check_keys({names[name]: shape for name, shape in shapes.items()},
               {name: tuple(tensor.shape) for name, tensor in tensors.items()}, what)
    return place(model, {name: tensors[published] for name, published in names.items()}, disable_dynamic)


def on_depth_too(model, strength: float):
    """A clone of MODEL in which what patches the picture's U-Net patches the map's as well, times `strength`.

    ValueError if there is no such patch, or the model is no JointNet.
    """
    network, own, other = model.model.diffusion_model, "diffusion_model.", "diffusion_model.jointnet."
    if not isinstance(network, JointNetNetwork):
        raise ValueError("this model has no U-Net for depth: connect that of JointNet Loader, with a LoRA in between")
    clone, added = model.clone(), 0
    for key, patches in model.patches.items():
        for strength_patch, patch, strength_model, offset, function in patches if not key.startswith(other) else ():
            twin = key.replace(own, other, 1)
            target = twin if offset is None and function is None else (twin, offset, function)
            added += len(clone.add_patches({target: patch}, strength_patch * strength, strength_model))
    if not added:
        raise ValueError("this model has no LoRA for the picture's U-Net: put this node behind one")
    return clone
