"""Recordings of JointNet, as tests/golden/jointnet has them: `jointnet*.json` with `.safetensors`, and key lists."""

from collections.abc import Iterator
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .conformance_cases import Recording, Row, compare, equal
from .domains import JointRoles
from .geometry import cylinder_rays, distances, grid, grid_faces
from .jointnet.config import BRANCHES, JointNetConfig
from .jointnet.network import JointNet, known_input
from .jointnet.pipeline import JointNetPipeline, JointNetResult
from .jointnet.programs import convert, expand, upsample
from .jointnet.sampling import Sampling
from .jointnet.schedule import noise_levels, timesteps
from .tiles import Tiling, Window

EVALUATION, SAMPLED, MESH = 1e-5, 2e-5, 1e-6
RECORDED = ("rgb", "joint")         # how the recordings call the branches
MODALITIES = ("image", "joint")     # and the domains
PUBLISHED_FULL_WEIGHT = 5.0


class StandInAutoencoder:
    """The recorded autoencoder, which averages blocks of pixels; `encoded` are the latents that it made, scaled."""

    def __init__(self, weights: dict[str, Tensor], values: dict):
        self.weights, self.deviation, self.encoded = weights, values["posterior_std"], []
        self.channels, self.factor = len(weights["encode_bias"]), values["spatial_factor"]
        self.scale, self.shift = values["scaling_factor"], 0.0

    def encode(self, picture_B3HW: Tensor, noise_BCHW: Tensor) -> Tensor:
        weight = self.weights["encode_weight"]
        blocks_B3HW = F.avg_pool2d(picture_B3HW.to(weight), self.factor)
        mean_BCHW = F.conv2d(blocks_B3HW, weight, self.weights["encode_bias"])
        self.encoded.append((mean_BCHW + self.deviation * noise_BCHW.to(weight)) * self.scale)
        return self.encoded[-1] / self.scale

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        small_B3HW = F.conv2d(latent_BCHW, self.weights["decode_weight"], self.weights["decode_bias"], padding=1)
        return F.interpolate(small_B3HW, scale_factor=self.factor)


class StandInText:
    """The recorded text features, whatever the prompt: of an empty one the negative prompt's."""

    def __init__(self, prompt_1MC: Tensor, negative_1MC: Tensor):
        self.features, self.width = (negative_1MC, prompt_1MC), prompt_1MC.shape[-1]

    def encode(self, prompts) -> Tensor:
        return torch.cat([self.features[bool(prompt)] for prompt in prompts])


