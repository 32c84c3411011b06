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
                        "for panoramas.",
            search_aliases=["large picture", "high resolution", "tiled sampling", "multidiffusion", "panorama"],
            inputs=[
                io.Model.Input("model", tooltip="From Jodi Loader, with or without other patches."),
                io.Int.Input("tile", default=0, min=0, max=8192, step=16,
                             tooltip="Side of a window in pixels; 0: the square size that the model was trained for."),
                io.Float.Input("overlap", default=0.25, min=0.0, max=0.75, step=0.05,
                               tooltip="Part of a window that it shares with the next one: more hides seams better and "
                                       "costs more."),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler. A picture that fits into one window comes out as without"
                                             " this node.")],
        )

    @classmethod
    def execute(cls, model, tile, overlap) -> io.NodeOutput:
        return io.NodeOutput(in_tiles(model, tile, overlap))
