"""The whole way in one call, for Python users: pictures from prompts, and texts from pictures.

    pipe = DualDiffusionPipeline.from_pretrained("dual_diff_sd3_512_base")
    picture = pipe("a red house beside a lake", seed=7).pictures["image"]
    text, = pipe.caption(picture)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import SystemRandom

import torch
from torch import Tensor

from ..autoencoders import DeepAutoencoder, open_autoencoder
from ..calls import in_parts, place_of, seeded
from ..domains import JointRoles
from ..files import WeightsError, locate
from ..fitting import CROP
from ..kl import KLAutoencoder
from ..pictures import load_picture
from .network import DualDiffusionTransformer
from .picture_sampling import noise_levels, sample_picture
from .pictures import TRAINED_SIDE, look_square
from .roles import IMAGE, TEXT, TEXT_FROM_PICTURE, roles_of
from .t5 import T5States
from .text_sampling import Network
from .weights import component, load_t5, load_transformer, load_words, read_shift
from .words import ANSWER_LENGTH, Words, question_prompt
from .writing import score_texts, write_texts



@dataclass(frozen=True)
class DualDiffusionResult:
    """pictures: {"image": (n, 3, H, W) float32 in [0, 1]}, prompt by prompt; or texts: one per given picture."""

    roles: JointRoles
    seed: int
    pictures: dict[str, Tensor] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)


class DualDiffusionPipeline:
    """All parts on one device. shift: of the noise levels of pictures."""

    def __init__(self, network: DualDiffusionTransformer, t5: T5States, words: Words,
                 autoencoder: KLAutoencoder | DeepAutoencoder, shift: float = 3.0):
        if autoencoder.channels != network.config.in_channels:
            raise WeightsError(f"the transformer works on {network.config.in_channels} latent channels, the "
                               f"autoencoder makes {autoencoder.channels}: they do not belong together")
        self.network, self.t5, self.words, self.autoencoder, self.shift = network, t5, words, autoencoder, shift
        self.config = network.config
        self.dtype = network.null_image_embd.dtype
        self.side = min(TRAINED_SIDE, self.config.sample_size * autoencoder.factor)

    @classmethod
    def from_pretrained(cls, ref, *, text_encoder=None, autoencoder=None, tokenizer=None, mask_embedding=None,
                        device=None, dtype: torch.dtype | None = None) -> "DualDiffusionPipeline":
        """A pipeline from files.

        ref: the folder of a published model, or a transformer file, to which text_encoder and autoencoder (folders or
        files, or "tiny" for that of the tiny Jodi) must be named. tokenizer: its folder; default that of the model's
        folder, else the vocabulary of T5 v1.1.
        mask_embedding: see `read_t5`. device: default the GPU if there is one. dtype: default bfloat16 on a GPU,
        float32 elsewhere; beside float16 the T5 is bfloat16, as it would overflow. WeightsError for files that do not
        fit.
        """
        root = locate(ref)
        parts = {"text_encoder": text_encoder or component(root, "text_encoder"),
                 "autoencoder": autoencoder or component(root, "vae")}
        absent = [name for name, part in parts.items() if part == root]
        if absent:
            raise WeightsError(f"{root} has no {' and no '.join(absent)}: name their files, or give the folder of a "
                               "whole model")
        place = place_of(device, dtype)
        network = load_transformer(root, **place)
        words = load_words(root, network.config, tokenizer)
        t5_dtype = torch.bfloat16 if place["dtype"] == torch.float16 else place["dtype"]
        t5 = load_t5(parts["text_encoder"], network.config, mask_embedding, device=place["device"], dtype=t5_dtype)
        return cls(network, t5, words, open_autoencoder(parts["autoencoder"], **place), read_shift(root))

    @torch.no_grad()
    def __call__(self, prompt: str | Sequence[str] = "", *, conditions: dict | None = None,
                 generate: Sequence[str] | None = None, negative_prompt: str = "", height: int | None = None,
                 width: int | None = None, steps: int | None = None, guidance: float = 7.0, seed: int | None = None,
                 count: int = 1, callback: Callable | None = None) -> DualDiffusionResult:
        """A picture from a text, or with conditions={"image": picture} a text about the picture.

        prompt          what to show; or how the text begins
        count           pictures of each prompt; texts of each picture, of which the one that fits best is returned
        generate        ("image",) or ("text",); default: what is not given
        height, width   in pixels; default the side that the model was trained on. Others give worse pictures.
        steps           default 28, for a text 128
        guidance        1 for none
        seed            drawn on the CPU so that it means the same everywhere; default a new one
        callback        see `sampling`, for a text `text_sampling`

        ValueError for roles or sizes that the network cannot have, no prompt, steps or count below 1.
        """
        conditions = conditions or {}
        if conditions.keys() - {IMAGE}:
            raise ValueError(f"conditions {', '.join(conditions)}: only the image can be one; the text is the prompt")
        roles = roles_of(generate or ([TEXT] if conditions else [IMAGE]), bool(conditions))
        seed = SystemRandom().getrandbits(32) if seed is None else seed
        if roles == TEXT_FROM_PICTURE:
            texts = self.caption(conditions[IMAGE], prompt, steps=128 if steps is None else steps, seed=seed,
                                 samples=count, callback=callback)
            return DualDiffusionResult(roles, seed, texts=texts)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if count < 1 or not prompts:
            raise ValueError(f"count {count} must be at least 1, and so must the number of prompts, {len(prompts)}")
        noise_BCHW = self.noise(len(prompts) * count, height or self.side, width or self.side, seed)
        levels = noise_levels(28 if steps is None else steps, self.shift)
        states = self.prompt_states(prompts).repeat_interleave(count, dim=0)
        if guidance != 1:
            states = torch.cat([self.prompt_states([negative_prompt]).expand_as(states), states])
        latent_BCHW = sample_picture(self.network, noise_BCHW, states, levels, guidance=guidance, callback=callback)
        return DualDiffusionResult(roles, seed, {IMAGE: self.decode(latent_BCHW)})

    def noise(self, rows: int, height: int, width: int, seed: int) -> Tensor:
        """(rows, C, h, w) for pictures of a size in pixels. ValueError for a size or a seed that cannot be."""
        unit = self.autoencoder.factor * self.config.patch_size
        largest = unit * self.config.pos_embed_max_size
        if height % unit or width % unit or not 0 < min(height, width) <= max(height, width) <= largest:
            raise ValueError(f"pictures of {width}x{height}: both sides must be multiples of {unit} from {unit} to "
                             f"{largest} pixels")
        size = height // self.autoencoder.factor, width // self.autoencoder.factor
        return torch.randn(rows, self.config.in_channels, *size, generator=seeded(seed))

    def prompt_states(self, prompts: list[str]) -> Tensor:
        """(B, L, width) T5 states of prompts."""
        ids = torch.tensor([self.words.prompt(prompt, self.words.longest) for prompt in prompts])
        return self.t5(ids).to(self.dtype)

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Scaled latents -> (B, 3, H, W) float32 in [0, 1]."""
        latent_BCHW = latent_BCHW / self.autoencoder.scale + self.autoencoder.shift
        return in_parts(self.autoencoder.decode, latent_BCHW, self.autoencoder.factor).float().add(1).div(2).clamp(0, 1)

    # ---- text from pictures -----------------------------------------------------------------------------------

    def caption(self, pictures, prompt: str = "", *, steps: int = 128, length: int | None = None,
                **settings) -> list[str]:
        """A text about each picture. The base model takes no prompt; the tuned one wants one of its form.

        pictures: anything that `load_picture` takes. length: in tokens; better left as the model was trained.
        settings: see `write`.
        """
        return self._continue(pictures, self.words.blanks(prompt, length or self.words.longest), steps, settings)

    def ask(self, pictures, question: str, style: str = "free", *, steps: int = 32, length: int | None = None,
            keep_end: bool = False, **settings) -> list[str]:
        """The answer of the tuned model about each picture; the base model ignores questions.

        style: see `words.ANSWER_STYLES`; keep_end: see `Words.blanks`; the others as for `caption`.
        """
        length = length or min(ANSWER_LENGTH, self.words.longest)
        start = self.words.blanks(question_prompt(question, style), length, keep_end)
        return self._continue(pictures, start, steps, settings)

    def _continue(self, pictures, start: list[int], steps: int, settings: dict) -> list[str]:
        given = start.index(self.words.mask_id)
        return [self.words.answer(ids, given) for ids in self.write(pictures, start, steps=steps, **settings)]

    def fill(self, pictures, text: str, *, steps: int = 128, length: int | None = None, **settings) -> list[str]:
        """The text with its blanks filled for each picture; {n} in it stands for n of them. See `caption`."""
        start = self.words.template(text, length or self.words.longest)
        return [self.words.text(ids) for ids in self.write(pictures, start, steps=steps, **settings)]

    def write(self, pictures, start: list[int], *, steps: int, seed: int | None = None, crop: str = CROP,
              **settings) -> list[list[int]]:
        """Token numbers for each picture from a start with blanks.

        seed: default a new one; crop: see `fitting.Fit`; settings: samples, options and callback of `write_texts`.
        """
        network, rows = self.text_network(pictures, crop)
        seed = SystemRandom().getrandbits(32) if seed is None else seed
        return write_texts(network, torch.tensor([start] * rows), seed=seed, steps=steps, mask_id=self.words.mask_id,
                           end_id=self.words.end_id, **settings).tolist()

    def score(self, pictures, text: str | Sequence[str], *, length: int | None = None, crop: str = CROP) -> list[float]:
        """How badly a text fits each picture; see `score_texts`. Several texts: one per picture."""
        network, rows = self.text_network(pictures, crop)
        texts = [text] * rows if isinstance(text, str) else list(text)
        if len(texts) != rows:
            raise ValueError(f"{len(texts)} texts for {rows} pictures: give one for each, or one for all")
        ids_BL = torch.tensor([self.words.whole(text, length or self.words.longest) for text in texts])
        return score_texts(network, ids_BL, torch.ones_like(ids_BL), self.words.mask_id).tolist()

    @torch.no_grad()
    def text_network(self, pictures, crop: str = CROP) -> tuple[Network, int]:
        """(what the text sampler calls, the number of pictures)."""
        seen = self.network.look(self.look(pictures, crop))

        def network(rows: Tensor, ids_RL: Tensor, places_RL: Tensor) -> Tensor:
            return self.network.text_logits(seen.rows(rows), self.t5(ids_RL).to(self.dtype), places_RL)
        return network, len(seen.tokens_BNC)

    @torch.no_grad()
    def look(self, pictures, crop: str = CROP) -> Tensor:
        """Scaled latents (B, C, h, w) of pictures, in the dtype of the network."""
        if pictures is None:
            raise ValueError("this needs a picture: text without one was never trained")
        square = look_square(load_picture(pictures), self.side, crop)
        latent_BCHW = in_parts(self.autoencoder.encode, square).float()
        latent_BCHW = (latent_BCHW - self.autoencoder.shift) * self.autoencoder.scale
        return latent_BCHW.to(self.network.null_image_embd)
