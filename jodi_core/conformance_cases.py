"""Recordings that need no network: tables, time grid and solver, post-processing, geometry, draws, prompts."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from .buckets import bin_batches, pass_order
from .domains import JODI_BINS, nearest_bin
from .fitting import cover_size
from .models.jodi import position_table, time_features
from .pictures import fit_for_training, postprocess
from .role_sampling import caption_chances, role_chances
from .sampling import flow_timesteps, guided, sample_flow_dpm
from .segmentation import COARSE_CLASS, PALETTE_12, PALETTE_150, nearest_class, paint_classes
from .text import clean_prompt, parse_size_flags, selected_positions

FORWARD = 2e-6  # also tables, autoencoder and post-processing
SAMPLED, SAMPLED_WITH_GUIDANCE = 2e-5, 1e-4
PIPELINE = 1e-4
REDUCED = 3e-2  # recordings in bfloat16 or float16
EXACT = 0.0
SIGMAS = 5.0  # of a random count, in standard deviations

TOY_VELOCITY = "v = a*x + b*(t/1000) + c*y"


@dataclass(frozen=True)
class Recording:
    """The files NAME.json and NAME.*safetensors in a folder. device: where networks run on them."""

    folder: Path
    name: str
    device: str = "cpu"

    def values(self) -> dict:
        return json.loads((self.folder / f"{self.name}.json").read_text(encoding="utf-8"))

    def tensors(self, part: str = "") -> dict[str, Tensor]:
        return {name: value.to(self.device)
                for name, value in load_file(self.folder / f"{self.name}{part}.safetensors").items()}


@dataclass(frozen=True)
class Row:
    """One comparison. The difference is relative: largest absolute difference over largest absolute recorded value."""

    name: str
    difference: float = inf
    tolerance: float = EXACT
    note: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error and self.difference <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAILED"
        numbers = f"{'-':>10} {'-':>10}" if self.error else f"{self.difference:10.2e} {self.tolerance:10.0e}"
        return f"{self.name:<52} {numbers}  {verdict}  {self.error or self.note}".rstrip()


def compare(name: str, ours: Tensor, recorded: Tensor, tolerance: float, note: str = "") -> Row:
    """A row for two tensors. Another shape is an infinite difference; NaN anywhere fails."""
    if ours.shape != recorded.shape:
        return Row(name, inf, tolerance, f"shape {tuple(ours.shape)}, recorded {tuple(recorded.shape)}")
    if recorded.dtype in (torch.bfloat16, torch.float16):
        tolerance = max(tolerance, REDUCED)
    ours, recorded = ours.cpu().double(), recorded.cpu().double()
    scale = recorded.abs().max().item()
    return Row(name, (ours - recorded).abs().max().item() / (scale or 1.0), tolerance, note)


def equal(name: str, ours, recorded, note: str = "") -> Row:
    """A row for things that must be the same."""
    return Row(name, EXACT) if ours == recorded else Row(name, inf, note=f"{ours}, recorded {recorded} {note}".strip())


def sampling_tolerance(guidance: float) -> float:
    return SAMPLED if guidance == 1 else SAMPLED_WITH_GUIDANCE


def position_tables(recording: Recording) -> Iterator[Row]:
    tensors = recording.tensors()
    for table in recording.values()["tables"]:
        ours = position_table(table["dim"], table["h"], table["w"], table["base_size"], table["pe_interpolation"])
        yield compare(f"{recording.name} {table['name']}", ours, tensors[table["name"]], FORWARD)
    if "timestep.t" in tensors:
        ours = time_features(tensors["timestep.t"])
        yield compare(f"{recording.name} time features", ours, tensors["timestep.freq256"], FORWARD)


def toy_sampler(recording: Recording) -> Iterator[Row]:
    """The solver alone, on a velocity given by a formula."""
    values, tensors = recording.values(), recording.tensors()
    if not values["velocity"].startswith(TOY_VELOCITY):
        raise ValueError(f"the velocity is {values['velocity']!r}, only {TOY_VELOCITY!r} is known")
    a, b, c = (values[name] for name in "abc")
    texts = [tensors[name].view(-1, *[1] * (tensors["z"].ndim - 1)) for name in ("uncond", "cond")]
    for case in values["cases"]:
        name, guidance, recorded = case["name"], case["guidance"], tensors[f"{case['name']}.traj"]
        times = flow_timesteps(case["steps"], case["flow_shift"])
        yield compare(f"{recording.name} {name} times", times, tensors[f"{name}.timesteps"], FORWARD)
        branches = guided(lambda x, t: torch.cat([a * x + b * t + c * y for y in texts]), guidance)
        states = trajectory(branches, tensors["z"], times)
        yield compare(f"{recording.name} {name} states", states, recorded, sampling_tolerance(guidance))


def trajectory(velocity, noise: Tensor, times: Tensor) -> Tensor:
    """The start, then the state after each step: (steps + 1, *noise.shape)."""
    states = []
    last = sample_flow_dpm(velocity, noise, times, callback=lambda step, steps, x, x0: states.append(x))
    return torch.stack([*states, last])


def post_processing(recording: Recording) -> Iterator[Row]:
    """Per-domain results, and class colours both ways. Entries that are not named otherwise are domains."""
    tensors = recording.tensors()
    palettes = {"12": PALETTE_12, "150": PALETTE_150}
    for name, recorded in tensors.items():
        title, (kind, _, part) = f"{recording.name} {name}", name.partition(".")
        if name.startswith("x") or name.startswith("index2color") and part == "index":
            continue
        if name == "map_index_150_to_12":
            yield compare(title, COARSE_CLASS, recorded, EXACT)
        elif kind.startswith("index2color"):
            classes = tensors[f"{kind}.index"]
            yield compare(title, paint_classes(classes, palettes[kind.removeprefix("index2color")]), recorded, FORWARD)
        elif kind.startswith("seg") and part:
            palette = palettes[kind.removeprefix("seg")]
            classes = nearest_class(tensors["x_seg"], palette)
            yield compare(title, classes, recorded, EXACT) if part == "index" else compare(
                title, paint_classes(classes, palette), recorded, FORWARD)
        elif name == "normal_zero_pixel":
            yield compare(title, postprocess("normal", tensors["x_zero_pixel"]), recorded, FORWARD)
        else:
            picture = tensors["x_seg" if name == "segmentation" else "x"]
            yield compare(title, postprocess(name, picture), recorded, FORWARD)


def training_transform(recording: Recording) -> Iterator[Row]:
    tensors = recording.tensors()
    for name in sorted(name.removesuffix(".u8") for name in tensors if name.endswith(".u8")):
        picture, recorded = Image.fromarray(tensors[f"{name}.u8"].cpu().numpy()), tensors[f"{name}.out"]
        yield compare(f"{recording.name} {name}", fit_for_training(picture, tuple(recorded.shape[-2:])), recorded,
                      FORWARD)


def _bins(table: dict) -> dict[float, tuple[int, int]]:
    return {float(ratio): (int(height), int(width)) for ratio, (height, width) in table.items()}


def geometry(recording: Recording) -> Iterator[Row]:
    values, name = recording.values(), recording.name
    yield equal(f"{name} bins", JODI_BINS, bins := _bins(values["bins_1024"]))
    for case in values["cases"]:
        size = case["height"], case["width"]
        chosen = nearest_bin(*size, bins)
        yield equal(f"{name} {size[0]}x{size[1]}", [bins[case["ratio"]], chosen, chosen, cover_size(size, chosen)],
                    [chosen, *(tuple(case[key]) for key in ("bin", "pipeline_bin", "resize"))])
    for case in values["small_transform"]:
        chosen = nearest_bin(case["height"], case["width"], _bins(values["small_bins"]))
        yield equal(f"{name} {case['name']}", chosen, tuple(case["out"]))
    batches = values["batch_sampler"]
    count, recorded = len(batches["sizes"]), batches["first_batches"]
    epoch = batches["sampler_epoch"]
    yield equal(f"{name} order of a pass", pass_order(count, epoch), batches["sampler_first_pass"])
    ours = []
    while len(ours) < len(recorded):
        ours += bin_batches(pass_order(count, epoch), batches["sizes"], batches["batch_size"], bins)
        epoch += 1
    yield equal(f"{name} batches", ours[:len(recorded)], recorded)


def roles(recording: Recording) -> Iterator[Row]:
    """Random counts: nothing outside the possible rows, and chi-square within its scatter, in standard deviations."""
    values = recording.values()
    for sample in values["samples"]:
        present = [name in sample["present"] or name == "openpose" for name in values["conditions"]]
        chances = {"".join(str(int(role)) for role in row): chance
                   for row, chance in role_chances(present, values["tasks"]).items()}
        title = f"{recording.name} {'+'.join(sample['present']) or 'nothing'}"
        yield _count_row(title, sample["counts"], chances, sample["draws"])
        chances = caption_chances(list(sample["captions"]), values["caption_weights"])
        yield _count_row(f"{title} captions", sample["captions"], chances, sample["draws"])


def _count_row(name: str, counts: dict[str, int], chances: dict[str, float], draws: int) -> Row:
    impossible = set(counts) - set(chances)
    if impossible or sum(counts.values()) != draws:
        return Row(name, note=f"{sum(counts.values())} of {draws} counted, never drawn by us: {sorted(impossible)}")
    chi_square = sum((counts.get(row, 0) - draws * chance) ** 2 / (draws * chance) for row, chance in chances.items())
    freedom = max(1, len(chances) - 1)
    return Row(name, abs(chi_square - freedom) / sqrt(2 * freedom), SIGMAS, f"sigmas, {len(chances)} outcomes")


def text(recording: Recording) -> Iterator[Row]:
    values = recording.values()
    for case in values["prompts"]:
        flags = parse_size_flags(case["prompt"])
        ours = [clean_prompt(case["prompt"]), flags.ratio, list(flags.bin_hw), list(flags.custom_hw)]
        yield equal(f"{recording.name} {case['prompt']!r}", ours,
                    [case[key] for key in ("cleaned_stripped", "ratio", "bin_hw", "custom_hw")])
    for case in values["select_index"]:
        positions = selected_positions(case["chi_tokens"], values["model_max_length"])
        ours = [positions[:len(case["first"])], positions[-len(case["last"]):], len(positions), positions[-1] + 1]
        yield equal(f"{recording.name} positions after {case['chi_tokens']} tokens", ours,
                    [case[key] for key in ("first", "last", "count", "total_length")])
