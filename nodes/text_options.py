"""Text Options, and the inputs that all nodes have which make Dual Diffusion write."""

from comfy_api.latest import io

from ..jodi_core.dual_diffusion.text_sampling import TextOptions
from ..jodi_core.fitting import FIT_MODES
from .host.progress import tell_under
from .host.writing import Writer

CATEGORY = "model/text/jodi"
Options = io.Custom("JODI_TEXT_OPTIONS")
MODEL_INPUTS = [
    io.Model.Input("model", tooltip="From Load Dual Diffusion; LoRA in between act on text too."),
    io.Clip.Input("clip", tooltip="From Load Dual Diffusion."),
    io.Vae.Input("vae", tooltip="From Load Dual Diffusion."),
    io.Image.Input("image", tooltip="One picture or a batch; each gets a text of its own, whichever others are with "
                                    "it."),
]
SEED = io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                    tooltip="Decides the text, on any device and in any batch; a batch counts on from picture to "
                            "picture.")
CROP = io.Combo.Input("crop", options=list(FIT_MODES), optional=True, advanced=True,
                      tooltip="How the picture becomes a square. crop: its middle, as in training. pad: all of it, "
                              "with its border continued. stretch: all of it, distorted.")
RESOLUTION = io.Int.Input("resolution", default=0, min=0, max=8192, step=16, optional=True, advanced=True,
                          tooltip="Side of that square in pixels. 0: as the model was trained, 512 for the published "
                                  "ones.")
TEXT_OPTIONS = Options.Input("options", optional=True, tooltip="From Text Options; without them the published sampler.")


def writer(node, model, clip, vae, crop: str, resolution: int) -> Writer:
    """node: the class of the node at work, under which drafts are shown."""
    return Writer(model, clip, vae, resolution, crop, lambda drafts: tell_under(node.hidden.unique_id,
                                                                               "\n".join(drafts)))


class JodiTextOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiTextOptions",
            display_name="Text Options",
            category=CATEGORY,
            description="Departures from the published text sampler of Dual Diffusion. As they stand here they change "
                        "nothing.",
            search_aliases=["temperature", "top k", "top p", "caption settings", "sampling options", "best of n"],
            inputs=[
                io.Float.Input("temperature", default=1.0, min=0.05, max=5.0, step=0.05,
                               tooltip="Below 1 likelier words, above 1 more surprising ones."),
                io.Int.Input("top_k", default=0, min=0, max=1000, tooltip="Only the k likeliest words; 0: all."),
                io.Float.Input("top_p", default=1.0, min=0.01, max=1.0, step=0.01,
                               tooltip="Only the likeliest words that together have this probability; 1: all."),
                io.Boolean.Input("confident", default=False,
                                 tooltip="Each step fills the blanks that the model is surest of, and not random ones: "
                                         "better with few steps."),
                io.Boolean.Input("stop_at_end", default=False,
                                 tooltip="A text is finished as soon as everything before its end is filled: faster."),
                io.Int.Input("min_length", default=0, min=0, max=512,
                             tooltip="Tokens that the new text has at least."),
                io.Int.Input("samples", default=1, min=1, max=64,
                             tooltip="Texts made of each picture, of which the one that fits best is kept."),
            ],
            outputs=[Options.Output("options", tooltip="For Caption Image, Ask Image and Fill Text.")],
        )

    @classmethod
    def execute(cls, samples, **options) -> io.NodeOutput:
        return io.NodeOutput({"samples": samples, "options": TextOptions(**options)})
