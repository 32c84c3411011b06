"""Texts by masked diffusion inside the host: its memory, its progress bar, its interrupt, a draft under the node."""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import comfy.utils
import torch

from ...jodi_core.dual_diffusion.pictures import TRAINED_SIDE, look_square
from ...jodi_core.dual_diffusion.text_sampling import Network, TextOptions
from ...jodi_core.dual_diffusion.words import Words
from ...jodi_core.dual_diffusion.writing import score_texts, write_texts
from .dual_diffusion import DualDiffusionModel
from .dual_diffusion_text import DualDiffusionTokenizer

ROWS_AT_ONCE = 8    # texts
TABLES = 6          # of (blanks, vocabulary) that a step has in memory
Tell = Callable[[list[str]], None]


@dataclass(frozen=True)
class Writer:
    """MODEL, CLIP and VAE of a Dual Diffusion model, and how it looks at pictures.

    side: in pixels, 0 for that of the model; crop: see `fitting.Fit`. tell: gets the drafts of the texts at work after
    each step.
    """

    model: object
    clip: object
    vae: object
    side: int = 0
    crop: str = "crop"
    tell: Tell | None = None

    def __post_init__(self):
        if not isinstance(self.model.model, DualDiffusionModel):
            raise ValueError("this MODEL writes no text: connect that of Load Dual Diffusion")
        if self.clip is None or not isinstance(self.clip.tokenizer, DualDiffusionTokenizer):
            raise ValueError("this CLIP is no T5 with the tokenizer of Dual Diffusion: connect that of Load Dual "
                             "Diffusion")
        if self.words.mask_id != self.config.mask_id:
            raise ValueError(f"this CLIP has {self.words.mask_id + 1} tokens and the model {self.config.vocab_size}: "
                             "connect both outputs of the same Load Dual Diffusion")
        unit = self.factor * self.config.patch_size
        if self.side % unit or not 0 <= self.side <= unit * self.config.pos_embed_max_size:
            raise ValueError(f"resolution {self.side} must be a multiple of {unit} up to "
                             f"{unit * self.config.pos_embed_max_size}, or 0 for that of the model")

    @property
    def config(self):
        return self.model.model.diffusion_model.config

    @property
    def factor(self) -> int:
        """Pixels per cell of a latent and side."""
        return self.vae.spacial_compression_encode()

    @property
    def words(self) -> Words:
        return self.clip.tokenizer.words

    def latents(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w), scaled."""
        side = self.side or min(TRAINED_SIDE, self.factor * self.config.sample_size)
        square_B3HW = look_square(image_BHWC[..., :3].movedim(-1, 1), side, self.crop)
        return self.model.model.process_latent_in(self.vae.encode((square_B3HW.movedim(1, -1) + 1) / 2))

    def network(self, latents_BChw: torch.Tensor, places: int) -> Network:
        """What the text sampler calls, with transformer and T5 loaded; places: of the texts that it will see."""
        tables = 4 * TABLES * places * self.config.vocab_size
        comfy.model_management.load_models_gpu([self.model, self.clip.patcher], memory_required=tables +
                                               self.model.memory_required(latents_BChw.shape))
        network, device = self.model.model.diffusion_model, self.model.load_device
        where = {"device": device, "dtype": self.model.model.get_dtype_inference()}
        seen = network.look(latents_BChw.to(**where))

        def logits(rows, ids_RL, places_RL):
            states_RLE = self.clip.cond_stage_model.states(ids_RL, self.clip.patcher.load_device)
            return network.text_logits(seen.rows(rows), states_RLE.to(**where), places_RL)
        return logits

    def write(self, image_BHWC: torch.Tensor, start: list[int], seed: int, steps: int, samples: int = 1,
              options: TextOptions = TextOptions()) -> list[list[int]]:
        """Token numbers for each picture from a start with blanks; arguments as for `write_texts`."""
        parts = self.latents(image_BHWC).split(max(1, ROWS_AT_ONCE // samples))
        bar, written = comfy.utils.ProgressBar(steps * len(parts)), []
        for number, part_RChw in enumerate(parts):
            def report(step, steps, ids_RL, number=number):
                comfy.model_management.throw_exception_if_processing_interrupted()
                bar.update_absolute(number * steps + step)
                if self.tell:
                    self.tell([self.draft(ids) for ids in ids_RL.tolist()])
            rows = len(part_RChw)
            written += write_texts(
                self.network(part_RChw, rows * samples * len(start)), torch.tensor([start] * rows),
                seed=(seed + samples * len(written)) % 2 ** 64, steps=steps, mask_id=self.words.mask_id,
                end_id=self.words.end_id, samples=samples, options=options, callback=report).tolist()
        bar.update_absolute(bar.total)
        return written

    def scores(self, image_BHWC: torch.Tensor, text: str, length: int) -> list[float]:
        """How badly a text fits each picture, see `score_texts`."""
        ids_1L, scores = torch.tensor([self.words.whole(text, length)]), []
        for part_RChw in self.latents(image_BHWC).split(ROWS_AT_ONCE):
            comfy.model_management.throw_exception_if_processing_interrupted()
            ids_RL = ids_1L.expand(len(part_RChw), -1)
            scores += score_texts(self.network(part_RChw, ids_RL.numel()), ids_RL, torch.ones_like(ids_RL),
                                  self.words.mask_id).tolist()
        return scores

    def draft(self, ids: list[int]) -> str:
        """A text with a line in place of each blank."""
        blank = self.words.tokenizer.convert_ids_to_tokens(self.words.mask_id)
        return self.words.text(ids).replace(blank, " _")
