"""Jodi Text Encode: a prompt and a negative prompt, read as the published pipeline reads them."""

from comfy_api.latest import io

from ..jodi_core.text import clean_prompt, instruction_prefix
from .joint import PLAIN

STOCK_TOKENIZER = "PixelDiTGemma2Tokenizer"    # of the stock CLIPLoader with type pixeldit
LENGTH = 300    # of a negative prompt there, padding included


def from_stock_loader(clip) -> bool:
    return type(clip.tokenizer).__name__ == STOCK_TOKENIZER


def encode_prompt(clip, text: str) -> list:
    """CONDITIONING of the instruction prefix and the cleaned prompt, its valid rows only."""
    if from_stock_loader(clip):
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(instruction_prefix() + clean_prompt(text)))
        return [[cond[:, :int(values["attention_mask"].sum())], {}] for cond, values in conditioning]
    return clip.encode_from_tokens_scheduled(clip.tokenize(text, unconditional=False))


def encode_negative(clip, text: str) -> list:
    """CONDITIONING of the prompt without instruction prefix, padding included: guidance compares as many rows as the
    positive one has."""
    if from_stock_loader(clip):
        gemma = clip.tokenizer.gemma2_2b
        tokens = gemma.tokenize_with_weights(clean_prompt(text), disable_weights=True, min_length=LENGTH)
        conditioning = clip.encode_from_tokens_scheduled({"gemma2_2b": [tokens[0][:LENGTH]]})
        return [[cond, {}] for cond, _ in conditioning]
    return [[values[PLAIN].features_1MC, {}] for _, values in encode_prompt(clip, text)]


def check_clip(clip) -> None:
    """ValueError for a text encoder whose features the model does not read."""
    name = "nothing" if clip is None else type(clip.tokenizer).__name__
    if name not in (STOCK_TOKENIZER, "JodiTokenizer"):
        raise ValueError(f"this CLIP is not the text encoder of a joint model ({name}): use that of Jodi Loader, or "
                         "CLIPLoader with type pixeldit and a Gemma-2-2b file (instruction tuned)")


class JodiTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiTextEncode",
            display_name="Jodi Text Encode",
            category="model/conditioning/jodi",
            description="Prompt and negative prompt as the published model reads them: cleaned up, the negative one "
                        "without the instruction prefix, both at their true length.",
            search_aliases=["clip text encode", "prompt", "negative prompt", "gemma"],
            inputs=[
                io.Clip.Input("clip", tooltip="From Jodi Loader, or from CLIPLoader with type pixeldit."),
                io.String.Input("text", multiline=True, dynamic_prompts=True,
                                tooltip="The prompt. Weights in parentheses have no meaning for this model."),
                io.String.Input("negative_text", multiline=True, dynamic_prompts=True, default="", optional=True,
                                tooltip="What guidance leads away from; mostly empty."),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="For Jodi Role Switch."),
                io.Conditioning.Output("negative", tooltip="For Jodi Role Switch."),
            ],
        )

    @classmethod
    def execute(cls, clip, text, negative_text="") -> io.NodeOutput:
        check_clip(clip)
        return io.NodeOutput(encode_prompt(clip, text), encode_negative(clip, negative_text))
