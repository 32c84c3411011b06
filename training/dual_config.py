"""[model] of Dual Diffusion: its network, and the pictures and texts that it is trained on."""

from dataclasses import dataclass

from jodi_core.dual_diffusion.config import PUBLISHED, DualDiffusionConfig
from jodi_core.dual_diffusion.roles import DOMAINS


@dataclass(frozen=True, kw_only=True)
class DualTrainingConfig(DualDiffusionConfig):
    """Sizes of the network as in its `config.json`; the defaults are those of the published models.

    side         pixels of the square pictures
    length       tokens of a text that a picture is made from
    text_length  tokens of a text that is made: a caption, or a question with its answer; tuning of the original: 128
    """

    vocab_size: int = PUBLISHED.vocab_size
    num_layers: int = PUBLISHED.num_layers
    num_attention_heads: int = PUBLISHED.num_attention_heads
    caption_projection_dim: int = PUBLISHED.caption_projection_dim
    pos_embed_max_size: int = PUBLISHED.pos_embed_max_size
    side: int = 512
    length: int = 256
    text_length: int = 256

    @property
    def domains(self) -> tuple[str, ...]:
        return DOMAINS

    @property
    def bins(self) -> dict[float, tuple[int, int]]:
        return {1.0: (self.side, self.side)}

    @property
    def network(self) -> DualDiffusionConfig:
        """Without what only training knows."""
        return DualDiffusionConfig.from_dict(self.to_dict())
