"""What a role switch is told about each domain, and the joint latent, mask and sizes that follow from it."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from ..jodi_core.domains import JointRoles, nearest_bin
from ..jodi_core.fitting import Fit, fade, same_shape
from ..jodi_core.pictures import load_picture
from . import joint

GENERATE, CONDITION, IGNORE, EDIT, TIMED = ROLE_NAMES = (
    "generate", "condition", "ignore", "edit", "condition for some steps")
AUTOMATIC, CUSTOM, LIKE_PICTURE = "automatic", "custom", "like the picture"


@dataclass(frozen=True)
class Choice:
    """The role of one domain and what is connected to it."""

    role: str
    picture: torch.Tensor | None = None    # (B, 3, H, W) in [0, 1]
    latent: torch.Tensor | None = None     # (B, C, 1, h, w), unscaled
    mask: torch.Tensor | None = None       # (B, 1, H, W), 1 where an edited domain is made anew
    span: tuple[float, float] = (0.0, 1.0)    # of the steps, in which a timed condition is seen

    @classmethod
    def read(cls, name: str, values: dict, domains: tuple[str, ...]) -> "Choice":
        """From what the host hands over: {name: role, name_picture: IMAGE, ...}. ValueError if it makes no sense."""
        pixels_BHWC, latent, mask = (values.get(f"{name}_{kind}") for kind in ("picture", "latent", "mask"))
        span = values.get(f"{name}_start", 0.0), values.get(f"{name}_end", 1.0)
        if values[name] not in (GENERATE, IGNORE) and (pixels_BHWC is None) == (latent is None):
            raise ValueError(f"{name}: set to '{values[name]}', so connect either a picture to {name}_picture or a "
                             f"latent to {name}_latent")
        if span[0] >= span[1]:
            raise ValueError(f"{name}: the condition starts at {span[0]} and ends at {span[1]}: nothing in between")
        return cls(values[name], None if pixels_BHWC is None else load_picture(pixels_BHWC.movedim(-1, 1)),
                   None if latent is None else domain_latent(name, latent, domains),
                   None if mask is None else mask.reshape(-1, 1, *mask.shape[-2:]), span)

    @property
    def given(self) -> torch.Tensor | None:
        return self.latent if self.picture is None else self.picture


def domain_latent(name: str, latent: dict, domains: tuple[str, ...]) -> torch.Tensor:
    """(B, C, 1, h, w): the slot of a domain in a joint LATENT, or a latent of one picture as it is."""
    samples = latent["samples"]
    if samples.ndim == 4:
        samples = samples[:, :, None]
    if samples.ndim == 5 and samples.shape[2] == 1 and joint.ROLES not in latent:
        return samples
    roles = joint.roles_of(latent, samples, domains)
    if name not in roles.active_names:
        raise ValueError(f"{name}: the latent that is connected has {', '.join(roles.active_names)}, not {name}")
    slot = roles.active_names.index(name)
    return samples[:, :, slot:slot + 1]


@dataclass(frozen=True)
class Given:
    """All choices of a role switch, for one model. factor: pixels per latent cell."""

    choices: dict[str, Choice]
    config: object    # JodiConfig
    factor: int

    @cached_property
    def roles(self) -> JointRoles:
        generated = [name for name, choice in self.choices.items() if choice.role in (GENERATE, EDIT)]
        conditions = [name for name, choice in self.choices.items() if choice.role in (CONDITION, TIMED)]
        return JointRoles.of(self.config.domains, generated, conditions).require_work()

    @property
    def known(self) -> dict[str, Choice]:
        """Domain -> choice of the domains that something is given for, in the model's order."""
        return {name: self.choices[name] for name in self.roles.active_names if self.choices[name].given is not None}

    @property
    def spans(self) -> dict[str, tuple[float, float]]:
        return {name: choice.span for name, choice in self.choices.items() if choice.role == TIMED}

    def first_picture_size(self) -> tuple[int, int] | None:
        """(height, width) of the first given picture in domain order; labels are put back onto that one."""
        return next((tuple(choice.picture.shape[-2:]) for choice in self.known.values() if choice.picture is not None),
                    None)

    def size(self, wanted: dict) -> tuple[int, int]:
        """(height, width) in pixels, multiples of what one token covers. ValueError if a given latent disagrees."""
        latents = {name: tuple(side * self.factor for side in choice.latent.shape[-2:])
                   for name, choice in self.known.items() if choice.latent is not None}
        unit, picture = self.factor * self.config.patch_size, self.first_picture_size()
        if latents and wanted["size"] != CUSTOM:
            size = next(iter(latents.values()))
        elif wanted["size"] == CUSTOM:
            size = whole_cells((wanted["height"], wanted["width"]), unit)
        elif wanted["size"] == LIKE_PICTURE and picture:
            size = whole_cells(picture, unit)
        else:
            size = nearest_bin(*(picture or (1, 1)), self.config.bins)
        for name, (height, width) in latents.items():
            if (height, width) != size:
                raise ValueError(f"{name}: its latent is for {width}x{height} pixels, but the size is "
                                 f"{size[1]}x{size[0]}: give latents of one size, or set the size to that")
        return size

    def rows(self, batch_size: int) -> int:
        """Rows of the joint latent: what is given once serves all, several must be as many as the rows."""
        counts = {name: len(choice.given) for name, choice in self.known.items() if len(choice.given) > 1}
        counts |= {f"the mask of {name}": len(choice.mask) for name, choice in self.known.items()
                   if choice.mask is not None and len(choice.mask) > 1}
        rows = max([batch_size, *counts.values()])
        if any(count != rows for count in counts.values()) or (counts and batch_size not in (1, rows)):
            told = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise ValueError(f"batch sizes disagree: batch_size is {batch_size}, {told}. "
                             "Give one for all, or as many as the batch has")
        return rows

    def samples(self, vae, rows: int, size: tuple[int, int], mode: str) -> torch.Tensor:
        """Unscaled joint latent (rows, C, D, h, w) with what is given in its slots, zeros in the others."""
        cells = size[0] // self.factor, size[1] // self.factor
        samples_BCDhw = torch.zeros(rows, vae.latent_channels, len(self.roles.active), *cells)
        for name, choice in self.known.items():
            latent = choice.latent
            if latent is None:
                fit = Fit(mode, tuple(choice.picture.shape[-2:]), size)
                latent = vae.encode(fit.apply(choice.picture).movedim(1, -1))
            elif latent.shape[1] != vae.latent_channels:
                raise ValueError(f"{name}: its latent has {latent.shape[1]} channels, but this model's have "
                                 f"{vae.latent_channels}: encode the picture with the VAE of Jodi Loader")
            slot = self.roles.active_names.index(name)
            samples_BCDhw[:, :, slot:slot + 1] = latent.float()
        return samples_BCDhw

    def noise_mask(self, rows: int, size: tuple[int, int], mode: str, feather: int) -> torch.Tensor | None:
        """(rows, 1, D, h, w): 1 in every cell that is made anew. None if no domain has a mask.

        A cell gets the largest value of its pixels: where a stroke touches it, it is made anew as a whole. Around it
        masks fade over `feather` pixels. Conditions have ones: the model keeps them itself. ValueError for a mask that
        has the shape neither of its picture nor of the result.
        """
        masked = {name: choice.mask for name, choice in self.known.items() if choice.mask is not None}
        if not masked:
            return None
        cells = size[0] // self.factor, size[1] // self.factor
        mask_B1Dhw = torch.ones(rows, 1, len(self.roles.active), *cells)
        for name, mask_B1HW in masked.items():
            picture, own = self.known[name].picture, tuple(mask_B1HW.shape[-2:])
            wanted = size if picture is None else tuple(picture.shape[-2:])
            if own != size and not same_shape(own, wanted):
                raise ValueError(f"{name}: its mask of {own[1]}x{own[0]} pixels does not lie over {wanted[1]}x"
                                 f"{wanted[0]}: paint it on the picture, or give one of the same shape")
            mask_B1hw = F.adaptive_max_pool2d(
                Fit(mode, own, size).apply(mask_B1HW.float(), F.adaptive_max_pool2d), cells)
            mask_B1Dhw[:, :, self.roles.active_names.index(name)] = fade(mask_B1hw, round(feather / self.factor))
        return mask_B1Dhw


def whole_cells(size: tuple[int, int], unit: int) -> tuple[int, int]:
    return tuple(max(1, side // unit) * unit for side in size)
