"""The whole way in one call: pictures and prompt in, a picture per generated domain out.

`JodiPipeline.__call__` is for users. Its stages (`encode_conditions`, `encode_text`, `sample`, `decode`) can be called
one by one where text features or noise come from elsewhere; each of them is exact, not an approximation: ignored
domains never exist, the image as a condition needs neither text nor guidance, and what several pictures of one prompt
share is computed once.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from random import SystemRandom

import torch
from torch import Tensor

from .calls import in_parts, place_of, rows_of, seeded
from .domains import JointRoles, nearest_bin
from .files import WeightsError
from .fitting import fit, resize
from .models.dcae import DCAE
from .models.jodi import JodiTransformer
from .pictures import load_picture, postprocess
from .published import PUBLISHED
from .sampling import Callback, flow_timesteps, guided, sample_flow_dpm
from .text import GemmaText, clean_prompt
from .weights import load_autoencoder, load_text, load_transformer

GENERATE_DEFAULTS = {"steps": 20, "guidance": 4.5}
PERCEIVE_DEFAULTS = {"steps": 10, "guidance": 1.0}


@dataclass(frozen=True)
class TextFeatures:
    """Captions as the transformer takes them: T = branches * prompts rows, unconditional ones first."""

    features_TMC: Tensor
    mask_PM: Tensor | None  # of the prompts, for both branches; None if all tokens are valid
    branches: int


@dataclass(frozen=True)
class JodiResult:
    """pictures: generated domain -> (n, 3, H, W) float32 in [0, 1], post-processed, samples prompt by prompt.

    latent_BCDHW: joint latent of the active domains, scaled as the transformer sees it; roles say which they are.
    """

    pictures: dict[str, Tensor]
    latent_BCDHW: Tensor
    roles: JointRoles
    seed: int


class JodiPipeline:
    """transformer and autoencoder on one device; `load_text_encoder` is called when a prompt first needs it."""

    def __init__(self, transformer: JodiTransformer, autoencoder: DCAE,
                 load_text_encoder: Callable[[], GemmaText] | None = None):
        channels, latent_channels = transformer.config.in_channels, autoencoder.config.latent_channels
        if channels != latent_channels:
            raise WeightsError(f"the transformer works on {channels} latent channels, the autoencoder makes "
                               f"{latent_channels}: they do not belong together")
        self.transformer, self.autoencoder, self._load_text_encoder = transformer, autoencoder, load_text_encoder
        self.config, self.domains = transformer.config, transformer.config.domains
        example = transformer.domain_embedding.weight
        self.device, self.dtype = example.device, example.dtype

    @classmethod
    def from_pretrained(cls, ref: str | os.PathLike = "tiny", *, autoencoder=None, text_encoder=None, device=None,
                        dtype: torch.dtype | None = None) -> "JodiPipeline":
        """A pipeline from files.

        ref: "tiny" (comes with the package), a folder in bundle layout, or a transformer file (path or hf://). For a
        single file the published autoencoder and text encoder are taken unless others are given. device: default the
        GPU if there is one. dtype: default bfloat16 on a GPU, float32 elsewhere. The text encoder is loaded (and
        fetched) at the first prompt. WeightsError for files that do not fit.
        """
        bundle = str(ref) == "tiny" or os.path.isdir(ref)
        place = place_of(device, dtype)
        text_encoder = text_encoder or (ref if bundle else PUBLISHED["text_encoder"])
        return cls(load_transformer(ref, **place),
                   load_autoencoder(autoencoder or (ref if bundle else PUBLISHED["autoencoder"]), **place),
                   partial(load_text, text_encoder, **place))

    @cached_property
    def text_encoder(self) -> GemmaText:
        if self._load_text_encoder is None:
            raise ValueError("this pipeline has no text encoder: only perception (image as a condition) works")
        encoder = self._load_text_encoder()
        if encoder.config.hidden_size != self.config.caption_channels:
            raise WeightsError(f"the transformer reads text features of width {self.config.caption_channels}, the text "
                               f"encoder makes {encoder.config.hidden_size}: they do not belong together")
        return encoder

    def __call__(self, prompt: str | Sequence[str] = "", *, conditions: dict | None = None,
                 generate: Sequence[str] | None = None, negative_prompt: str = "", height: int | None = None,
                 width: int | None = None, steps: int | None = None, guidance: float | None = None,
                 seed: int | None = None, count: int = 1, exact_time: bool = False,
                 callback: Callback | None = None) -> JodiResult:
        """Generate pictures.

        conditions  domain -> picture: path, PIL picture, or float tensor (B, 3, H, W) in [0, 1]
        generate    domains wanted; default: all that are not given when the image is given (perception), the image
                    when labels are given (control), all of them otherwise (joint generation)
        height, width   of the result in pixels; default: the size bin closest to the first condition, else square.
                    Sampling runs at the closest size bin, other sizes are stretched from it.
        steps, guidance   default 20 and 4.5, for perception 10 and 1
        count       pictures per prompt; several prompts, or conditions of batch size B, make count pictures each
        seed        of the noise, drawn on the CPU so that it means the same everywhere; default a new one
        exact_time  tell the model the time in float32; the published pipeline rounds it to its own dtype first
        callback    (step, steps, x, x0) after each step; stops the run by raising

        ValueError for unknown domains, nothing to generate, sizes or batch sizes that cannot be.
        """
        pictures = self._load_conditions(conditions or {})
        roles = JointRoles.of(self.domains, self._default_generate(pictures) if generate is None else generate,
                              tuple(pictures)).require_work()
        defaults = PERCEIVE_DEFAULTS if roles.image_given else GENERATE_DEFAULTS
        steps = defaults["steps"] if steps is None else steps
        guidance = defaults["guidance"] if guidance is None else guidance
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        rows = rows_of(prompts, pictures)
        if count < 1 or steps < 1:
            raise ValueError(f"count {count} and steps {steps} must be at least 1")
        size = self._size(height, width, pictures)
        size_bin = nearest_bin(*size, self.config.bins)
        seed = SystemRandom().getrandbits(32) if seed is None else seed
        noise_BLCHW = self.noise(rows * count, size_bin, seed)
        text = None if roles.image_given else self.encode_text(prompts, negative_prompt, guidance)
        clean_BCDHW = self.encode_conditions(roles, pictures, size_bin)
        latent_BCDHW = self.sample(noise_BLCHW, roles, clean_BCDHW, text, steps=steps, guidance=guidance,
                                   exact_time=exact_time, callback=callback)
        decoded = self.decode(latent_BCDHW, roles, size)
        return JodiResult({name: postprocess(name, picture) for name, picture in decoded.items()},
                          latent_BCDHW, roles, seed)

    def _load_conditions(self, conditions: dict) -> dict[str, Tensor]:
        missing = [name for name, picture in conditions.items() if picture is None]
        if missing:
            raise ValueError(f"{', '.join(missing)}: a condition needs a picture")
        return {name: load_picture(picture) for name, picture in conditions.items()}

    def _default_generate(self, given) -> tuple[str, ...]:
        image = self.domains[0]
        if given and image not in given:
            return (image,)
        return tuple(name for name in self.domains if name not in given)

    def _size(self, height, width, pictures) -> tuple[int, int]:
        if (height is None) != (width is None):
            raise ValueError("give both height and width, or neither")
        if height is not None:
            if height < 1 or width < 1:
                raise ValueError(f"the size {height}x{width} must be at least one pixel")
            return height, width
        shape = next((tuple(picture.shape[-2:]) for picture in pictures.values()), (1, 1))
        return nearest_bin(*shape, self.config.bins)

    def noise(self, rows: int, size: tuple[int, int], seed: int) -> Tensor:
        """Initial noise (rows, L, C, h, w) for *all* domains of the model, whatever their roles: a seed then means
        the same noise for a domain whichever others take part. size: (height, width) of a bin in pixels."""
        factor = self.autoencoder.config.factor
        shape = rows, len(self.domains), self.config.in_channels, size[0] // factor, size[1] // factor
        return torch.randn(shape, generator=seeded(seed))

    def encode_text(self, prompts: Sequence[str], negative_prompt: str = "", guidance: float = 1.0) -> TextFeatures:
        """Features of the prompts and, for guidance other than 1, of the unconditional branch (spec 4).

        That branch has as many rows as the prompt has valid ones: of the stored empty caption, or of the negative
        prompt, which is forgotten after the call.
        """
        features_PMC, lengths_P = self.text_encoder.encode([clean_prompt(prompt) for prompt in prompts])
        length = features_PMC.shape[1]
        mask_PM = torch.arange(length) < lengths_P[:, None].cpu()
        mask_PM = None if mask_PM.all() else mask_PM.to(self.device)
        if guidance == 1:
            return TextFeatures(features_PMC, mask_PM, 1)
        if clean_prompt(negative_prompt):
            null_1MC = self.text_encoder.encode_negative([clean_prompt(negative_prompt)], rows=length)
        else:
            null_1MC = self.transformer.y_embedder.y_embedding[None, :length].to(features_PMC)
        return TextFeatures(torch.cat([null_1MC.expand_as(features_PMC), features_PMC]), mask_PM, 2)

    @torch.no_grad()
    def encode_conditions(self, roles: JointRoles, pictures: dict[str, Tensor], size: tuple[int, int]) -> Tensor | None:
        """Clean latents (B, C, D, h, w), zeros in generated slots; None without conditions.

        pictures: domain -> (B or 1, 3, H, W) in [0, 1], fitted to the size bin (height, width).
        """
        if not pictures:
            return None
        example = next(self.autoencoder.parameters())
        latents = {}
        for name, picture in pictures.items():
            fitted = fit(picture * 2 - 1, size).to(example)
            latents[name] = in_parts(self.autoencoder.encode, fitted) * self.config.latent_scale
        rows = max(len(latent) for latent in latents.values())
        empty = torch.zeros_like(next(iter(latents.values()))[:1])
        return torch.stack([latents.get(name, empty).expand(rows, -1, -1, -1) for name in roles.active_names], dim=2)

    @torch.no_grad()
    def sample(self, noise_BLCHW: Tensor, roles: JointRoles, clean_BCDHW: Tensor | None = None,
               text: TextFeatures | None = None, *, steps: int, guidance: float = 1.0, exact_time: bool = False,
               callback: Callback | None = None) -> Tensor:
        """Joint latent (B, C, D, h, w) float32 from noise over all domains; condition slots hold their clean latents.

        B is a multiple of the rows of clean latents and of prompts; each serves B / rows neighbours. text may be None
        when the image is given. guidance acts if text has two branches.
        """
        rows = len(noise_BLCHW)
        x_BCDHW = roles.keep_active(noise_BLCHW.transpose(1, 2)).to(self.device)
        if clean_BCDHW is not None and len(clean_BCDHW) > 1:
            clean_BCDHW = clean_BCDHW.repeat_interleave(rows // len(clean_BCDHW), dim=0)
        features, mask, branches = (text.features_TMC, text.mask_PM, text.branches) if text else (None, None, 1)
        context = self.transformer.prepare(features, mask, roles, clean_BCDHW, branches=branches,
                                           exact_time=exact_time, dtype=self.dtype)

        def velocity(x, t):
            return self.transformer.velocity(x.to(self.dtype), (1000 * t)[None].to(x.device, torch.float32), context)

        latent_BCDHW = sample_flow_dpm(guided(velocity, guidance) if context.branches == 2 else velocity, x_BCDHW,
                                       flow_timesteps(steps, self.config.flow_shift), callback)
        for slot in roles.condition_slots:
            latent_BCDHW[:, :, slot] = clean_BCDHW[:, :, slot]
        return latent_BCDHW

    @torch.no_grad()
    def decode(self, latent_BCDHW: Tensor, roles: JointRoles, size: tuple[int, int]) -> dict[str, Tensor]:
        """Generated domains -> (B, 3, H, W) in [-1, 1], stretched to size (height, width)."""
        roles.check_latent(latent_BCDHW)
        example = next(self.autoencoder.parameters())
        latent_BCDHW = latent_BCDHW.to(example) / self.config.latent_scale
        return {roles.active_names[slot]:
                resize(in_parts(self.autoencoder.decode, latent_BCDHW[:, :, slot], self.autoencoder.config.factor)
                       .float(), size).clamp(-1, 1)
                for slot in roles.generated_slots}
