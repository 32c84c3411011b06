"""Dual Diffusion Text Encode: a prompt for a picture, in as many places as the model was trained on."""

import logging

from comfy_api.latest import io

from .host.dual_diffusion_text import DualDiffusionTokenizer
from .host.progress import tell_under

PADDING = {"as trained": None, "</s>": 1, "<pad>": 0}


class JodiDualDiffusionTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiDualDiffusionTextEncode",
            display_name="Dual Diffusion Text Encode",
            category="model/conditioning/jodi",
            description="A prompt for a picture of Dual Diffusion, as the model was trained to read it: 256 places of "
                        "T5, the rest of them filled up and seen by the model too.",
            search_aliases=["clip text encode", "prompt", "negative prompt", "t5", "d-dit"],
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Dual Diffusion."),
                io.String.Input("text", multiline=True, dynamic_prompts=True,
                                tooltip="The prompt; as negative one mostly a list of faults, or nothing. Weights in "
                                        "parentheses and embeddings have no meaning for this model."),
                io.Int.Input("length", default=0, min=0, max=1024, optional=True, advanced=True,
                             tooltip="Places of positive and negative prompt alike. What does not fit is cut off. "
                                     "0: as the model was trained, 256 for the published ones."),
                io.Combo.Input("padding", options=list(PADDING), optional=True, advanced=True,
                               tooltip="What the places behind the prompt are filled with; it is attended to. 'as "
                                       "trained': as the tokenizer of the model's folder says, and </s> without one."),
            ],
            outputs=[io.Conditioning.Output(tooltip="For KSampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, text, length=0, padding="as trained") -> io.NodeOutput:
        if clip is None or not isinstance(clip.tokenizer, DualDiffusionTokenizer):
            raise ValueError("this CLIP is no T5 with the tokenizer of Dual Diffusion: connect that of Load Dual "
                             "Diffusion")
        length = length or clip.tokenizer.words.longest
        tokens = len(clip.tokenizer.words.ids(text))
        if tokens > length:
            told = f"the prompt has {tokens} tokens, of which only {length} are read: shorten it"
            logging.warning(told)
            tell_under(cls.hidden.unique_id, told)
        return io.NodeOutput(clip.encode_from_tokens_scheduled(
            clip.tokenize(text, length=length, pad_id=PADDING[padding])))
