"""Jodi Panorama Canvas: a picture in the middle of a wide one, to be continued."""

from comfy_api.latest import io

from ..jodi_core.fitting import widen
from ..jodi_core.pictures import load_picture


class JodiPanoramaCanvas(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiPanoramaCanvas",
            display_name="Jodi Panorama Canvas",
            category="image/jodi",
            description="Puts a picture or a label into the middle of a wide canvas, mirrored on both sides, with a "
                        "mask of what is beside it: for Jodi Role Switch to 'edit', and a panorama grows around it.",
            search_aliases=["expand", "outpaint", "pad image for outpainting", "panorama", "360", "wide", "mirror"],
            inputs=[
                io.Image.Input("image", tooltip="A picture or a label. It keeps its size."),
                io.Int.Input("width", default=2048, min=16, max=16384, step=16,
                             tooltip="Of the canvas in pixels; the height stays that of the picture."),
            ],
            outputs=[
                io.Image.Output("picture", tooltip="For image_picture of Jodi Role Switch, role 'edit', size 'like the "
                                                   "picture'. The mirrored sides matter with denoise below 1 only."),
                io.Mask.Output("mask", tooltip="1 beside the picture: for image_mask."),
            ],
        )

    @classmethod
    def execute(cls, image, width) -> io.NodeOutput:
        canvas_B3HW, mask_B1HW = widen(load_picture(image.movedim(-1, 1)), width)
        return io.NodeOutput(canvas_B3HW.movedim(1, -1), mask_B1HW[:, 0])
