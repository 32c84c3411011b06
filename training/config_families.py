"""What the configuration of each family of models may say."""

from dataclasses import dataclass

from jodi_core.jointnet.config import JointNetConfig
from jodi_core.models.jodi_config import JodiConfig

from .dual_config import DualTrainingConfig

TASKS = ("joint", "control", "perceive")


@dataclass(frozen=True)
class FamilyKeys:
    model: type                  # of [model]
    starts: tuple[str, ...]
    modes: tuple[str, ...]
    tasks: tuple[str, ...]


FAMILIES = {
    "jodi": FamilyKeys(JodiConfig, ("jodi", "sana", "nothing"), ("full", "lora", "dora", "domains"), TASKS),
    "jointnet": FamilyKeys(JointNetConfig, ("jointnet", "stable_diffusion", "nothing"), ("full", "map_branch"),
                           (*TASKS, "inpaint")),
    "dual_diffusion": FamilyKeys(DualTrainingConfig, ("dual_diffusion", "sd3", "nothing"),
                                 ("full", "mask_embedding", "text_encoder"), ("picture", "text")),
}
FAMILIES_WITH = {    # keys that only some families have
    "start.extend": ("jodi",),
    "start.gate": ("jodi", "dual_diffusion"),
    "start.own_place": ("jodi",),
    "start.pass_through": ("jointnet",),
    "start.mask_embedding": ("dual_diffusion",),
    "data.min_side": ("dual_diffusion",),
    "data.empty_pose": ("jodi",),
    "data.segmentation": ("jodi", "jointnet"),
    "evaluation.every": ("jodi", "jointnet"),
    "loss.times": ("jodi", "jointnet"),
    "loss.mean": ("jodi", "jointnet"),
    "loss.std": ("jodi", "jointnet"),
    "loss.exact_time": ("jodi",),
    "loss.share": ("jodi", "jointnet"),
    "loss.domains": ("jodi",),
    "loss.weighting": ("jointnet",),
    "loss.caption_dropout": ("jointnet", "dual_diffusion"),
    "loss.text_weight": ("dual_diffusion",),
    "speed.shard": ("jodi", "dual_diffusion"),
    "speed.compile": ("jodi",),
}
