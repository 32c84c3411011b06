"""One TOML file describes a run. Unknown keys are refused before anything is loaded."""

import difflib
import tomllib
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path

from jodi_core.models.jodi_config import JodiConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Toy scenes, encoded once. `bins` maps "HxW" to the share of batches of that size."""

    cache: str = "runs/tiny/cache"
    autoencoder: str = "runs/tiny/autoencoder.safetensors"
    text_encoder: str = "runs/tiny/text_encoder.safetensors"
    bins: dict[str, float] = field(default_factory=lambda: {"128x128": 1.0})
    scenes: int = 16384          # per unit of share
    first_seed: int = 1_000_000  # the autoencoder trains on seeds from 0; the benchmark's start at 10 000 000
    captions_per_scene: int = 2

    def sizes(self) -> dict[tuple[int, int], float]:
        return {tuple(int(side) for side in name.split("x")): share for name, share in self.bins.items()}


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Starts that differ from the original's: with its own a small model needs far longer to use a condition."""

    gate: float = 1.0            # added to the two gate rows of each block's table
    own_place: bool = False      # attention starts at the same place of the other domains (training/start.py)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    muon_lr: float = 2e-3        # block matrices
    adamw_lr: float = 2e-3       # everything else
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: int = 40             # steps, linear
    decay: float = 0.35          # last share of the run, linear to zero
    clip: float = 1.0
    ema: float = 0.999           # reached gradually: min(ema, step / (step + 20))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    output: str = "runs/tiny"
    seed: int = 0
    steps: int = 10_000
    tasks: tuple[str, ...] = ("joint", "control", "perceive")
    batch: int = 4               # scenes per task and step; a step has one role pattern per task
    time_mean: float = 0.0       # of the logit-normal times, before the shift
    time_std: float = 1.0
    average_every: int = 16      # steps between two weight averages of the processes
    log_every: int = 50
    probe_every: int = 500
    save_every: int = 500
    keep: int = 2
    model: JodiConfig = JodiConfig()
    data: DataConfig = DataConfig()
    init: InitConfig = InitConfig()
    optim: OptimConfig = OptimConfig()


def _build(cls, values: dict, where: str):
    kinds = {f.name: f for f in fields(cls)}
    if not isinstance(values, dict):
        raise ValueError(f"{where.rstrip('.')} is a section, but its value is {values!r}")
    for key in values:
        if key not in kinds:
            close = difflib.get_close_matches(key, kinds, 1)
            raise ValueError(f"unknown key {where}{key}" + (f": did you mean {close[0]}?" if close else ""))
    sections = {name: f.default for name, f in kinds.items() if is_dataclass(f.default)}
    return cls(**{key: _build(type(sections[key]), value, f"{key}.") if key in sections else
                  tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def load_config(path: str | Path, overrides: list[str] = ()) -> TrainConfig:
    """Read a TOML file; `overrides` are "section.key=value" with TOML values. ValueError for what cannot be read."""
    values = tomllib.loads(Path(path).read_text())
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"override {item!r} is not key=value")
        *sections, name = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        try:
            target[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"override {item!r}: {error}; text needs quotes inside the argument") from None
    return _build(TrainConfig, values, "")
