"""The joint vocabulary: domains, a role for each, and the size bins.

A joint model sees one scene as several *domains* (image, depth, ...).  `JointRoles` says what happens to each of
them; it is made once, travels with the latents, and everything else (which domains take part, where they lie in the
joint latent, which are generated) follows from it.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import torch

# Order of the published model: dimension 1 of its latents.
JODI_DOMAINS = ("image", "lineart", "edge", "depth", "normal", "albedo", "segmentation", "openpose")

# (height, width) of the published 1024-pixel model; the closest height/width ratio wins, the first one on ties.
# The keys are the original's two-digit ratios: the choice compares with them and not with the exact quotients.
JODI_BINS = {
    0.25: (512, 2048), 0.33: (576, 1728), 0.4: (640, 1600), 0.5: (704, 1408), 0.67: (768, 1152),
    0.75: (864, 1152), 0.82: (896, 1088), 1.0: (1024, 1024), 1.21: (1088, 896), 1.33: (1152, 864),
    1.5: (1152, 768), 2.0: (1408, 704), 2.5: (1600, 640), 3.0: (1728, 576), 4.0: (2048, 512),
}


class Role(IntEnum):
    """What happens to a domain. The values index the model's role table."""

    GENERATE = 0
    CONDITION = 1
    IGNORE = 2

    @classmethod
    def parse(cls, value) -> "Role":
        """A Role from itself, its number or its lower-case name."""
        if isinstance(value, str) and value.upper() in cls.__members__:
            return cls[value.upper()]
        try:
            return cls(value)
        except ValueError:
            raise ValueError(f"unknown role {value!r}: use generate, condition or ignore") from None


@dataclass(frozen=True)
class JointRoles:
    """One role per domain of a model, in the model's domain order.

    The joint latent that it describes is (B, C, D, h, w) with D = number of active domains in domain order;
    ignored domains do not exist in it.
    """

    domains: tuple[str, ...]
    roles: tuple[Role, ...]

    def __post_init__(self):
        if len(self.domains) != len(self.roles):
            raise ValueError(f"{len(self.roles)} roles for {len(self.domains)} domains {', '.join(self.domains)}")
        object.__setattr__(self, "roles", tuple(Role.parse(role) for role in self.roles))

    @classmethod
    def of(cls, domains, generate=(), condition=()) -> "JointRoles":
        """Roles by name; domains named in neither list are ignored."""
        unknown = [name for name in (*generate, *condition) if name not in domains]
        if unknown:
            raise ValueError(f"this model has no domain {', '.join(unknown)}; it has {', '.join(domains)}")
        twice = [name for name in generate if name in condition]
        if twice:
            raise ValueError(f"{', '.join(twice)}: a domain is either generated or a condition, not both")
        return cls(tuple(domains), tuple(
            Role.GENERATE if name in generate else Role.CONDITION if name in condition else Role.IGNORE
            for name in domains))

    @property
    def active(self) -> tuple[int, ...]:
        """Indices of the domains in the joint latent (generated or given)."""
        return tuple(i for i, role in enumerate(self.roles) if role != Role.IGNORE)

    @property
    def active_names(self) -> tuple[str, ...]:
        return tuple(self.domains[i] for i in self.active)

    @property
    def active_roles(self) -> tuple[Role, ...]:
        return tuple(self.roles[i] for i in self.active)

    @property
    def generated_slots(self) -> tuple[int, ...]:
        """Positions of the generated domains along the domain axis of the joint latent."""
        return tuple(slot for slot, role in enumerate(self.active_roles) if role == Role.GENERATE)

    @property
    def condition_slots(self) -> tuple[int, ...]:
        return tuple(slot for slot, role in enumerate(self.active_roles) if role == Role.CONDITION)

    @property
    def image_given(self) -> bool:
        """Perception: the image is a condition, so text and guidance have no effect (exact)."""
        return self.roles[0] == Role.CONDITION

    def without(self, hidden: set[int]) -> "JointRoles":
        """The same with some domains (indices) ignored."""
        return JointRoles(self.domains, tuple(Role.IGNORE if i in hidden else role
                                              for i, role in enumerate(self.roles)))

    def require_work(self) -> "JointRoles":
        """Itself, or a ValueError if nothing would be generated."""
        if not self.generated_slots:
            given = ", ".join(self.active_names) or "none"
            raise ValueError(f"nothing to generate: set at least one domain to 'generate' (conditions: {given})")
        return self

    def check_latent(self, latent_BCDHW) -> None:
        """ValueError if a joint latent does not have one slot per active domain."""
        if latent_BCDHW.ndim != 5 or latent_BCDHW.shape[2] != len(self.active):
            raise ValueError(
                f"a joint latent with {len(self.active)} domains ({', '.join(self.active_names)}) has shape "
                f"(batch, channels, {len(self.active)}, height, width), but this one is {tuple(latent_BCDHW.shape)}: "
                "something between the role switch and here changed its domain axis")

    def keep_active(self, full_BCLHW: torch.Tensor) -> torch.Tensor:
        """(B, C, L, h, w) over all domains of the model -> (B, C, D, h, w) over the active ones."""
        return full_BCLHW[:, :, list(self.active)]


class JointConfig(Protocol):
    """What applications and hosts ask of the configuration of a model, whichever family it is of."""

    domains: tuple[str, ...]                   # the picture first
    in_channels: int                           # of the latent of one domain
    latent_scale: float                        # of what the autoencoder makes, before the network sees it
    caption_channels: int                      # width of the text features
    patch_size: int                            # sizes are multiples of so many latent cells
    input_size: int                            # latent cells per side of the square that it was trained on
    bins: dict[float, tuple[int, int]]         # height / width -> (height, width) in pixels that suit it


def nearest_bin(height: int, width: int, bins=JODI_BINS) -> tuple[int, int]:
    """(height, width) of the bin whose ratio is closest to height / width (spec 3.2)."""
    ratio = min(bins, key=lambda key: abs(key - height / width))
    return tuple(int(side) for side in bins[ratio])