class Case:
    """A recording, and one of its cases."""

    def __init__(self, recording: Recording):
        self.values, self.tensors, self.models = recording.values(), recording.tensors(), {}
        self.device = recording.device

    def part(self, prefix: str) -> dict[str, Tensor]:
        found = {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
        return {name: tensor.float() if tensor.itemsize == 1 and tensor.is_floating_point() else tensor
                for name, tensor in found.items()}

    def network(self, variant: str) -> JointNet:
        """variant: as described, "base" or "inpaint (...)"."""
        masked = variant.startswith("inpaint")
        if masked not in self.models:
            from .jointnet.unet import DiffusersBranch
            config = JointNetConfig.from_published(self.values["unet_config"], masked,
                                                   latent_factor=self.values["vae_stand_in"]["spatial_factor"],
                                                   latent_scale=self.values["vae_stand_in"]["scaling_factor"])
            network = JointNet(config, lambda: DiffusersBranch(config))
            network.load_state_dict({f"{branch}.{name}": tensor for branch in BRANCHES
                                     for name, tensor in self.part(f"{branch}/").items()
                                     if masked or not name.startswith("jointnet_masked_latent_conv.")})
            self.models[masked] = network.to(self.device).eval()
        return self.models[masked]

    @cached_property
    def text(self) -> StandInText:
        return StandInText(self.tensors["prompt_embeds"], self.tensors["negative_prompt_embeds"])

    def pipeline(self, variant: str) -> JointNetPipeline:
        autoencoder = StandInAutoencoder(self.part("vae/"), self.values["vae_stand_in"])
        return JointNetPipeline(self.network(variant), autoencoder, lambda: self.text)


def recorded(recording: Recording) -> Iterator[Row]:
    """Everything in one recording."""
    case = Case(recording)
    yield from schedule(recording.name, case.values)
    for number, table in enumerate(case.values.get("tile_grids", ())):
        yield windows(f"{recording.name} windows {number}", table)
    for name, about in case.values["cases"].items():
        title, tensors = f"{recording.name} {name}", case.part(f"case/{name}/")
        if about["kind"] == "single network evaluation":
            yield from evaluation(title, case.network(about["variant"]), tensors)
        elif about["kind"] == "panorama depth to mesh":
            yield from mesh(title, about["args"], {part: value.cpu() for part, value in tensors.items()})
        else:
            yield from run(title, name, case.pipeline(about["variant"]), about, tensors)


def schedule(title: str, values: dict) -> Iterator[Row]:
    alphas = 1 / (1 + noise_levels() ** 2)
    for t, alpha in values["scheduler"]["alphas_cumprod"].items():
        yield compare(f"{title} alpha {t}", alphas[int(t)], torch.tensor(alpha), 1e-6)
    for entry in values.get("strength_to_timesteps", ()):
        steps, strength = entry["num_inference_steps"], entry["strength"]
        grid = timesteps(steps, strength)
        yield equal(f"{title} {steps} steps, strength {strength}", [len(grid), grid[0], grid[-1]],
                    [entry["evaluations"], entry["first_timestep"], entry["last_timestep"]])


def windows(title: str, table: dict) -> Row:
    """The recorded windows are ours. Where they leave cells out, ours are more."""
    height, width = (table[side] // 8 for side in ("height_px", "width_px"))
    tiling = Tiling((table["window"],) * 2, table["stride"], wrap=table["circular"])
    ours = [corners(window) for window in tiling.windows((height, width), full=table["add_full_view"])]
    views = table["views"] or [table["first"], table["last"]]
    if table["uncovered_latent_cells"]:
        return equal(title, [view for view in views if view not in ours], [])
    return equal(title, [len(ours), ours if table["views"] else [ours[0], ours[-1]]], [table["n_views"], views])


def corners(window: Window) -> list[int]:
    """[top, bottom, left, right], right beyond the width where a window goes on at the left edge."""
    _, rows, columns = window.part
    left = columns.start if isinstance(columns, slice) else int(columns[0])
    return [rows.start, rows.stop, left, left + window.weight_hw.shape[-1]]


def split(z_BCHW: Tensor) -> Tensor:
    """Recorded states (..., 8, h, w), the picture's channels first -> (..., 4, 2, h, w)."""
    return z_BCHW.unflatten(-3, (2, -1)).transpose(-4, -3)


def evaluation(title: str, network: JointNet, tensors: dict[str, Tensor]) -> Iterator[Row]:
    """One call, and the values inside it: what goes into the exchange layers, and what comes out of them."""
    seen = {}

    def keep(name, value):
        def hook(module, inputs, output):
            seen[name] = inputs[0] if value == "input" else output
        return hook

    handles = []
    for branch, name in zip(network.branches, RECORDED):
        watched = [(f"{name}/temb", None, branch.time_embedding),
                   (f"{name}/mid", f"{name}/outgoing_residual_mid", branch.jointnet_mid_block)]
        watched += [(f"{name}/skip_{i}", f"{name}/outgoing_residual_{i}", layer)
                    for i, layer in enumerate(branch.jointnet_down_blocks)]
        for before, after, layer in watched:
            handles.append(layer.register_forward_hook(keep(before, "input" if after else "output")))
            handles.append(layer.register_forward_hook(keep(after or before, "output")))
    known = None
    if "mask_image" in tensors:
        known = known_input(*(torch.stack([tensors[name.format(part)] for part in MODALITIES], dim=2)
                              for name in ("mask_{}", "masked_{}_latents")))
    text, t_B = network.read_text(tensors["encoder_hidden_states"]), tensors["timestep"].reshape(-1)
    roles = JointRoles.of(network.config.domains, generate=network.config.domains)
    noise_BCDHW = network(split(tensors["latents"]), t_B, text, roles, known)
    for handle in handles:
        handle.remove()
    skips = [seen[f"rgb/skip_{i}"] for i in range(len(network.config.skip_channels))]
    seen["rgb/eps_without_residuals"] = network.unet.decode(skips, seen["rgb/mid"], seen["rgb/temb"], text[0])
    seen |= {f"{name}/eps": noise_BCDHW[:, :, slot] for slot, name in enumerate(RECORDED)}
    for name, value in tensors.items():
        if name.startswith(tuple(f"{branch}/" for branch in RECORDED)):
            yield compare(f"{title} {name}", seen[name].expand_as(value), value, EVALUATION)


def run(title: str, name: str, pipe: JointNetPipeline, about: dict, tensors: dict[str, Tensor]) -> Iterator[Row]:
    """A whole program by the pipeline, its seed included."""
    states, levels, how = [], noise_levels(), how_to_sample(about, pipe.config.latent_factor)

    def watch(step, steps, x_BCDHW, x0_BCDHW):
        states.append(x_BCDHW / (1 + levels[how.timesteps[step - 1]] ** 2).sqrt().item())

    result = program(name, pipe, about["args"], tensors, {"how": how, "seed": about["seed"], "callback": watch})
    yield equal(f"{title} timesteps", how.timesteps, tensors["timesteps"].tolist())
    if "encoded_latents" in tensors:
        given = split(tensors["encoded_latents"])
        slots = [i for i, modality in enumerate(MODALITIES) if f"input_{modality}" in tensors]
        ours = pipe.autoencoder.encoded if len(pipe.autoencoder.encoded) == len(slots) else \
            [pipe.autoencoder.encoded[i] for i in slots]
        for latent_BCHW, slot in zip(ours, slots):
            yield compare(f"{title} encoded {MODALITIES[slot]}", latent_BCHW, given[:, :, slot], EVALUATION)
    yield compare(f"{title} start", states[0], split(tensors["initial_latents"]), EVALUATION)
    states, recorded_states = torch.stack([*states[1:], result.latent_BCDHW]), split(tensors["latents_after_step"])
    yield compare(f"{title} states", states, recorded_states, SAMPLED)
    # Decoding on its own: its input is not clamped, and errors of sampling would count ten times.
    decoded = pipe.decode(recorded_states[-1], JointRoles.of(pipe.domains, generate=pipe.domains),
                          wrap=how.tiling is not None and how.tiling.wrap)
    factor = pipe.config.latent_factor
    for domain, modality in zip(pipe.domains, MODALITIES):
        blocks_BHW3 = (decoded[domain] / 2 + 0.5).clamp(0, 1)[..., ::factor, ::factor].permute(0, 2, 3, 1)
        yield compare(f"{title} {modality}", blocks_BHW3, tensors[modality], EVALUATION)


def how_to_sample(about: dict, factor: int) -> Sampling:
    values, tiling = about["args"], None
    if "view_stride" in values:
        edge = values.get("boundary_type") or {"type": "constant"}
        size = edge.get("size", 0) if edge["type"] == "linear" else 0
        window = values.get("view_window_size") or min(values["height"], values["width"]) // factor
        tiling = Tiling((window, window), values["view_stride"],
                        ramp=(size * edge.get("y", False), size * edge.get("x", True)),
                        wrap=values.get("circular_padding", False),
                        full_view=float(values.get("include_full_pano") or 0),
                        full_weight=values.get("full_pano_strength", PUBLISHED_FULL_WEIGHT))
    how = Sampling(values["num_inference_steps"], values.get("strength", 1.0), values["guidance_scale"], tiling=tiling,
                   clean_end=False)
    return Sampling(**vars(how) | {"offsets": about["offsets"] or [0] * len(how.timesteps)})


def program(name: str, pipe: JointNetPipeline, values: dict, tensors: dict[str, Tensor],
            options: dict) -> JointNetResult:
    """The preset is told by the case's name, where it has no masks of its own."""
    (image, depth), factor = pipe.domains, pipe.config.latent_factor
    pictures = {domain: F.interpolate(tensors[f"input_{modality}"] / 255, scale_factor=factor)
                for domain, modality in zip(pipe.domains, MODALITIES) if f"input_{modality}" in tensors}
    masks = {domain: tensors[f"mask_{modality}"] / 255 for domain, modality in zip(pipe.domains, MODALITIES)
             if f"mask_{modality}" in tensors}
    size = values["height"], values["width"]
    if masks or not pictures:
        return pipe("x", pictures=pictures, masks=masks, height=size[0], width=size[1], **options)
    if name.endswith("rgb2j"):
        return convert(pipe, pictures[image], depth, "x", **options)
    if name.endswith("j2rgb"):
        return convert(pipe, pictures[depth], image, "x", **options)
    if name.endswith("expand"):
        return expand(pipe, pictures[image], size[1], "x", copies=1, **options)
    for preset, given in (("upsample_both", None), ("upsample_image", depth), ("upsample_joint", image)):
        if name.endswith(preset):
            return upsample(pipe, pictures, size, "x", given=given, **options)
    raise ValueError(f"{name}: pictures without masks, and no known preset")


def mesh(title: str, values: dict, tensors: dict[str, Tensor]) -> Iterator[Row]:
    """The published mesh of a panorama, which is open at its seam."""
    depth_HW, size = tensors["depth_u8"].clamp(min=1) / 255, tuple(tensors["depth_u8"].shape)
    scale, shift = values.get("scale", 1.0), values.get("shift", 0.0)
    pixels_HW2 = grid(size, max(size))
    away_HW = distances(depth_HW, 1 / (scale + shift), 1 / shift if shift else float("inf"))
    away_HW = away_HW.clamp(values.get("near", 1e-5), values.get("far", 1e5))
    rays_HW3 = cylinder_rays(pixels_HW2, size, values.get("span", 360.0))
    yield compare(f"{title} vertices", (rays_HW3 * away_HW[..., None]).flatten(0, 1), tensors["vertices"], MESH)
    faces_M3 = grid_faces(*size)
    yield equal(f"{title} triangles", sorted(faces_M3.tolist()), sorted(tensors["triangles"].tolist()))
    uvs_N2 = ((pixels_HW2 + 0.5) / torch.tensor(size)).flip(-1).flatten(0, 1)
    uvs_MC2 = uvs_N2[tensors["triangles"].long()].flatten(0, 1)
    yield compare(f"{title} places in the picture", uvs_MC2, tensors["triangle_uvs"], MESH)


def keys(recording: Recording) -> Iterator[Row]:
    """Names and shapes of the parameters of both branches at the published size."""
    from .jointnet.unet import DiffusersBranch
    config = JointNetConfig(masked_input=True)
    with torch.device("meta"):
        network = JointNet(config, lambda: DiffusersBranch(config))
    for branch in network.branches:
        ours = {name: list(parameter.shape) for name, parameter in branch.state_dict().items()}
        yield equal(f"{recording.name} {len(ours)} keys", ours, recording.values()["keys"])
