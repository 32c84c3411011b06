"""Caption Image and Ask Image: text from pictures by Dual Diffusion."""

from comfy_api.latest import io

from ..jodi_core.dual_diffusion.words import ANSWER_LENGTH, ANSWER_STYLES, question_prompt
from ..jodi_core.fitting import FIT_MODES
from .text_options import CATEGORY, CROP, MODEL_INPUTS, RESOLUTION, SEED, TEXT_OPTIONS, writer

RAW = "raw prompt"


class JodiCaptionImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiCaptionImage",
            display_name="Caption Image",
            category=CATEGORY,
            description="Describes pictures with Dual Diffusion: all words are blank at first and filled in step by "
                        "step, in random order. The draft is shown below the node.",
            search_aliases=["caption", "describe", "image to text", "img2txt", "interrogate", "tagger", "d-dit"],
            inputs=[
                *MODEL_INPUTS, SEED,
                io.Int.Input("steps", default=128, min=1, max=1024,
                             tooltip="Published: 128 for long captions of the base model. A step that fills nothing "
                                     "costs nothing."),
                io.Int.Input("length", default=0, min=0, max=1024,
                             tooltip="Places of the text in tokens, a word being one or two; it may end before. 0: as "
                                     "the model was trained, 256 for base. Set 128 for sft."),
                io.String.Input("prompt", default="", multiline=True, optional=True,
                                tooltip="How the text begins; not part of the output. Empty for the base model. The "
                                        "sft model wants 'Q: Provide a brief description of the given image. A: '."),
                CROP, RESOLUTION, TEXT_OPTIONS,
            ],
            outputs=[io.String.Output("caption", is_output_list=True, tooltip="A list with a text for each picture.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, vae, image, seed, steps, length, prompt="", crop=FIT_MODES[0], resolution=0,
                options=None) -> io.NodeOutput:
        writing = writer(cls, model, clip, vae, crop, resolution)
        start = writing.words.blanks(prompt, length or writing.words.longest)
        given = start.index(writing.words.mask_id)
        written = writing.write(image, start, seed, steps, **options or {})
        return io.NodeOutput([writing.words.answer(ids, given) for ids in written])


class JodiAskImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiAskImage",
            display_name="Ask Image",
            category=CATEGORY,
            description="Answers a question about pictures with the tuned Dual Diffusion model (sft); the base model "
                        "ignores questions.",
            search_aliases=["vqa", "question", "visual question answering", "image to text", "vlm", "d-dit"],
            inputs=[
                *MODEL_INPUTS,
                io.String.Input("question", multiline=True, dynamic_prompts=True,
                                tooltip="In English: 'What colour is the house?'. 'Q: ', 'A: ' come around it."),
                io.Combo.Input("style", options=[*ANSWER_STYLES, RAW],
                               tooltip="free: a sentence or more. short: asks for a word or a phrase. The next one "
                                       f"also allows 'unanswerable'. {RAW}: nothing is put around the text."),
                SEED,
                io.Int.Input("steps", default=32, min=1, max=1024,
                             tooltip="Published: 32; up to 256 for long answers."),
                io.Int.Input("length", default=0, min=0, max=1024,
                             tooltip="Places for question and answer together, in tokens. 0: as the model was trained, "
                                     "128 for sft."),
                io.Boolean.Input("keep_end", default=False, optional=True, advanced=True,
                                 tooltip="Leave </s> between question and answer, as the published program does and "
                                         "the training does not."),
                CROP, RESOLUTION, TEXT_OPTIONS,
            ],
            outputs=[io.String.Output("answer", is_output_list=True, tooltip="A list with an answer for each picture."),
                     io.String.Output("whole_text", is_output_list=True,
                                      tooltip="Question and answer, and what comes behind its end.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, vae, image, question, style, seed, steps, length, keep_end=False,
                crop=FIT_MODES[0], resolution=0, options=None) -> io.NodeOutput:
        writing = writer(cls, model, clip, vae, crop, resolution)
        words, prompt = writing.words, question if style == RAW else question_prompt(question, style)
        start = words.blanks(prompt, length or min(ANSWER_LENGTH, words.longest), keep_end)
        given = start.index(words.mask_id)
        written = writing.write(image, start, seed, steps, **options or {})
        return io.NodeOutput([words.answer(ids, given) for ids in written], [words.text(ids) for ids in written])
