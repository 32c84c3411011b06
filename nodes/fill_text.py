"""Fill Text and Score Text: blanks in a text that Dual Diffusion fills from a picture, and how well a text fits it."""

from comfy_api.latest import io

from ..jodi_core.fitting import FIT_MODES
from .text_options import CATEGORY, CROP, MODEL_INPUTS, RESOLUTION, SEED, TEXT_OPTIONS, writer

LENGTH = io.Int.Input("length", default=0, min=0, max=1024,
                      tooltip="Places in tokens; behind the text they hold its end. 0: as the model was trained, 256 "
                              "for base. Set 128 for sft.")


class JodiFillText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiFillText",
            display_name="Fill Text",
            category=CATEGORY,
            description="Fills the blanks of a text so that it fits a picture, with Dual Diffusion: {n} in the text is "
                        "a blank of n tokens.",
            search_aliases=["infill", "fill in the blanks", "mask", "complete text", "caption template", "d-dit"],
            inputs=[
                *MODEL_INPUTS,
                io.String.Input("text", default="a {1} house beside a {2}", multiline=True,
                                tooltip="The given words stay as they are. {n} stands for n tokens, a word being one "
                                        "or two: 'a {1} house beside a {2}'."),
                SEED,
                io.Int.Input("steps", default=32, min=1, max=1024,
                             tooltip="More than there are blanks change nothing but the time."),
                LENGTH, CROP, RESOLUTION, TEXT_OPTIONS,
            ],
            outputs=[io.String.Output("text", is_output_list=True, tooltip="A list with a text for each picture.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, vae, image, text, seed, steps, length, crop=FIT_MODES[0], resolution=0,
                options=None) -> io.NodeOutput:
        writing = writer(cls, model, clip, vae, crop, resolution)
        start = writing.words.template(text, length or writing.words.longest)
        written = writing.write(image, start, seed, steps, **options or {})
        return io.NodeOutput([writing.words.text(ids) for ids in written])


class JodiScoreText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiScoreText",
            display_name="Score Text",
            category=CATEGORY,
            description="How badly a text fits a picture: the loss that Dual Diffusion is trained with, over draws "
                        "that are always the same. Lower fits better; compare texts of the same length for the same "
                        "picture.",
            search_aliases=["clip score", "match", "rank captions", "image text similarity", "perplexity", "d-dit"],
            inputs=[*MODEL_INPUTS, io.String.Input("text", multiline=True, tooltip="What to look for in the picture."),
                    LENGTH, CROP, RESOLUTION],
            outputs=[io.Float.Output("score", is_output_list=True,
                                     tooltip="A list with a number for each picture, above 0; lower is better.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, vae, image, text, length, crop=FIT_MODES[0], resolution=0) -> io.NodeOutput:
        writing = writer(cls, model, clip, vae, crop, resolution)
        return io.NodeOutput(writing.scores(image, text, length or writing.words.longest))
