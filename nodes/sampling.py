"""Jodi Joint Sampler: the published sampler and schedule."""

from comfy_api.latest import io

from .host.sampling import sample_joint


class JodiJointSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiJointSampler",
            display_name="Jodi Joint Sampler",
            category="model/sampling/jodi",
            description="Samples a joint latent as its model was published (Jodi: DPM-Solver++ 2M for flow, JointNet: "
                        "DDIM), with the time grid and the noise per seed of that. KSampler also runs joint latents; "
                        "this one gives the reference result.",
            search_aliases=["ksampler", "joint generation", "dpm-solver++", "flow sampler"],
            inputs=[
                io.Model.Input("model", tooltip="From Jodi Loader or JointNet Loader, with or without LoRA or other "
                                             "patches."),
                io.Conditioning.Input("positive", tooltip="From Jodi Role Switch."),
                io.Conditioning.Input("negative", tooltip="From Jodi Role Switch. Not evaluated if cfg is 1."),
                io.Latent.Input("latent_image", tooltip="From Jodi Role Switch."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="The noise. Drawn for all domains, so that a seed means the same scene whichever "
                                     "of them take part."),
                io.Int.Input("steps", default=20, min=1, max=1000,
                             tooltip="Model evaluations. Published: 20 to generate, 10 for perception; JointNet: "
                                     "50."),
                io.Float.Input("cfg", default=4.5, min=0.0, max=100.0, step=0.1, round=0.01,
                               tooltip="How strongly the prompt counts; 1 turns guidance off and halves the time. "
                                       "Published: 4.5; JointNet: 7.5. Jodi ignores it where the image is given."),
                io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01, optional=True,
                               tooltip="Below 1 the latent's own content is varied and not drawn from nothing: for "
                                       "domains that are edited."),
                io.Boolean.Input("same_noise", default=False, optional=True,
                                 tooltip="One noise for the whole batch: the labels of a video's frames do not flicker,"
                                         " and equal pictures get equal labels."),
            ],
            outputs=[io.Latent.Output(tooltip="For Jodi Label Decode, or VAE Decode (all domains as a batch).")],
        )

    @classmethod
    def execute(cls, model, positive, negative, latent_image, seed, steps, cfg, denoise=1.0,
                same_noise=False) -> io.NodeOutput:
        samples = sample_joint(model, latent_image, positive, negative, seed, steps, cfg, denoise, same_noise)
        kept = {key: value for key, value in latent_image.items() if not key.startswith("downscale_ratio")}
        return io.NodeOutput(kept | {"samples": samples})
