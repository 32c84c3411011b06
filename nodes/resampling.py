"""Jodi Resampling: what is made anew grows together with what is kept."""

from comfy_api.latest import io

from .host.resampling import WithJumps


class JodiResampling(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiResampling",
            display_name="Jodi Resampling",
            category="model/sampling/jodi",
            description="For masks: lets a sampler go back and make its last steps again, some times over (RePaint), "
                        "so that what is made anew fits what is kept. Around any sampler, for any model.",
            search_aliases=["repaint", "inpaint", "outpaint", "resample", "time travel", "harmonize"],
            inputs=[
                io.Sampler.Input("sampler", tooltip="From KSamplerSelect or Jodi Sampler."),
                io.Int.Input("times", default=3, min=1, max=50,
                             tooltip="How often each stretch of steps is made; the run takes so many times as long."),
                io.Int.Input("jump", default=2, min=1, max=100,
                             tooltip="Steps from one jump back to the next."),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced or SamplerCustom.")],
        )

    @classmethod
    def execute(cls, sampler, times, jump) -> io.NodeOutput:
        return io.NodeOutput(WithJumps(sampler, jump, times))
