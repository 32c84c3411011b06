"""Configurations from TOML files and back. What is unknown is refused, with the closest known key."""

import difflib
import json
import tomllib
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

from .config import FAMILIES, SetConfig, TrainConfig, one_of


def build(cls, values: dict, where: str = ""):
    """A configuration dataclass from nested TOML values. ValueError for a key or a type that it does not know."""
    if not isinstance(values, dict):
        raise ValueError(f"{where.rstrip('.')} is a section, but its value is {values!r}")
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            raise ValueError(f"unknown key {where}{key}" + (f": did you mean {where}{close[0]}?" if close else ""))
    if cls is TrainConfig:
        family = values.get("family", TrainConfig.family)
        one_of("family", family, tuple(FAMILIES))
        values = values | {"model": build(FAMILIES[family].model, values.get("model", {}), "model.")}
    return cls(**{key: convert(known[key], value, where + key) for key, value in values.items()})


def convert(known, value, name: str):
    """A TOML value as the field wants it."""
    if is_dataclass(value):
        return value
    if is_dataclass(known.default):
        return build(type(known.default), value, f"{name}.")
    if known.name == "sets":
        return tuple(build(SetConfig, item, f"{name}.") for item in value)
    if isinstance(value, list):
        return tuple(value)
    wanted = known.type if isinstance(known.type, type) else None
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted in (int, float, str, bool) and type(value) is not wanted:
        raise ValueError(f"{name} = {value!r} is not {wanted.__name__}")
    return value


def load_config(path: str | Path, overrides: list[str] = ()) -> TrainConfig:
    """Read a TOML file; `overrides` are "section.key=value" with TOML values. ValueError for what cannot be read."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
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
    return build(TrainConfig, values)


def to_dict(config) -> dict:
    return asdict(config)


def differences(before: dict, config: TrainConfig) -> list[str]:
    """What a configuration changes in one that was read back from JSON: "optim.name was 'adamw' and is 'came'"."""
    old, new = flat(before), flat(json.loads(json.dumps(to_dict(config))))
    return [f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in old | new if old.get(key) != new.get(key)]


def flat(values: dict, where: str = "") -> dict:
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{where}{key}.") if isinstance(value, dict) else {where + key: value}
    return found
