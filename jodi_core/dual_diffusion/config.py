"""Sizes of a Dual Diffusion transformer (spec 2.2), from its `config.json` or from the shapes of its tensors."""

from dataclasses import asdict, dataclass, fields

HEAD_DIM = 64    # of every published model; shapes do not tell it


@dataclass(frozen=True, kw_only=True)
class DualDiffusionConfig:
    """Field names as in `config.json`; the defaults are what a missing key means there. See `PUBLISHED` for the models.

    vocab_size              classes of the text head; the last one is the mask
    sample_size             latent side for which the position table is scaled
    joint_attention_dim     width of the T5 states
    caption_projection_dim  width of the network: num_attention_heads x attention_head_dim
    pos_embed_max_size      side of the position table, in patches: no picture is larger
    """

    vocab_size: int
    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = HEAD_DIM
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1152
    pos_embed_max_size: int = 96

    def __post_init__(self):
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        small = [name for name, value in values.items() if not isinstance(value, int) or value < 1]
        if small:
            raise ValueError(f"{', '.join(small)} must be a whole number of at least 1")
        heads, head_dim, size = self.num_attention_heads, self.attention_head_dim, self.caption_projection_dim
        if heads * head_dim != size:
            raise ValueError(f"caption_projection_dim {size} must be num_attention_heads x attention_head_dim = "
                             f"{heads} x {head_dim} = {heads * head_dim}")
        if size % 4:
            raise ValueError(f"caption_projection_dim {size} is not divisible by 4, as its position table needs")
        if self.sample_size % self.patch_size:
            raise ValueError(f"sample_size {self.sample_size} is not divisible by patch_size {self.patch_size}")

    @property
    def hidden_size(self) -> int:
        return self.caption_projection_dim

    @property
    def mask_id(self) -> int:
        """The token of a place whose word is not known: the last class of the text head (spec 4.1)."""
        return self.vocab_size - 1

    def to_dict(self) -> dict:
        """What `config.json` holds of it; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "DualDiffusionConfig":
        """From `config.json`, whose other keys have no effect on the network. ValueError without vocab_size."""
        if "vocab_size" not in values:
            raise ValueError("the configuration has no vocab_size: it is another model's, Stable Diffusion 3's perhaps")
        known = {f.name: values[f.name] for f in fields(cls) if values.get(f.name) is not None}
        return cls(**{"out_channels": known.get("in_channels", 16)} | known)

    @classmethod
    def from_state_dict(cls, shapes: dict[str, tuple[int, ...]], **told) -> "DualDiffusionConfig":
        """From tensor shapes (names of spec 2.3), with heads of 64; `told` gives what shapes do not tell.

        ValueError if the tensors are not those of a Dual Diffusion transformer.
        """
        try:
            vocab_size, size = shapes["text_proj_out.weight"]
            _, in_channels, patch_size, _ = shapes["pos_embed.proj.weight"]
            outputs, joint_dim = shapes["image_proj_out.weight"][0], shapes["context_embedder.weight"][1]
            positions = shapes["pos_embed.pos_embed"][1]
        except KeyError as missing:
            raise ValueError(f"not a Dual Diffusion transformer: it has no {missing}") from None
        except (IndexError, ValueError):
            raise ValueError("not a Dual Diffusion transformer: its tensors have other shapes") from None
        layers = {name.split(".")[1] for name in shapes if name.startswith("transformer_blocks.")}
        return cls(**dict(
            vocab_size=vocab_size, patch_size=patch_size, in_channels=in_channels,
            out_channels=outputs // patch_size ** 2, num_layers=len(layers),
            num_attention_heads=size // told.get("attention_head_dim", HEAD_DIM), joint_attention_dim=joint_dim,
            caption_projection_dim=size, pos_embed_max_size=round(positions ** 0.5)) | told)


# Both published models, dual_diff_sd3_512_base and dual_diff_sd3_512_sft: their keys do not tell them apart.
PUBLISHED = DualDiffusionConfig(vocab_size=32100, num_layers=24, num_attention_heads=24, caption_projection_dim=1536,
                                pos_embed_max_size=192)
