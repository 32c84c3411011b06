"""Sizes and parameter names of the deep-compression autoencoder, see `dcae`."""

from dataclasses import asdict, dataclass, fields

import torch

RESIDUAL, ATTENTION = "residual", "attention"
_REFERENCE_KINDS = {"ResBlock": RESIDUAL, "EViTS5_GLU": ATTENTION}
_REFERENCE_SAMPLING = {"downsample": "Conv", "upsample": "InterpolateConv"}


@dataclass(frozen=True)
class DCAEConfig:
    """Sizes of a DC-AE; the defaults are the published f32c32 file.

    `widths`, `encoder_depths`, `decoder_depths` and `kinds` have one entry per stage, finest first; a depth may be 0.
    The picture side is divided by 2 between stages. Latents times `scaling_factor` are what a joint model sees.
    """

    in_channels: int = 3
    latent_channels: int = 32
    widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    encoder_depths: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    decoder_depths: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    kinds: tuple[str, ...] = (RESIDUAL,) * 3 + (ATTENTION,) * 3
    head_dim: int = 32
    norm_eps: float = 1e-5
    scaling_factor: float = 0.41407

    def __post_init__(self):
        for name in ("widths", "encoder_depths", "decoder_depths", "kinds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != len(self.widths):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {len(self.widths)} stages")
        self._check_channels()
        for stage, kind in enumerate(self.kinds):
            if kind not in (RESIDUAL, ATTENTION):
                raise ValueError(f"stage {stage} has block kind {kind!r}: use {RESIDUAL!r} or {ATTENTION!r}")
            if kind == ATTENTION and self.widths[stage] % self.head_dim:
                raise ValueError(f"stage {stage}: width {self.widths[stage]} is not a multiple of the attention "
                                 f"head size {self.head_dim}")

    def _check_channels(self):
        for fine, coarse in zip(self.widths, self.widths[1:]):
            if 4 * fine % coarse:
                raise ValueError(f"neighbouring widths {fine} and {coarse}: 4 * {fine} = {4 * fine} is not a multiple "
                                 f"of {coarse}, so the shortcut between the two stages does not exist")
        if self.widths[-1] % self.latent_channels:
            raise ValueError(f"the last width {self.widths[-1]} is not a multiple of the {self.latent_channels} "
                             "latent channels")

    @property
    def factor(self) -> int:
        """Picture side / latent side."""
        return 2 ** (len(self.widths) - 1)

    @classmethod
    def from_reference(cls, values: dict) -> "DCAEConfig":
        """From the names of the original configuration; ValueError for variants that this class does not build."""
        for name, built in _REFERENCE_SAMPLING.items():
            if values.get(name, built) != built:
                raise ValueError(f"{name} {values[name]!r} is not supported, only {built!r}")
        unknown = sorted(set(values["block_types"]) - set(_REFERENCE_KINDS))
        if unknown:
            raise ValueError(f"block types {', '.join(unknown)} are not supported, only {', '.join(_REFERENCE_KINDS)}")
        return cls(latent_channels=values["latent_channels"], widths=values["width_list"],
                   encoder_depths=values["encoder_depth_list"], decoder_depths=values["decoder_depth_list"],
                   kinds=[_REFERENCE_KINDS[name] for name in values["block_types"]],
                   scaling_factor=values["scaling_factor"])

    @classmethod
    def from_state_dict(cls, shapes: dict, **known) -> "DCAEConfig":
        """Sizes from parameter shapes (name -> tuple) in either naming; `known` sets what shapes cannot tell."""
        if any(".down_blocks." in key for key in shapes):
            meta = {key: torch.empty(tuple(shape), device="meta") for key, shape in shapes.items()}
            shapes = {key: value.shape for key, value in from_diffusers_keys(meta).items()}
        try:
            latent_channels, last = shapes["encoder.project_out.main.op_list.0.conv.weight"][:2]
            first, in_channels = shapes["encoder.project_in.conv.weight"][:2]
        except KeyError as missing:
            raise ValueError(f"not a DC-AE autoencoder: it has no parameter {missing}") from None
        widths, encoder_depths, decoder_depths, kinds = [first], [], [], []
        while True:
            stage = len(widths) - 1
            encoder, decoder = (_blocks(shapes, f"{part}.stages.{stage}.op_list.") for part in ("encoder", "decoder"))
            kinds.append(ATTENTION if ATTENTION in (*encoder, *decoder) else RESIDUAL)
            encoder_depths.append(len(encoder) - encoder.count("down"))
            decoder_depths.append(len(decoder) - decoder.count("up"))
            if "down" not in encoder:
                break
            widths.append(shapes[f"encoder.stages.{stage}.op_list.{len(encoder) - 1}.main.conv.weight"][0])
        if widths[-1] != last:
            raise ValueError(f"the last of {len(widths)} stages is {widths[-1]} wide, but the latent layer "
                             f"reads {last}")
        return cls(in_channels=in_channels, latent_channels=latent_channels, widths=widths,
                   encoder_depths=encoder_depths, decoder_depths=decoder_depths, kinds=kinds, **known)

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "DCAEConfig":
        """Inverse of `to_dict`; ValueError names entries that are not settings of this class."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown autoencoder setting {', '.join(unknown)}: the file was written by a newer "
                             "version")
        return cls(**values)


_BLOCK_MARKS = {"main.conv.weight": "down", "main.conv.conv.weight": "up", "main.conv1.conv.weight": RESIDUAL,
                "context_module.main.qkv.conv.weight": ATTENTION}


def _blocks(shapes: dict, prefix: str) -> list[str]:
    """What each entry of one stage's block list is, in order."""
    found = {int(key[len(prefix):].partition(".")[0]): _BLOCK_MARKS[key[len(prefix):].partition(".")[2]]
             for key in shapes
             if key.startswith(prefix) and key[len(prefix):].partition(".")[2] in _BLOCK_MARKS}
    return [found[index] for index in sorted(found)]


