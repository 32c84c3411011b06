"""Pictures of a JointNet in training, by the encoders of its run. Called as `JodiPipeline` is."""

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from jodi_core.calls import rows_of, seeded
from jodi_core.domains import JointRoles
from jodi_core.jointnet.network import JointNet
from jodi_core.jointnet.sampling import Known, Sampling, sample
from jodi_core.pictures import postprocess


class JointNetPictures:
    """encoders: with `autoencoder` and `text`."""

    def __init__(self, model: JointNet, encoders):
        self.network, self.config, self.domains = model, model.config, model.config.domains
        self.autoencoder, self.text = encoders.autoencoder, encoders.text
        example = next(model.parameters())
        self.device, self.dtype = example.device, example.dtype

    @torch.no_grad()
    def __call__(self, prompt: str | list[str], *, conditions: dict[str, Tensor], seed: int, height: int, width: int,
                 generate=None, steps: int = 20, guidance: float = 1.0) -> SimpleNamespace:
        """pictures: domain -> (B, 3, H, W) in [0, 1] of the domains in `generate`, by default all that are not given.

        conditions: domain -> (B, 3, height, width) in [0, 1].
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        rows = rows_of(prompts, conditions)
        wanted = [name for name in self.domains if name not in conditions] if generate is None else generate
        roles = JointRoles.of(self.domains, generate=wanted, condition=conditions)
        size = height // self.config.latent_factor, width // self.config.latent_factor
        noise_BCDHW = torch.randn(rows, self.config.in_channels, len(self.domains), *size, generator=seeded(seed))
        text_TMC, mask_TM = self.captions(prompts, guidance)
        latent_BCDHW = sample(self.network, roles.keep_active(noise_BCDHW).to(self.device), text_TMC, roles,
                              Sampling(steps=steps, guidance=guidance), self.known(roles, conditions, size),
                              mask_TM=mask_TM)
        return SimpleNamespace(pictures={roles.active_names[slot]: postprocess(
            roles.active_names[slot], self.decode(latent_BCDHW[:, :, slot])) for slot in roles.generated_slots})

    def known(self, roles: JointRoles, conditions: dict[str, Tensor], size) -> Known | None:
        """Given domains as a whole; None without any."""
        if not conditions:
            return None
        rows = max(map(len, conditions.values()))
        clean_BCDHW = torch.zeros(rows, self.config.in_channels, len(roles.active), *size, device=self.device)
        mask_B1DHW = torch.ones_like(clean_BCDHW[:, :1])
        for slot in roles.condition_slots:
            picture_B3HW = conditions[roles.active_names[slot]].to(self.device) * 2 - 1
            clean_BCDHW[:, :, slot] = self.autoencoder.encode(picture_B3HW) * self.config.latent_scale
            mask_B1DHW[:, :, slot] = 0
        return Known(clean_BCDHW, mask_B1DHW)

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        return self.autoencoder.decode(latent_BCHW / self.config.latent_scale).float().clamp(-1, 1)

    def captions(self, prompts: list[str], guidance: float) -> tuple[Tensor, Tensor]:
        """Text features (T, M, C) and which rows count; with guidance after those of as many empty captions."""
        features, lengths = self.text.encode(prompts)
        texts = [row[:length] for row, length in zip(features, lengths)]
        if guidance > 1:
            texts = [*self.text.encode_negative([""]).expand(len(texts), -1, -1), *texts]
        text_TMC = pad_sequence(texts, batch_first=True).to(self.device, self.dtype)
        counts = torch.tensor([len(row) for row in texts], device=self.device)
        return text_TMC, torch.arange(text_TMC.shape[1], device=self.device) < counts[:, None]
