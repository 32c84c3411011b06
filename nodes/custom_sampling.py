"""The parts of Jodi Joint Sampler for the host's custom sampling nodes: SAMPLER, SIGMAS, NOISE."""

from comfy_api.latest import io

from .host.sampling import JointNoise, Published, model_sigmas

SAME_SCENE, LIKE_STOCK, SAME_FRAME = NOISE_KINDS = (
    "same for every role choice", "like the stock node", "same for every picture too")
CATEGORY = "model/sampling/jodi"


class JodiSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiSampler",
            display_name="Jodi Sampler",
            category=CATEGORY,
            description="The solver that the model was published with (Jodi: DPM-Solver++ 2M for flow, JointNet: DDIM) "
                        "for SamplerCustomAdvanced. Best with Jodi Sigmas.",
            search_aliases=["ksamplerselect", "dpm-solver++", "flow sampler", "custom sampler"],
            inputs=[],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced or SamplerCustom.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(Published())


class JodiSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiSigmas",
            display_name="Jodi Sigmas",
            category=CATEGORY,
            description="The published time grid for SamplerCustomAdvanced, with the shift of the model.",
            search_aliases=["scheduler", "basicscheduler", "flow shift", "timesteps"],
            inputs=[
                io.Model.Input("model", tooltip="From Jodi Loader (ModelSamplingSD3 in between changes the shift) or "
                                                "JointNet Loader."),
                io.Int.Input("steps", default=20, min=1, max=1000,
                             tooltip="Model evaluations. Published: 20 to generate, 10 for perception; JointNet: "
                                     "50."),
                io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01,
                               tooltip="Below 1 only the last part of a longer grid, to vary a given latent."),
            ],
            outputs=[io.Sigmas.Output(tooltip="steps + 1 values, the last is 0.")],
        )

    @classmethod
    def execute(cls, model, steps, denoise) -> io.NodeOutput:
        return io.NodeOutput(model_sigmas(model, steps, denoise))


class JodiNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiNoise",
            display_name="Jodi Noise",
            category=CATEGORY,
            description="Noise for SamplerCustomAdvanced that belongs to the domains: a seed gives each domain the "
                        "same noise, whichever others take part.",
            search_aliases=["randomnoise", "seed"],
            inputs=[
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="The noise."),
                io.Combo.Input("kind", options=list(NOISE_KINDS),
                               tooltip=f"'{SAME_SCENE}': drawn for all domains as the published model does, as in Jodi "
                                       f"Joint Sampler. '{LIKE_STOCK}': as RandomNoise and KSampler draw it. "
                                       f"'{SAME_FRAME}': one noise for the whole batch, for the frames of a video."),
            ],
            outputs=[io.Noise.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, seed, kind) -> io.NodeOutput:
        return io.NodeOutput(JointNoise(seed, per_domain=kind != LIKE_STOCK, rows_alike=kind == SAME_FRAME))