# One entry of a block list: original name -> diffusers name. The two down/up names differ in the original only.
_INNER_NAMES = {
    "main.conv1.conv": "conv1", "main.conv2.conv": "conv2", "main.conv2.norm": "norm",
    "main.conv": "conv", "main.conv.conv": "conv",
    "context_module.main.aggreg.0.0": "attn.to_qkv_multiscale.0.proj_in",
    "context_module.main.aggreg.0.1": "attn.to_qkv_multiscale.0.proj_out",
    "context_module.main.qkv.conv": "attn.to_q",
    "context_module.main.proj.conv": "attn.to_out", "context_module.main.proj.norm": "attn.norm_out",
    "local_module.main.inverted_conv.conv": "conv_out.conv_inverted",
    "local_module.main.depth_conv.conv": "conv_out.conv_depth",
    "local_module.main.point_conv.conv": "conv_out.conv_point", "local_module.main.point_conv.norm": "conv_out.norm",
}
_ENCODER_INNER = {new: old for old, new in _INNER_NAMES.items() if old != "main.conv.conv"}
_DECODER_INNER = {new: old for old, new in _INNER_NAMES.items() if old != "main.conv"}
_ENDS = {
    "encoder.conv_in": "encoder.project_in.conv", "encoder.conv_out": "encoder.project_out.main.op_list.0.conv",
    "decoder.conv_in": "decoder.project_in.main.conv", "decoder.norm_out": "decoder.project_out.op_list.0",
    "decoder.conv_out": "decoder.project_out.op_list.2.conv",
}


def _original_name(key: str) -> str:
    """Original parameter name of a diffusers one (`to_q` stands for the joined q, k, v)."""
    stem, _, kind = key.rpartition(".")
    if stem in _ENDS:
        return f"{_ENDS[stem]}.{kind}"
    parts = stem.split(".", 4)
    inner = _ENCODER_INNER if parts[0] == "encoder" else _DECODER_INNER
    if len(parts) < 5 or parts[1] not in ("down_blocks", "up_blocks") or parts[4] not in inner:
        raise ValueError(f"{key} is not a parameter of a diffusers AutoencoderDC")
    return f"{parts[0]}.stages.{parts[2]}.op_list.{parts[3]}.{inner[parts[4]]}.{kind}"


def from_diffusers_keys(state_dict: dict) -> dict:
    """A diffusers `AutoencoderDC` state dict in the original layout; one already in it comes back unchanged.

    q, k and v are joined along dimension 0 and the plain matrices become 1x1 kernels. ValueError names a parameter
    that belongs to neither layout.
    """
    if any(".stages." in key for key in state_dict):
        return state_dict
    original = {}
    for key, value in state_dict.items():
        if key.endswith((".to_k.weight", ".to_v.weight")):
            continue
        if key.endswith(".to_q.weight"):
            value = torch.cat([state_dict[key.replace(".to_q.", f".to_{name}.")] for name in "qkv"])
        original[_original_name(key)] = value[:, :, None, None] if value.ndim == 2 else value
    return original
