"""CLIP: the host's T5 v1.1 encoder, of any size, behind the tokenizer of a Dual Diffusion model."""

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy import sd1_clip
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders.sd3_clip import T5XXLModel
from comfy.text_encoders.t5 import T5

from ...jodi_core.dual_diffusion.config import DualDiffusionConfig
from ...jodi_core.dual_diffusion.t5 import T5Sizes
from ...jodi_core.dual_diffusion.weights import load_words, read_t5
from ...jodi_core.dual_diffusion.words import Words
from ...jodi_core.files import WeightsError
from ...jodi_core.weights import check_keys
from .version import require

NAME = "t5xxl"    # under which the host looks for the sizes of a model


class DualDiffusionTokenizer:
    """Prompt -> token numbers in the host's form. Weights in parentheses and embeddings have no meaning here.

    tokenizer_data: "words", of the model.
    """

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        self.words: Words = tokenizer_data["words"]

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, length: int | None = None,
                              pad_id: int | None = None, **kwargs) -> dict:
        """`length` places, those behind the text filled with pad_id. None: as the model was trained."""
        ids = self.words.prompt(text, length or self.words.longest, pad_id)
        return {NAME: [[(token, 1.0) for token in ids]]}

    def state_dict(self) -> dict:
        return {}


class DualDiffusionText(sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, name=NAME, clip_model=T5XXLModel, model_options=model_options)

    def encode_token_weights(self, tokens: dict) -> tuple:
        """(states (B, L, width) float32, no pooled output). ValueError for no text at all (CLIPTextEncodeSD3)."""
        if not tokens[NAME]:
            raise ValueError("this text encoder is a T5 alone, and got no text: use Dual Diffusion Text Encode")
        ids_BL = torch.tensor([[token for token, _ in row] for row in tokens[NAME]])
        return self.states(ids_BL, self.t5xxl.execution_device).float().to(
            comfy.model_management.intermediate_device()), None

    def states(self, ids_BL: torch.Tensor, device: torch.device) -> torch.Tensor:
        """(B, L) token numbers -> (B, L, width), without any attention mask."""
        return self.t5xxl.transformer(ids_BL.to(device), None, dtype=self.compute_dtype(device))[0]

    def compute_dtype(self, device: torch.device) -> torch.dtype:
        """bfloat16 if the file holds it, or less; float16 has not the range for T5 and is computed in float32."""
        stored = self.t5xxl.transformer.dtype
        narrow = stored not in (torch.float16, torch.float32) and comfy.model_management.should_use_bf16(device)
        return torch.bfloat16 if narrow else torch.float32


def load_t5_clip(path: str, words_path: str, config: DualDiffusionConfig, mask_embedding: str | None = None,
                 disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """CLIP from the folder of a model or a T5 file.

    words_path: where the tokenizer is looked for, see `load_words`; mask_embedding: see `read_t5`. WeightsError for a
    text encoder or a tokenizer that does not belong to a transformer of this configuration.
    """
    require("CLIP of Dual Diffusion")
    words, tensors = load_words(words_path, config), read_t5(path, config, mask_embedding)
    try:
        sizes = t5_settings({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    expected = T5(sizes, None, torch.device("meta"), comfy.ops.manual_cast).state_dict()
    check_keys(*({name: tuple(tensor.shape) for name, tensor in part.items()} for part in (expected, tensors)), path)
    clip = comfy.sd.CLIP(
        ClipTarget(DualDiffusionTokenizer, DualDiffusionText), parameters=comfy.utils.calculate_parameters(tensors),
        tokenizer_data={"words": words}, state_dict=[tensors], disable_dynamic=disable_dynamic,
        # As stored: the host's default of float16 would cost bf16 weights their range.
        model_options={f"{NAME}_model_config": sizes, "dtype": comfy.utils.weight_dtype(tensors)})
    clip.patcher.set_model_compute_dtype(clip.cond_stage_model.compute_dtype(clip.patcher.load_device))
    clip.patcher.cached_patcher_init = (reload_patcher, (path, words_path, config, mask_embedding))
    return clip


def reload_patcher(*arguments, disable_dynamic: bool = False):
    """A patcher with weights of its own, for the host's clones."""
    return load_t5_clip(*arguments, disable_dynamic=disable_dynamic).patcher


def t5_settings(shapes: dict[str, tuple[int, ...]]) -> dict:
    """The host's settings of a T5 with tensors of these shapes. ValueError if they are not those of a T5 v1.1."""
    return vars(T5Sizes.from_state_dict(shapes)) | {
        "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "t5"}
