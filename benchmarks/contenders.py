"""Our contenders: the product, the product compiled, and the dense computation that it is tested against.

A contender has `forward`, `sample` and `whole`, the stages of `cases`, each (job, inputs) -> result of the generated
domains: latents (B, G, C, h, w), or for `whole` pictures (B, G, 3, H, W) in [-1, 1].
"""

from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.cases import Inputs, Job, Setting, fill
from benchmarks.dense import DenseJodi, sample
from jodi_core import JodiPipeline
from jodi_core.models.dcae import DCAE
from jodi_core.models.jodi import JodiTransformer


class Captions:
    """In place of a text encoder: captions are encoded before the clock starts, for all contenders alike."""

    def __init__(self, setting: Setting):
        self.config = SimpleNamespace(hidden_size=setting.size.config.caption_channels)
        self.inputs: Inputs | None = None

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Features as long as the longest caption, and the lengths, as `GemmaText.encode` gives them."""
        lengths_B = self.inputs.lengths_B
        return self.inputs.text_BMW[:, :lengths_B.max()], lengths_B


class Ours:
    """The product, by the doors that its users take. On the device "meta" it computes nothing, but can be counted."""

    def __init__(self, setting: Setting, *, with_autoencoder: bool):
        self.setting, size = setting, setting.size
        place = {"device": setting.device, "dtype": setting.dtype}
        self.network = JodiTransformer(size.config, **place).eval().requires_grad_(False)
        self.autoencoder = DCAE(size.autoencoder, device=setting.device if with_autoencoder else "meta",
                                dtype=setting.dtype).eval().requires_grad_(False)
        if setting.device.type != "meta":
            fill(self.network, setting.seed)
            if with_autoencoder:
                fill(self.autoencoder, setting.seed)
        self.captions = Captions(setting)
        self.pipeline = JodiPipeline(self.network, self.autoencoder, lambda: self.captions)

    @torch.no_grad()
    def forward(self, job: Job, inputs: Inputs) -> Tensor:
        return self.network(inputs.noise_BLChw, inputs.time_B, inputs.text_BMW[:, None], inputs.role_BL,
                            inputs.mask_BM, inputs.clean_BLChw)[:, job.generated]

    def sample(self, job: Job, inputs: Inputs) -> Tensor:
        clean_BCDhw = job.roles.keep_active(inputs.clean_BLChw.transpose(1, 2)) if job.roles.condition_slots else None
        return self._sample(job, inputs, clean_BCDhw)[:, :, list(job.roles.generated_slots)].transpose(1, 2)

    def whole(self, job: Job, inputs: Inputs) -> Tensor:
        size = job.pixels, job.pixels
        latent_BCDhw = self._sample(job, inputs, self.pipeline.encode_conditions(job.roles, inputs.pictures, size))
        return torch.stack(list(self.pipeline.decode(latent_BCDhw, job.roles, size).values()), dim=1)

    def _sample(self, job: Job, inputs: Inputs, clean_BCDhw: Tensor | None) -> Tensor:
        self.captions.inputs = inputs
        text = None if job.roles.image_given else self.pipeline.encode_text([""] * job.batch, guidance=job.guidance)
        return self.pipeline.sample(inputs.noise_BLChw, job.roles, clean_BCDhw, text, steps=job.steps,
                                    guidance=job.guidance)


class Compiled(Ours):
    """The same with each block of the transformer compiled, once per choice of roles and size."""

    def __init__(self, setting: Setting, *, with_autoencoder: bool):
        super().__init__(setting, with_autoencoder=with_autoencoder)
        for block in self.network.blocks:
            block.compile(dynamic=False)


class Dense:
    """All domains, both guidance branches, one request at a time, no savings. Between the steps it is float64, since
    the original's form of the solver loses digits."""

    def __init__(self, setting: Setting, *, with_autoencoder: bool):
        plain = Ours(setting, with_autoencoder=with_autoencoder)
        self.network, self.autoencoder = plain.network, plain.autoencoder
        self.dense, self.setting = DenseJodi(self.network), setting

    def row(self, x_LChw, t, y_MW, role_L, length, clean_LChw) -> Tensor:
        dtype = self.setting.dtype
        return self.dense.row(x_LChw.to(dtype), t.to(dtype), y_MW, role_L, length, clean_LChw.to(dtype)).double()

    @torch.no_grad()
    def forward(self, job: Job, inputs: Inputs) -> Tensor:
        rows = [self.row(inputs.noise_BLChw[i], inputs.time_B[i], inputs.text_BMW[i], list(job.roles.roles),
                         inputs.lengths_B[i].item(), inputs.clean_BLChw[i]) for i in range(job.batch)]
        return torch.stack(rows)[:, job.generated]

    def sample(self, job: Job, inputs: Inputs) -> Tensor:
        return self._sample(job, inputs, inputs.clean_BLChw)[:, job.generated]

    @torch.no_grad()
    def whole(self, job: Job, inputs: Inputs) -> Tensor:
        config, dtype = self.setting.size.config, self.setting.dtype
        clean_BLChw = torch.zeros_like(inputs.clean_BLChw)
        for name, picture_BCHW in inputs.pictures.items():
            clean_BLChw[:, config.domains.index(name)] = \
                self.autoencoder.encode((picture_BCHW * 2 - 1).to(dtype)) * config.latent_scale
        latent_BLChw = self._sample(job, inputs, clean_BLChw).to(dtype) / config.latent_scale
        pictures = [self.autoencoder.decode(latent_BChw).float().clamp(-1, 1) for latent_BChw in latent_BLChw.unbind(1)]
        return torch.stack(pictures, dim=1)[:, job.generated]

    @torch.no_grad()
    def _sample(self, job: Job, inputs: Inputs, clean_BLChw: Tensor) -> Tensor:
        rows = []
        for i, length in enumerate(inputs.lengths_B.tolist()):
            captions = [(inputs.null_BMW[i], length), (inputs.text_BMW[i], length)]
            rows.append(sample(self, inputs.noise_BLChw[i].double(), list(job.roles.roles), captions, job.guidance,
                               clean_BLChw[i].double(), job.steps, self.setting.size.config.flow_shift))
        return torch.stack(rows)
