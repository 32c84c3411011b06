"""The text encoder of Stable Diffusion 2.1 base, by transformers, which is imported only when it is loaded."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..files import WeightsError

# Layers of the OpenCLIP ViT-H text tower. The features are those of the last layer but one; the published folder
# leaves the last one out.
WHOLE_TOWER = 24


class ClipText:
    """Prompts to features: all 77 tokens of the window, padding included, none masked (spec 1.8)."""

    def __init__(self, tokenizer, model: torch.nn.Module):
        self.tokenizer, self.model = tokenizer, model
        self.width = model.config.hidden_size

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """(P, 77, width). Longer prompts are cut."""
        tokens = self.tokenizer(list(prompts), padding="max_length", truncation=True,
                                max_length=self.model.config.max_position_embeddings, return_tensors="pt")
        return self.model(tokens.input_ids.to(self.model.device)).last_hidden_state    # after the final norm


def load_clip_text(base: str | os.PathLike, *, device=None, dtype: torch.dtype | None = None) -> ClipText:
    """From the folders `text_encoder` and `tokenizer` of a Stable Diffusion 2.1 base folder (or its name on the hub).

    WeightsError if they are not there.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    try:
        config = CLIPTextConfig.from_pretrained(base, subfolder="text_encoder")
        config.num_hidden_layers = min(config.num_hidden_layers, WHOLE_TOWER - 1)
        model = CLIPTextModel.from_pretrained(base, subfolder="text_encoder", config=config, dtype=dtype)
        return ClipText(CLIPTokenizer.from_pretrained(base, subfolder="tokenizer"), model.to(device).eval())
    except OSError as error:
        raise WeightsError(f"{base} has no usable text_encoder and tokenizer, as the folder of Stable Diffusion 2.1 "
                           f"base has them: {str(error).splitlines()[0]}") from error
