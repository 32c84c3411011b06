"""What tells one JointNet from another, and what all of them have in common (spec 1.3, 1.6)."""

from dataclasses import asdict, dataclass, fields

# The modality of a branch -> the folder of the published layout, which is also its name in `JointNet` and its files.
BRANCHES = ("unet", "jointnet")
LATENT_FACTOR = 8       # pixels per latent cell
LATENT_SCALE = 0.18215  # of what the autoencoder makes, before the network sees it
LATENT_CHANNELS = 4

# Fields of a published config.json that are not ours to choose; a file that says otherwise is another kind of model.
_COMMON = {
    "in_channels": LATENT_CHANNELS, "out_channels": LATENT_CHANNELS, "act_fn": "silu", "norm_eps": 1e-5,
    "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1, "mid_block_scale_factor": 1,
    "conv_in_kernel": 3, "conv_out_kernel": 3, "mid_block_type": "UNetMidBlock2DCrossAttn",
    "transformer_layers_per_block": 1, "resnet_time_scale_shift": "default", "center_input_sample": False,
    "dual_cross_attention": False, "only_cross_attention": False, "num_attention_heads": None,
    "class_embed_type": None, "addition_embed_type": None, "encoder_hid_dim": None, "time_cond_proj_dim": None,
}
_ATTENDING = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}


