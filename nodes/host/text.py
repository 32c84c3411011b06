"""CLIP: Gemma-2 as a text encoder of the host, any size, with the instruction prefix of its file.

The host's own loader for such files ("pixeldit") knows one size and puts the prefix before negative prompts too.
"""

from pathlib import Path

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy import sd1_clip
from comfy.supported_models_base import ClipTarget
from comfy.text_encoders.llama import Gemma2_2B
from comfy.text_encoders.spiece_tokenizer import SPieceTokenizer

from ...jodi_core import weights
from ...jodi_core.text import BOS, PAD, TextConfig, clean_prompt, selected_positions
from ..joint import PLAIN, PlainReading
from .version import require

NAME = "gemma2_2b"    # under which the host looks for the sizes of a model


class JodiTokenizer:
    """Prompt -> two token lists: the published reading with prefix, and the plain one that negative prompts get.

    tokenizer_data: "config" TextConfig, "spiece_model" uint8 tensor with the serialised sentencepiece model.
    """

    def __init__(self, embedding_directory=None, tokenizer_data={}):
        self.config: TextConfig = tokenizer_data["config"]
        self.pieces = SPieceTokenizer(tokenizer_data["spiece_model"], add_bos=True, add_eos=False)
        prefix_tokens = len(self.numbers(self.config.prefix)) if self.config.prefix else 0
        self.places = selected_positions(prefix_tokens, self.config.max_length)

    def numbers(self, text: str) -> list[int]:
        return self.pieces(text)["input_ids"]

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, unconditional: bool = True,
                              **kwargs) -> dict:
        """Token lists in the host's form, and the positions whose features count. Weights are not part of the model.

        An empty prompt is the unconditional one (no prefix, all positions of the padded text) if that is allowed.
        """
        text, length = clean_prompt(text), self.config.max_length
        plain = self.numbers(text)[:length]
        plain += [PAD] * (length - len(plain))
        if text or not unconditional:
            full = self.numbers(self.config.prefix + text)[:self.places[-1] + 1]
            places = [place for place in self.places if place < len(full)]
        else:
            full, places = plain, list(range(length))
        return {NAME: [[(token, 1.0) for token in tokens] for tokens in (full, plain)], "places": places}

    def state_dict(self) -> dict:
        """What the host saves beside the weights, under their prefix so that CLIPSave puts all into one file."""
        beside = {"spiece_model": self.pieces.serialize_model()} | weights.metadata_tensor("text_encoder", self.config)
        return {f"{NAME}.{name}": tensor for name, tensor in beside.items()}


class JodiGemma(sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, layer="last", textmodel_json_config={},
                         special_tokens={"start": BOS, "pad": PAD}, layer_norm_hidden_state=False,
                         model_class=Gemma2_2B, enable_attention_masks=True, return_attention_masks=True,
                         model_options=model_options)


class JodiTextModel(sd1_clip.SD1ClipModel):
    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, name=NAME, clip_model=JodiGemma, model_options=model_options)

    def encode_token_weights(self, tokens: dict) -> tuple:
        """(features of the valid positions (1, M, width), no pooled output, {PLAIN: the plain reading})."""
        full, plain = ([token for token, _ in pairs] for pairs in tokens[NAME])
        cond_1MC = self.features(full)[:, tokens["places"]]
        plain_1MC = cond_1MC if plain == full else self.features(plain)
        return cond_1MC, None, {PLAIN: PlainReading(cond_1MC, plain_1MC)}

    def features(self, tokens: list[int]) -> torch.Tensor:
        return getattr(self, self.clip).encode([tokens])[0].to(comfy.model_management.intermediate_device())


def keep_in_16bit(model: JodiTextModel, tensors: dict) -> None:
    """Take out of 8-bit storage what the file holds in more bits."""
    network = getattr(model, model.clip).transformer
    for name, tensor in tensors.items():
        if tensor.dtype.itemsize > 1:
            parameter = network.get_parameter(name)
            parameter.data = tensor.to(parameter.device)
    comfy.model_management.archive_model_dtypes(model)


def load_clip(path: str, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """CLIP from a Gemma-2 file with its tokenizer inside. Raises WeightsError if the file is another or damaged."""
    require("CLIP")
    config, tensors = weights.read_text_encoder(Path(path))
    spiece_model = tensors.pop("spiece_model", None)
    if spiece_model is None:
        raise weights.WeightsError(f"{path} has no tokenizer (tensor spiece_model): choose a Gemma-2-2b file that was "
                                   "made for ComfyUI")
    tensors.pop("lm_head.weight", None)    # of files made to write text
    expected = Gemma2_2B(config.sizes, None, torch.device("meta"), comfy.ops.manual_cast).state_dict()
    weights.check_keys(*({name: tuple(tensor.shape) for name, tensor in part.items()} for part in (expected, tensors)),
                       path)
    parameters = comfy.utils.calculate_parameters(tensors)
    clip = comfy.sd.CLIP(
        ClipTarget(JodiTokenizer, JodiTextModel), parameters=parameters, disable_dynamic=disable_dynamic,
        tokenizer_data={"config": config, "spiece_model": spiece_model}, state_dict=[tensors],
        # As stored: the host's default of float16 would cost bf16 weights their range.
        model_options={f"{NAME}_model_config": config.sizes, "dtype": comfy.utils.weight_dtype(tensors)})
    if comfy.utils.weight_dtype(tensors).itemsize == 1:
        keep_in_16bit(clip.cond_stage_model, tensors)
    clip.patcher.cached_patcher_init = (reload_patcher, (path,))
    return clip


def reload_patcher(path: str, disable_dynamic: bool = False):
    """A patcher with weights of its own, for the host's clones."""
    return load_clip(path, disable_dynamic).patcher
