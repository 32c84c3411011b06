"""JointNet LoRA on Depth: a LoRA of Stable Diffusion on both U-Nets."""

from comfy_api.latest import io

from .host.jointnet import on_depth_too


class JodiJointNetLoraOnDepth(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiJointNetLoraOnDepth",
            display_name="JointNet LoRA on Depth",
            category="model/patch/jodi",
            description="A LoRA of Stable Diffusion 2.1 changes the picture's U-Net of JointNet alone. Behind this "
                        "node it changes that of the depth too, so that both draw the shapes that it teaches.",
            search_aliases=["lora", "jointnet", "both branches", "depth lora"],
            inputs=[
                io.Model.Input("model", tooltip="From JointNet Loader through LoraLoader or LoraLoaderModelOnly."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05,
                               tooltip="Times the strength that the LoRA has on the picture."),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler.")],
        )

    @classmethod
    def execute(cls, model, strength) -> io.NodeOutput:
        return io.NodeOutput(on_depth_too(model, strength))
