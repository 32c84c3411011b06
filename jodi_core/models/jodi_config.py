"""Configuration of a Jodi transformer: from its file's metadata, its shapes, or the original's constructor names."""

import math
from dataclasses import asdict, dataclass, field, fields

from ..domains import JODI_BINS, JODI_DOMAINS

# Text heads are the one structural number that shapes do not tell; these are the published widths (spec 2).
PUBLISHED_TEXT_HEADS = {1152: 16, 2240: 20}


def domain_names(count: int) -> tuple[str, ...]:
    """Names for a model that does not say its own: the published order, then label_8, label_9, ..."""
    return JODI_DOMAINS[:count] + tuple(f"label_{i}" for i in range(len(JODI_DOMAINS), count))


@dataclass(frozen=True, kw_only=True)
class JodiConfig:
    """Everything a transformer file says about itself. Defaults are the published 1600M_P1_D20 model."""

    domains: tuple[str, ...] = JODI_DOMAINS
    hidden_size: int = 2240
    depth: int = 20
    num_heads: int = 20                    # heads of the text cross-attention
    linear_head_dim: int = 32
    patch_size: int = 1
    patch_embed_kernel: int | None = None  # odd kernel of the patch embedding; None = patch_size
    in_channels: int = 32
    input_size: int = 32                   # latent side of the training size; scales the position table
    pe_interpolation: float = 1.0
    use_pe: bool = True
    mlp_ratio: float = 2.5
    caption_channels: int = 2304
    model_max_length: int = 300
    qk_norm: bool = False
    cross_norm: bool = False
    y_norm: bool = True
    y_norm_scale_factor: float = 0.01
    norm_eps: float = 1e-5
    class_dropout_prob: float = 0.1
    # What a sampler has to know beside the network.
    bins: dict[float, tuple[int, int]] = field(default_factory=lambda: dict(JODI_BINS), hash=False)
    flow_shift: float = 3.0
    latent_scale: float = 0.41407

    def __post_init__(self):
        object.__setattr__(self, "domains", tuple(self.domains))
        object.__setattr__(self, "bins", {float(key): tuple(int(v) for v in hw) for key, hw in self.bins.items()})
        size = self.hidden_size
        for name, divisor in (("the position table's", 4), ("num_heads", self.num_heads),
                              ("linear_head_dim", self.linear_head_dim)):
            if divisor < 1 or size % divisor:
                raise ValueError(f"hidden_size {size} is not divisible by {name} {divisor}")
        if len(set(self.domains)) != len(self.domains) or not self.domains:
            raise ValueError(f"domain names must be distinct and at least one: {self.domains}")
        if self.patch_embed_kernel not in (None, self.patch_size) and self.patch_embed_kernel % 2 == 0:
            raise ValueError(f"patch_embed_kernel {self.patch_embed_kernel} must be odd or the patch size "
                             f"{self.patch_size}")
        if self.input_size % self.patch_size:
            raise ValueError(f"input_size {self.input_size} is not divisible by patch_size {self.patch_size}")

    @property
    def num_domains(self) -> int:
        return len(self.domains)

    @property
    def mlp_hidden(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    def to_dict(self) -> dict:
        """Plain JSON values; `from_dict` reads them back."""
        return asdict(self) | {"domains": list(self.domains)}

    @classmethod
    def from_dict(cls, values: dict) -> "JodiConfig":
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown configuration keys {', '.join(unknown)}: the file is newer than this version")
        return cls(**values)

    @classmethod
    def from_reference(cls, values: dict) -> "JodiConfig":
        """Configuration from the original's constructor arguments (`num_conditions` etc.).

        Raises ValueError for the softmax attention kinds: they honour no ignored domain and have no published weights.
        """
        attention = values.get("attn_type", "linear")
        if attention != "linear":
            raise ValueError(f"attn_type {attention!r} is not supported: only 'linear' has published weights")
        known = {f.name for f in fields(cls)} - {"domains", "bins"}
        defaults = {"use_pe": False, "y_norm_scale_factor": 1.0}   # the original's, where a key is missing (spec 2)
        return cls(**defaults | {key: value for key, value in values.items() if key in known},
                   domains=domain_names(1 + values.get("num_conditions", 7)))

    @classmethod
    def from_state_dict(cls, shapes: dict[str, tuple[int, ...]], **overrides) -> "JodiConfig":
        """Infer the configuration from key shapes; `overrides` give what shapes do not tell.

        Raises ValueError if the keys are not a Jodi transformer's, or num_heads can't be known.
        """
        try:
            hidden, channels, kernel, _ = shapes["x_embedders.0.proj.weight"]
            outputs = shapes["final_layers.0.linear.weight"][0]
            max_length, caption_channels = shapes["y_embedder.y_embedding"]
            mlp_hidden = shapes["blocks.0.mlp.point_conv.conv.weight"][1]
            count = shapes["domain_embedding"][0]
        except KeyError as error:
            raise ValueError(f"not a Jodi transformer: it has no {error}") from None
        except (IndexError, ValueError):
            raise ValueError("not a Jodi transformer: its tensors have other shapes") from None
        patch = round((outputs / channels) ** 0.5)
        mlp_ratio = mlp_hidden / hidden
        if int(hidden * mlp_ratio) < mlp_hidden:    # rounding
            mlp_ratio = math.nextafter(mlp_ratio, math.inf)
        if "num_heads" not in overrides and hidden not in PUBLISHED_TEXT_HEADS:
            raise ValueError(f"hidden size {hidden} is not a published one and the file has no metadata: "
                             "convert it with its configuration (num_heads can't be read from shapes)")
        inferred = dict(
            hidden_size=hidden, in_channels=channels, patch_size=patch, caption_channels=caption_channels,
            patch_embed_kernel=None if kernel == patch else kernel, model_max_length=max_length,
            depth=len({key.split(".")[1] for key in shapes if key.startswith("blocks.")}),
            num_heads=PUBLISHED_TEXT_HEADS.get(hidden), mlp_ratio=mlp_ratio, domains=domain_names(count),
            qk_norm="blocks.0.attn.q_norm.weight" in shapes, cross_norm="blocks.0.cross_attn.q_norm.weight" in shapes,
            y_norm="attention_y_norm.weight" in shapes)
        return cls(**inferred | overrides)
