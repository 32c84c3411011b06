"""JointNet from prompt and pictures to picture and map, in one call.

`JointNetPipeline.__call__` covers joint generation and everything that begins with pictures and masks; `programs`
prepares the published applications for it. Stages can be called one by one.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from random import SystemRandom

import torch
import torch.nn.functional as F
from torch import Tensor

from ..calls import in_parts, place_of, rows_of, seeded
from ..domains import JointRoles
from ..files import WeightsError
from ..kl import KLAutoencoder, load_kl
from ..pictures import load_picture
from ..sampling import Callback
from .config import JointNetConfig
from .loading import load_jointnet, refuse_velocity
from .network import JointNet
from .pictures import finish
from .sampling import Known, Sampling, latent_mask, sample
from .text import ClipText, load_clip_text

WRAPPED = 8  # cells of the opposite side that a circular picture is decoded with


@dataclass(frozen=True)
class JointNetResult:
    """pictures: generated domain -> (n, 3, H, W) float32 in [0, 1], samples prompt by prompt; depth is inverse, the
    nearest bright. latent_BCDHW: scaled, of the active domains; roles say which they are."""

    pictures: dict[str, Tensor]
    latent_BCDHW: Tensor
    roles: JointRoles
    seed: int


class JointNetPipeline:
    """Network and autoencoder on one device; `load_text_encoder` is called when a prompt first needs it."""

    def __init__(self, network: JointNet, autoencoder: KLAutoencoder,
                 load_text_encoder: Callable[[], ClipText] | None = None):
        self.network, self.autoencoder, self._load_text_encoder = network, autoencoder, load_text_encoder
        self.config: JointNetConfig = network.config
        fits = (self.config.in_channels, self.config.latent_factor, self.config.latent_scale, 0.0)
        found = autoencoder.channels, autoencoder.factor, autoencoder.scale, autoencoder.shift
        if fits != found:
            raise WeightsError("the autoencoder is not the network's: latent channels, factor, scale and shift are "
                               f"{found} instead of {fits}. Take that of Stable Diffusion 2.1 base")
        example = next(network.parameters())
        self.domains, self.device, self.dtype = self.config.domains, example.device, example.dtype

    @classmethod
    def from_pretrained(cls, ref: str | os.PathLike, base: str | os.PathLike, *, device=None,
                        dtype: torch.dtype | None = None) -> "JointNetPipeline":
        """A pipeline from files.

        ref: a folder in the published layout, or a file made by `convert`. base: the folder of Stable Diffusion 2.1
        base, with `vae`, `text_encoder`, `tokenizer`. device, dtype: see `calls.place_of`. WeightsError for files that
        do not fit, such as those of the 768-pixel model, which predicts velocity.
        """
        place, base = place_of(device, dtype), Path(base)
        refuse_velocity(base)
        if not (base / "vae").is_dir():
            raise WeightsError(f"{base} has no folder vae: give the folder of Stable Diffusion 2.1 base")
        return cls(load_jointnet(ref, **place), load_kl(base / "vae", **place), partial(load_clip_text, base, **place))

    @cached_property
    def text_encoder(self) -> ClipText:
        if self._load_text_encoder is None:
            raise ValueError("this pipeline has no text encoder: give it text features at `sample`")
        encoder = self._load_text_encoder()
        if encoder.width != self.config.text_width:
            raise WeightsError(f"the network reads text features of width {self.config.text_width}, the text encoder "
                               f"makes {encoder.width}: they do not belong together")
        return encoder

    def __call__(self, prompt: str | Sequence[str] = "", *, pictures: dict | None = None, masks: dict | None = None,
                 generate: Sequence[str] | None = None, negative_prompt: str = "", height: int | None = None,
                 width: int | None = None, how: Sampling = Sampling(), seed: int | None = None, count: int = 1,
                 any_unknown: bool = False, callback: Callback | None = None) -> JointNetResult:
        """Generate what is not given.

        pictures    domain -> picture: path, PIL picture, or float tensor (B, 3, H, W) in [0, 1], of the size made
        masks       domain -> mask over its picture, likewise, (B, 1, H, W); from 0.5 on it is made anew. A picture
                    without a mask is given as a whole: that is a conversion from it
        generate    domains wanted; default: all that are not given as a whole. Others that are not given are ignored
        height, width   in pixels; default: those of the pictures, else of the training
        how         steps, strength, guidance, windows
        seed        of all noise, drawn on the CPU, so that it means the same everywhere, and of moved windows
        count       results per prompt and picture;  any_unknown: see `latent_mask`
        callback    (step, steps, x, x0) after each step; stops the run by raising

        ValueError for unknown domains, nothing to generate, sizes and batches that do not agree, and a strength below
        1 for a domain without a picture, which would start from black.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        pictures = {name: load_picture(picture).clamp(0, 1) for name, picture in (pictures or {}).items()}
        masks = {name: load_picture(mask)[:, :1] for name, mask in (masks or {}).items()}
        size = self.size(height, width, pictures, masks)
        cells = {name: latent_mask(mask, self.config.latent_factor, any_unknown) for name, mask in masks.items()}
        roles = self.roles(pictures, cells, generate)
        bare = [roles.active_names[slot] for slot in roles.generated_slots
                if roles.active_names[slot] not in pictures]
        if how.strength < 1 and bare:
            raise ValueError(f"strength {how.strength} starts from pictures, but {', '.join(bare)} has none: use "
                             "strength 1, or give one")
        rows = rows_of(prompts, pictures | {f"masks of {name}": mask for name, mask in cells.items()})
        if count < 1:
            raise ValueError(f"count {count} must be at least 1")
        seed = SystemRandom().getrandbits(32) if seed is None else seed
        if how.tiling is not None and how.offsets is None:
            how = replace(how, offsets=how.tiling.offsets(len(how.timesteps), seed))
        generator = seeded(seed)
        known = self.encode(roles, pictures, cells, size, generator).for_rows(rows * count) if pictures else None
        noise_BCDHW = roles.keep_active(self.draw(rows * count, len(self.domains), size, generator))
        text_TMC = self.encode_text(prompts, negative_prompt, how.guidance)
        latent_BCDHW = sample(self.network, noise_BCDHW.to(self.device), text_TMC, roles, how, known, callback)
        decoded = self.decode(latent_BCDHW, roles, wrap=how.tiling is not None and how.tiling.wrap)
        return JointNetResult({name: finish(name, picture) for name, picture in decoded.items()}, latent_BCDHW, roles,
                              seed)

    def size(self, height: int | None, width: int | None, pictures: dict[str, Tensor],
             masks: dict[str, Tensor]) -> tuple[int, int]:
        """(height, width) in pixels of all pictures and masks, or a ValueError that names the odd one."""
        sizes = {name: tuple(picture.shape[-2:]) for name, picture in pictures.items()}
        sizes |= {f"the mask of {name}": tuple(mask.shape[-2:]) for name, mask in masks.items()}
        side = self.config.sample_size * self.config.latent_factor
        if height is None and width is None:
            height, width = next(iter(sizes.values()), (side, side))
        if height is None or width is None:
            raise ValueError("give both height and width, or neither")
        odd = [f"{name} is {h}x{w}" for name, (h, w) in sizes.items() if (h, w) != (height, width)]
        if odd:
            raise ValueError(f"{', '.join(odd)}, but the result is {height}x{width} (height x width): bring all to "
                             "one size first")
        if min(height, width) < 1 or height % self.config.latent_factor or width % self.config.latent_factor:
            raise ValueError(f"the size {height}x{width} must be a multiple of {self.config.latent_factor} pixels")
        return height, width

    def roles(self, pictures: dict, cells: dict[str, Tensor], generate: Sequence[str] | None) -> JointRoles:
        """A picture without a mask, or with one that leaves nothing to make, is a condition."""
        loose = [name for name in cells if name not in pictures]
        if loose:
            raise ValueError(f"the mask of {', '.join(loose)} has no picture to lie over")
        given = [name for name in pictures if name not in cells or not cells[name].any()]
        if generate is None:
            generate = [name for name in self.domains if name not in given]
        return JointRoles.of(self.domains, generate, given).require_work()

    def draw(self, rows: int, domains: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Noise (rows, C, domains, h, w) in one draw, the picture's channels first (spec 1.8). size: in pixels."""
        height, width = (side // self.config.latent_factor for side in size)
        return torch.randn(rows, domains, self.config.in_channels, height, width, generator=generator).transpose(1, 2)

    @torch.no_grad()
    def encode(self, roles: JointRoles, pictures: dict[str, Tensor], cells: dict[str, Tensor], size: tuple[int, int],
               generator: torch.Generator) -> Known:
        """Sampled clean latents, and masks, of the active domains; a domain without a picture is all unknown.

        pictures: (B or 1, 3, H, W) in [0, 1]. cells: masks at latent size, for those that are not given as a whole.
        The noise of the samples is drawn for every domain of the model, so that a seed keeps its meaning.
        """
        rows = max(len(part) for part in (*pictures.values(), *cells.values()))
        noise_BCLHW = torch.cat([self.draw(rows, 1, size, generator) for _ in self.domains], dim=2)
        clean_BCLHW, mask_B1LHW = torch.zeros_like(noise_BCLHW), torch.ones_like(noise_BCLHW[:, :1])
        for i, name in enumerate(self.domains):
            if name in pictures:
                picture_B3HW = pictures[name].expand(rows, -1, -1, -1) * 2 - 1
                latent_BCHW = self.autoencoder.encode(picture_B3HW, noise_BCLHW[:, :, i])
                clean_BCLHW[:, :, i] = latent_BCHW * self.config.latent_scale
                mask_B1LHW[:, :, i] = cells.get(name, 0.0)
        return Known(*(roles.keep_active(part).to(self.device) for part in (clean_BCLHW, mask_B1LHW)))

    def encode_text(self, prompts: Sequence[str], negative_prompt: str = "", guidance: float = 1.0) -> Tensor:
        """Features (T, 77, width) of the prompts, with guidance above 1 after those of the negative prompt."""
        features_PMC = self.text_encoder.encode(prompts)
        if guidance > 1:
            negative_1MC = self.text_encoder.encode([negative_prompt])
            features_PMC = torch.cat([negative_1MC.expand_as(features_PMC), features_PMC])
        return features_PMC.to(self.device, self.dtype)

    @torch.no_grad()
    def decode(self, latent_BCDHW: Tensor, roles: JointRoles, wrap: bool = False) -> dict[str, Tensor]:
        """Generated domains -> (B, 3, H, W) in about [-1, 1]. wrap: the right edge goes on at the left one."""
        roles.check_latent(latent_BCDHW)
        beside = min(WRAPPED, latent_BCDHW.shape[-1]) if wrap else 0
        cut, factor = beside * self.config.latent_factor, self.config.latent_factor
        decoded = {}
        for slot in roles.generated_slots:
            latent_BCHW = latent_BCDHW[:, :, slot] / self.config.latent_scale
            latent_BCHW = F.pad(latent_BCHW, (beside, beside, 0, 0), mode="circular") if wrap else latent_BCHW
            picture_B3HW = in_parts(self.autoencoder.decode, latent_BCHW, factor).float()
            decoded[roles.active_names[slot]] = picture_B3HW[..., cut:picture_B3HW.shape[-1] - cut]
        return decoded
