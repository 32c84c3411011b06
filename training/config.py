"""What a run is told. What is contradictory is refused before anything is loaded; `config_file` reads it from TOML."""

import difflib
import math
from dataclasses import dataclass, field, fields

from jodi_core.jointnet.config import JointNetConfig
from jodi_core.models.jodi_config import JodiConfig

from .config_families import FAMILIES, FAMILIES_WITH, TASKS
from .dual_config import DualTrainingConfig

OPTIMIZERS = ("adamw", "adamw_8bit", "came", "came_8bit", "prodigy", "muon")
OPTIMIZERS_WITH = {    # keys of [optim] that only some optimisers have
    "eps": ("adamw", "adamw_8bit", "prodigy", "muon"),
    "muon_lr": ("muon",),
    "min_8bit": ("adamw_8bit", "came_8bit"),
    "block_rows": ("came_8bit",),
}
SHARDED = ("adamw", "came")    # the others need whole tensors


def one_of(section: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, 1)
        raise ValueError(f"{section} = {value!r}: use one of {', '.join(choices)}"
                         + (f"; did you mean {close[0]}?" if close else ""))


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """Where the weights come from.

    kind: "jodi" a joint model, "sana" the text-to-image model that Jodi was made from, "nothing" initial values of
    [model] (which also sizes a joint model from Sana). Of JointNet: "jointnet", "stable_diffusion" a U-Net that both
    branches are copies of, "nothing". Of Dual Diffusion: "dual_diffusion", "sd3" the transformer of Stable Diffusion 3
    medium, "nothing". weights, autoencoder, text_encoder: a file or a folder, "tiny" or "published".
    """

    kind: str = "jodi"
    weights: str = "published"
    autoencoder: str = "published"
    text_encoder: str = "published"
    extend: dict[str, str] = field(default_factory=dict)    # new domain = domain whose layers it starts from
    gate: float = 0.0            # nothing: added to the gates of attention and feed-forward of each block
    own_place: bool = False      # nothing: attention starts at the same place of the other domains
    pass_through: bool = False   # jointnet, nothing: at first the predicted noise is the noisy latent
    mask_embedding: str = ""     # dual_diffusion: the text encoder's row of the mask token, if it is a file of its own

    def __post_init__(self):
        if self.kind != "nothing" and (self.gate or self.own_place or self.pass_through):
            raise ValueError(f'start.gate, start.own_place and start.pass_through shape a start from nothing, but '
                             f'start.kind is "{self.kind}"')


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """One data set: a folder with metadata.jsonl, or tar shards of one (docs/training.md); of Dual Diffusion also a
    JSON list (lists.py).

    path of shards: "shard.tar", "set/shard-{000000..000012}.tar", also with an address in front: "s3://bucket/...".
    """

    path: str
    split: str = ""              # of a folder: reads metadata.SPLIT.jsonl
    repeat: int = 1
    weight: float = 1.0          # samples are drawn in proportion to weight * repeat, of all sets; none is left out
    captions: dict[str, float] = field(default_factory=dict)    # caption source = weight; empty: all alike
    root: str = ""               # of a JSON list: the folder that its paths start in; empty: that of the list
    tasks: tuple[str, ...] = ()  # dual_diffusion: what it is used for; empty: all that its samples can be

    def __post_init__(self):
        if self.root and not self.path.endswith(".json"):
            raise ValueError(f"data.sets: {self.path}: root is of JSON lists; other sets have their paths in their "
                             "folder")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"data.sets: {self.path}: weight {self.weight} must be above 0; to leave the set out, "
                             "remove it from the configuration")
        if self.split and self.path.endswith(".tar"):
            raise ValueError(f"data.sets: {self.path}: split is of folders, but these are tar shards; pack each split "
                             "by itself")
        if self.repeat < 1 or any(weight < 0 for weight in self.captions.values()):
            raise ValueError(f"data.sets: {self.path}: repeat {self.repeat} must be at least 1 and the weights of "
                             f"captions {self.captions} not negative")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    sets: tuple[SetConfig, ...] = ()
    cache: str = ""              # folder for latents and text features; empty: encoded whenever they are read
    empty_pose: bool = True      # a missing openpose label is the black picture of "nobody"
    segmentation: str = "nearest"    # how class colours are resized; "bicubic" as the original
    min_side: int = 0            # dual_diffusion: smaller pictures are left out; the original's 256, of shards 100
    on_error: str = "skip"       # a sample that cannot be read: "skip" takes the next one of its bin, or "stop"

    def __post_init__(self):
        one_of("data.segmentation", self.segmentation, ("nearest", "bicubic"))
        one_of("data.on_error", self.on_error, ("skip", "stop"))
        for part in self.sets:
            if "://" in part.path and not self.cache:
                raise ValueError(f"data.sets: {part.path} is remote, so an index of it has to be kept: name a folder "
                                 "as data.cache")


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Drawn scenes in place of data.sets, encoded once. `bins` maps "HxW" to the share of scenes of that size."""

    scenes: int = 0              # per unit of share; 0: no toy scenes
    cache: str = "runs/tiny/cache"
    bins: dict[str, float] = field(default_factory=lambda: {"128x128": 1.0})
    first_seed: int = 1_000_000  # the autoencoder trains on seeds from 0; the benchmark's start at 10 000 000
    captions_per_scene: int = 2

    def sizes(self) -> dict[tuple[int, int], float]:
        return {tuple(int(side) for side in name.split("x")): share for name, share in self.bins.items()}


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """LoRA and DoRA: low-rank changes of the layers whose name matches one of `targets` (shell patterns)."""

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ("blocks.*.attn.*", "blocks.*.cross_attn.*", "blocks.*.mlp.*")

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"adapter.rank is {self.rank}, but must be at least 1")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Noise levels and weights. The values of the original are the defaults, except exact_time."""

    times: str = "logit_normal"  # or "uniform", "mode"
    mean: float = 0.0
    std: float = 1.0
    mode_scale: float = 1.29
    exact_time: bool = False     # True: the model is told 1000 sigma and not its integer part
    share: float = 1.0           # loss of a sample ~ (generated domains / all) ** share
    domains: str = "equal"       # or "inverse_std": quiet domains count as much as loud ones
    weighting: str = "noise"     # jointnet: of noise levels, as the error of the noise has it; or "velocity", times
                                 # 1 + sigma^2, for models so small that layout at high levels is lost otherwise
    caption_dropout: float = 0.1 # jointnet, dual_diffusion: share of captions in whose place the empty one stands
    text_weight: float = 0.2     # dual_diffusion: of the loss of texts beside that of pictures; 1.0 for tuning

    def __post_init__(self):
        one_of("loss.times", self.times, ("logit_normal", "uniform", "mode"))
        one_of("loss.domains", self.domains, ("equal", "inverse_std"))
        one_of("loss.weighting", self.weighting, ("noise", "velocity"))
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"loss.caption_dropout is {self.caption_dropout}, but must be from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    name: str = "adamw"          # or "adamw_8bit", "came", "came_8bit", "prodigy" (finds its rate), "muon" (block
                                 # matrices; the rest by AdamW)
    lr: float = 1e-4             # prodigy: a factor on the rate it finds, about 1
    scale_lr: bool = False       # times sqrt(batch / 256), as the original
    betas: tuple[float, ...] = (0.9, 0.999)    # came: three, the original's are 0.9, 0.999, 0.9999
    eps: float = 1e-8            # not of came
    weight_decay: float = 0.0
    muon_lr: float = 2e-2        # muon: rate of the block matrices; lr is AdamW's for the rest
    min_8bit: int = 16384        # adamw_8bit, came_8bit: states of smaller tensors are kept in float32
    block_rows: int = 2048       # came_8bit: rows of a matrix that share a range of values
    clip: float = 1.0            # gradient norm; 0: none
    schedule: str = "constant"   # or "linear", "cosine", "wsd" (warm-up, stable, decay)
    warmup: int = 500            # steps, linear
    decay: float = 0.2           # wsd: last share of the run
    floor: float = 0.0           # of the rate, at the end of linear, cosine and wsd

    def __post_init__(self):
        one_of("optim.name", self.name, OPTIMIZERS)
        self.check_keys()
        if self.block_rows < 1:
            raise ValueError(f"optim.block_rows is {self.block_rows}, but must be at least 1")
        one_of("optim.schedule", self.schedule, ("constant", "linear", "cosine", "wsd"))

    def check_keys(self) -> None:
        """ValueError for values that the chosen optimiser does not use, or cannot."""
        defaults = {f.name: f.default for f in fields(self)}
        for key, users in OPTIMIZERS_WITH.items():
            if self.name not in users and getattr(self, key) != defaults[key]:
                raise ValueError(f'optim.{key} = {getattr(self, key)} is of {", ".join(users)}, but optim.name is '
                                 f'"{self.name}": leave it out')
        averages = 3 if self.name.startswith("came") else 2
        if len(self.betas) != averages:
            raise ValueError(f'optim.betas has {len(self.betas)} values, but "{self.name}" takes {averages}'
                             + (": the original's are [0.9, 0.999, 0.9999]" if averages == 3 else ""))
        if self.name == "prodigy" and self.lr < 0.01:
            raise ValueError(f'optim.lr = {self.lr}, but "prodigy" finds the rate itself and lr is a factor on it: '
                             "use 1.0")


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    device: str = "auto"         # "cuda", "cpu"
    precision: str = "bf16"      # autocast over float32 weights; "pure_bf16": weights, gradients too; or "float32"
    rounding: str = "stochastic" # pure_bf16: of the weights; or "kahan", with 2 more bytes per weight
    workers: int = 0             # processes that read samples; 0: the training process itself
    shard: bool = False          # FSDP2 in place of copies of the model
    recompute: int = 0           # every n-th block is computed again in the backward pass, to save memory; 0: none
    compile: bool = False        # the blocks, one graph for all of them

    def __post_init__(self):
        one_of("speed.precision", self.precision, ("float32", "bf16", "pure_bf16"))
        one_of("speed.rounding", self.rounding, ("stochastic", "kahan"))
        if self.rounding == "kahan" and self.precision != "pure_bf16":
            raise ValueError(f'speed.rounding is of bfloat16 weights, but speed.precision is "{self.precision}": use '
                             '"pure_bf16", or leave it out')
        if self.shard and self.precision == "pure_bf16":
            raise ValueError('speed.precision = "pure_bf16" rounds whole tensors, but speed.shard splits them: use '
                             '"bf16"')


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    every: int = 500             # steps
    minutes: float = 0.0         # and after so many minutes; 0: only by steps
    keep: int = 3                # newest
    keep_every: int = 0          # and those of every so many steps; 0: none
    resume: bool = True          # from the newest valid checkpoint of the output folder
    hours: float = 0.0           # end with a checkpoint after so long; 0: no limit


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """What else may go wrong, beside data.on_error. OUTPUT/faults.jsonl names every fault."""

    on_nan: str = "stop"         # a loss or gradient that is no number; "skip" leaves the step out
    nan_in_row: int = 20         # skip: more such steps one after the other end the run
    restarts: int = 3            # of data-loader workers that die while one micro-batch is awaited

    def __post_init__(self):
        one_of("faults.on_nan", self.on_nan, ("stop", "skip"))
        if self.nan_in_row < 1 or self.restarts < 0:
            raise ValueError(f"faults.nan_in_row is {self.nan_in_row} and must be at least 1; faults.restarts is "
                             f"{self.restarts} and must not be negative")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Losses, pictures and metrics on samples that are not trained on (docs/training.md)."""

    every: int = 0               # steps, and before the first and after the last; 0: never
    sets: tuple[SetConfig, ...] = ()
    samples: int = 64            # whose loss is measured, with each task
    pictures: int = 4            # of them that each task makes pictures of; 0: none
    steps: int = 20              # of sampling
    guidance: float = 4.5        # joint, control

    def __post_init__(self):
        if bool(self.every) != bool(self.sets):
            raise ValueError(f"evaluation.every is {self.every} and evaluation.sets names {len(self.sets)} data sets: "
                             "give both or neither")
        if min(self.samples, self.steps) < 1 or self.pictures < 0:
            raise ValueError(f"evaluation: samples {self.samples} and steps {self.steps} must be at least 1, pictures "
                             f"{self.pictures} not negative")


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    every: int = 20              # steps per log line
    tensorboard: bool = True     # event files in OUTPUT/tensorboard, if the package is there
    wandb: str = ""              # project of Weights & Biases; empty: none


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    family: str = "jodi"         # or "jointnet", "dual_diffusion": says what [model] is
    output: str = "runs/new"
    seed: int = 0
    steps: int = 10_000
    mode: str = "full"           # jodi: or "lora", "dora", "domains" (only what start.extend adds); jointnet: or
                                 # "map_branch" (of the picture's U-Net only the layers of the exchange);
                                 # dual_diffusion: or "mask_embedding" (also the text encoder's row of the mask token),
                                 # "text_encoder" (also all of that)
    tasks: tuple[str, ...] = TASKS    # jointnet: also "inpaint"; dual_diffusion: "picture" from text, "text" from
                                 # picture; one that is named twice comes twice as often
    in_turn: bool = False        # tasks one after the other by micro-batch, each with one role pattern; else by sample
    batch: int = 32              # samples per step, of all processes together
    micro_batch: int = 4         # samples per forward pass of a process
    ema: float = 0.0             # decay of the averaged weights, reached gradually; 0: none
    start: StartConfig = StartConfig()
    model: JodiConfig | JointNetConfig | DualTrainingConfig = JodiConfig()
    data: DataConfig = DataConfig()
    toy: ToyConfig = ToyConfig()
    adapter: AdapterConfig = AdapterConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    speed: SpeedConfig = SpeedConfig()
    save: SaveConfig = SaveConfig()
    faults: FaultsConfig = FaultsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    watch: WatchConfig = WatchConfig()

    def __post_init__(self):
        self.check_family()
        self.check_mode()
        if self.data.sets and not self.data.cache and self.speed.workers:
            raise ValueError("data.cache is empty, so pictures are encoded in the training process: set "
                             f"speed.workers = 0 instead of {self.speed.workers}, or name a cache")
        if self.speed.shard and self.optim.name not in SHARDED:
            raise ValueError(f'optim.name = "{self.optim.name}" needs whole matrices, but speed.shard splits them: use '
                             f'{" or ".join(SHARDED)}, or speed.shard = false')
        if self.speed.shard and not self.in_turn:
            raise ValueError("speed.shard needs in_turn = true: processes that share a model must all evaluate it "
                             "equally often, so each micro-batch has one role pattern")
        if self.speed.precision == "pure_bf16" and self.optim.name == "prodigy":
            raise ValueError('speed.precision = "pure_bf16" takes one tensor after the other, but optim.name = '
                             '"prodigy" looks at all of them: use speed.precision = "bf16"')

    def check_family(self) -> None:
        """ValueError for what the chosen family does not have."""
        one_of("family", self.family, tuple(FAMILIES))
        own = FAMILIES[self.family]
        one_of("start.kind", self.start.kind, own.starts)
        one_of("mode", self.mode, own.modes)
        for task in self.tasks:
            one_of("tasks", task, own.tasks)
        for name, families in FAMILIES_WITH.items():
            section, _, key = name.partition(".")
            part = getattr(self, section)
            if self.family not in families and getattr(part, key) != getattr(type(part)(), key):
                raise ValueError(f'{name} = {getattr(part, key)} is of family = "{families[0]}", but family is '
                                 f'"{self.family}": leave it out')
        parts = ("weights", "autoencoder", "text_encoder")[self.start.kind == "nothing":]
        unnamed = [part for part in parts if getattr(self.start, part) == "published"]
        if self.family == "jointnet" and unnamed:
            raise ValueError(f'start.{unnamed[0]} = "published": the files of JointNet and Stable Diffusion 2.1 have '
                             "no address that is known here; name a file or a folder")
        for part in self.data.sets if self.family != "dual_diffusion" else ():
            if part.tasks or part.path.endswith(".json"):
                raise ValueError(f'data.sets: {part.path}: JSON lists, and tasks of a set, are of family = '
                                 '"dual_diffusion"')
        if self.family == "dual_diffusion":
            self.check_dual_diffusion()

    def check_dual_diffusion(self) -> None:
        for part in self.data.sets:
            for task in part.tasks:
                one_of("data.sets.tasks", task, FAMILIES[self.family].tasks)
        wanted = ("weights", "autoencoder", "text_encoder") if self.start.kind != "nothing" else \
            ("autoencoder", "text_encoder")
        for part in wanted:
            if getattr(self.start, part) == "published":
                raise ValueError(f'start.{part} = "published": Dual Diffusion is not fetched by itself; name the '
                                 "folder of the model, or the file")
        if not self.in_turn:
            raise ValueError('family = "dual_diffusion" needs in_turn = true: a micro-batch is pictures from texts or '
                             "texts from pictures")
        if self.toy.scenes and list(self.toy.sizes()) != [(self.model.side, self.model.side)]:
            raise ValueError(f"toy.bins are {self.toy.bins}, but pictures of Dual Diffusion are squares of model.side "
                             f"= {self.model.side} pixels: name that size alone")

    def check_mode(self) -> None:
        if self.mode == "domains" and not self.start.extend:
            raise ValueError('mode = "domains" trains what start.extend adds, but start.extend is empty')
        if self.mode in ("lora", "dora") and self.start.extend:
            raise ValueError(f'mode = "{self.mode}" keeps all layers, but start.extend adds new ones: use "domains" or '
                             '"full"')
        few = self.mode not in ("full", "mask_embedding", "text_encoder")    # weights are trained
        if few and self.start.kind == "nothing":
            raise ValueError(f'mode = "{self.mode}" needs weights to start from, but start.kind is "nothing"')
        if few and self.optim.name == "muon":
            raise ValueError(f'optim.name = "muon" is for whole matrices, but mode is "{self.mode}": use adamw')
        if few and self.speed.precision == "pure_bf16":
            raise ValueError(f'mode = "{self.mode}" trains few weights, so bfloat16 ones save nothing: use '
                             'speed.precision = "bf16"')
        if self.mode == "domains" and (self.speed.shard or self.optim.weight_decay):
            raise ValueError('mode = "domains" freezes a part of the domain table: it needs speed.shard = false and '
                             f"optim.weight_decay = 0, not {self.optim.weight_decay}")
        if self.mode == "domains" and self.optim.name == "came_8bit":
            raise ValueError('mode = "domains" freezes a part of the domain table, but 8-bit averages of zero are not '
                             'quite zero: use optim.name = "came"')

    def accumulation(self, world: int) -> int:
        """Micro-batches per step and process. ValueError if they do not divide the batch."""
        per_pass = self.micro_batch * world
        if self.batch % per_pass:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch} times "
                             f"{world} processes: choose batch = {max(1, round(self.batch / per_pass)) * per_pass}")
        return self.batch // per_pass
