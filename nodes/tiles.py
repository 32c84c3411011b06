"""Jodi Tiles: pictures larger than a model was trained for."""

from comfy_api.latest import io

from .host.tiles import in_tiles


class JodiTiles(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiTiles",
            display_name="Jodi Tiles",
            category="model/patch/jodi",
            description="Lets a joint model work on pictures larger than those it was trained for: in every step it "
                        "sees overlapping windows, and their answers are blended. For labels of large pictures, and "
                        "for panoramas, also closed ones of 360 degrees.",
            search_aliases=["large picture", "high resolution", "tiled sampling", "multidiffusion", "panorama",
                            "360", "equirectangular", "seamless", "upscale"],
            inputs=[
                io.Model.Input("model", tooltip="From Jodi Loader or JointNet Loader, with or without other patches."),
                io.Int.Input("tile", default=0, min=0, max=8192, step=16,
                             tooltip="Side of a window in pixels; 0: the square size that the model was trained for."),
                io.Float.Input("overlap", default=0.25, min=0.0, max=0.75, step=0.05,
                               tooltip="Part of a window that it shares with the next one: more hides seams better and "
                                       "costs more."),
                io.Boolean.Input("circular", default=False, optional=True,
                                 tooltip="The right edge goes on at the left one, as in a panorama of 360 degrees. "
                                         "Windows move in every step, by the seed. Decode with 'circular' too."),
                io.Float.Input("full_view", default=0.0, min=0.0, max=1.0, step=0.05, optional=True,
                               tooltip="In this first part of the steps the model also sees the whole picture at once, "
                                       "so that its parts belong together. JointNet's panoramas: 0.4."),
                io.Float.Input("full_view_weight", default=5.0, min=0.1, max=100.0, step=0.1, optional=True,
                               tooltip="How much the whole picture counts, a window counting 1."),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler. A picture that fits into one window comes out as without"
                                             " this node.")],
        )

    @classmethod
    def execute(cls, model, tile, overlap, circular=False, full_view=0.0, full_view_weight=5.0) -> io.NodeOutput:
        return io.NodeOutput(in_tiles(model, tile, overlap, circular, full_view, full_view_weight))