@dataclass(frozen=True)
class JointNetConfig:
    """Sizes of both branches, which are alike. The defaults are those of Stable Diffusion 2.1 base.

    domains            names of the two modalities, the picture first
    channels           of the levels, all divisible by norm_groups and by the number of heads
    attention          which levels have attention
    heads              attention heads per level (config.json calls them attention_head_dim)
    layers             residual blocks per level
    text_width         of the text features
    linear_projection  attention is entered through linear layers (otherwise 1x1 convolutions)
    masked_input       the inpaint variant: masks and known latents are inputs, too (spec 1.4)
    sample_size        latent cells per side that it was trained on
    in_channels, latent_factor, latent_scale
                       of the autoencoder: channels of a latent, pixels per latent cell and side, and what latents are
                       multiplied by before the network sees them
    """

    domains: tuple[str, ...] = ("image", "depth")
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)
    heads: tuple[int, ...] = (5, 10, 20, 20)
    layers: int = 2
    text_width: int = 1024
    norm_groups: int = 32
    linear_projection: bool = True
    masked_input: bool = False
    sample_size: int = 64
    in_channels: int = LATENT_CHANNELS
    latent_factor: int = LATENT_FACTOR
    latent_scale: float = LATENT_SCALE

    def __post_init__(self):
        for name in ("domains", "channels", "attention", "heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.domains) != 2 or len(set(self.domains)) != 2:
            raise ValueError(f"JointNet has a picture and one map of it, not the domains {', '.join(self.domains)}")
        if not len(self.channels) == len(self.attention) == len(self.heads) or len(self.channels) < 2:
            raise ValueError(f"{len(self.channels)} levels of channels, {len(self.attention)} of attention and "
                             f"{len(self.heads)} of heads: give the same number, at least 2")
        for width, heads in zip(self.channels, self.heads):
            if width < 1 or heads < 1 or width % self.norm_groups or width % heads:
                raise ValueError(f"{width} channels must be divisible by {self.norm_groups} norm groups and by "
                                 f"{heads} heads")
        counts = self.layers, self.text_width, self.sample_size, self.in_channels, self.latent_factor
        if min(counts) < 1 or self.latent_scale <= 0:
            raise ValueError("layers {}, text width {}, sample size {}, latent channels {} and factor {} must be at "
                             "least 1 and the latent scale {} above 0".format(*counts, self.latent_scale))

    @property
    def skip_channels(self) -> tuple[int, ...]:
        """Channels of the encoder features that become skip connections, in order (spec 1.2)."""
        found = [self.channels[0]]
        for level, width in enumerate(self.channels):
            found += [width] * (self.layers + (level < len(self.channels) - 1))
        return tuple(found)

    # What every joint model tells of itself (`domains.JointConfig`).

    @property
    def caption_channels(self) -> int:
        return self.text_width

    @property
    def input_size(self) -> int:
        return self.sample_size

    @property
    def patch_size(self) -> int:
        return 1

    @property
    def bins(self) -> dict[float, tuple[int, int]]:
        """Sizes from twice as wide to twice as high as the square, of about its area, that all levels divide."""
        unit, side = 2 ** (len(self.channels) - 1), self.sample_size
        flat = [(height, round(side * side / height / unit) * unit) for height in range(unit, side, unit)]
        near = [size for size in (*flat, (side, side)) if size[1] <= 2 * size[0]]
        sizes = sorted({pair for size in near for pair in (size, size[::-1])})
        return {height / width: (height * self.latent_factor, width * self.latent_factor) for height, width in sizes}

    @classmethod
    def from_published(cls, values: dict, masked_input: bool, **ours) -> "JointNetConfig":
        """From a config.json of the published layout; ValueError if it describes a network of another kind.

        masked_input: told by the tensors, as the file is known to be wrong about it (spec 1.6).
        """
        strange = {name: values[name] for name, usual in _COMMON.items() if values.get(name, usual) != usual}
        if values.get("joint_in_channels") not in (None, LATENT_CHANNELS):
            strange["joint_in_channels"] = values["joint_in_channels"]
        if strange:
            raise ValueError("settings that no JointNet on Stable Diffusion 2.1 base has: "
                             + ", ".join(f"{name} {value!r}" for name, value in strange.items()))
        if values.get("prediction_type", "epsilon") != "epsilon":
            raise ValueError(f"it predicts {values['prediction_type']!r}; only epsilon, as of Stable Diffusion 2.1 "
                             "base (512 px), is supported")
        try:
            attention = [_ATTENDING[name] for name in values["down_block_types"]]
            heads = values["attention_head_dim"]
            return cls(channels=values["block_out_channels"], attention=attention,
                       heads=[heads] * len(attention) if isinstance(heads, int) else heads,
                       layers=values["layers_per_block"], text_width=values["cross_attention_dim"],
                       norm_groups=values["norm_num_groups"], linear_projection=values["use_linear_projection"],
                       masked_input=masked_input, sample_size=values.get("sample_size") or cls.sample_size, **ours)
        except KeyError as error:
            raise ValueError(f"no known value for {error}") from error

    @classmethod
    def from_state_dict(cls, shapes: dict[str, tuple], **ours) -> "JointNetConfig":
        """From the tensor shapes of one branch. Heads are 64 channels wide, as in all of Stable Diffusion 2."""
        levels = 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("down_blocks.")), default=-1)
        blocks = [f"down_blocks.{level}" for level in range(levels)]
        if not blocks or "conv_in.weight" not in shapes:
            raise ValueError("no tensors of a U-Net")
        channels = [shapes[f"{block}.resnets.0.conv2.weight"][0] for block in blocks]
        attention = [f"{block}.attentions.0.proj_in.weight" in shapes for block in blocks]
        first = blocks[attention.index(True)] if any(attention) else "mid_block"
        layers = sum(name.startswith("down_blocks.0.resnets.") and name.endswith(".conv1.weight") for name in shapes)
        return cls(channels=channels, attention=attention, heads=[max(1, width // 64) for width in channels],
                   layers=layers, linear_projection=len(shapes[f"{first}.attentions.0.proj_in.weight"]) == 2,
                   text_width=shapes[f"{first}.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1],
                   masked_input="jointnet_masked_latent_conv.weight" in shapes,
                   **{"in_channels": shapes["conv_in.weight"][1]} | ours)

    def unet_settings(self) -> dict:
        """Arguments of a `diffusers.UNet2DConditionModel`."""
        return {name: value for name, value in _COMMON.items()} | {
            "in_channels": self.in_channels, "out_channels": self.in_channels,
            "sample_size": self.sample_size, "block_out_channels": self.channels, "layers_per_block": self.layers,
            "attention_head_dim": self.heads, "cross_attention_dim": self.text_width,
            "norm_num_groups": self.norm_groups, "use_linear_projection": self.linear_projection,
            "down_block_types": tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D"
                                      for attends in self.attention),
            "up_block_types": tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D"
                                    for attends in reversed(self.attention)),
        }

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "JointNetConfig":
        """From `to_dict`, also after JSON; ValueError for names that it does not have."""
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")
        return cls(**values)
