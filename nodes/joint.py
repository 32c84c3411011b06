"""What a joint model adds to the host's LATENT and CONDITIONING dictionaries: the keys, and how they are read.

The role switch writes them; samplers, models and decoders read them. Other nodes pass unknown keys on untouched.
"""

from typing import NamedTuple

import torch

from ..jodi_core.domains import JointConfig, JointRoles, Role

ROLES = "jodi_roles"    # LATENT and CONDITIONING: JointRoles
CLEAN = "jodi_clean"    # CONDITIONING: unscaled joint latent with the given pictures; read in condition slots only
SPANS = "jodi_spans"    # CONDITIONING: domain -> part of the steps (start, end in 0..1) in which its condition is seen
FIT = "jodi_fit"        # LATENT: Fit of the first given picture, so that what is decoded can be laid over it
NULL = "jodi_null"      # CONDITIONING: True = no text; the model's stored empty caption stands in
ROWS = "jodi_rows"      # CONDITIONING (negative): number of text rows that the positive one has
PLAIN = "jodi_plain"    # CONDITIONING from our CLIP: PlainReading


class PlainReading(NamedTuple):
    """A prompt read as a negative one, without instruction prefix, beside the reading that the host calls cond.

    `of` is that cond tensor: a node in between that replaced it has made this reading stale.
    """

    of: torch.Tensor
    features_1MC: torch.Tensor


def null_conditioning() -> list:
    """CONDITIONING without text. The dummy row keeps conditioning nodes of the host working."""
    return [[torch.zeros(1, 1, 1), {NULL: True}]]


def roles_of(values: dict, samples: torch.Tensor, domains: tuple[str, ...]) -> JointRoles:
    """The roles in a LATENT or CONDITIONING dictionary, checked against the joint latent (B, C, D, h, w).

    A latent that never saw a role switch means: all domains generated if it has a slot for each, the image alone if
    it has one. ValueError if roles, latent and the model's domains do not belong together.
    """
    roles = values.get(ROLES)
    if roles is None:
        slots = samples.shape[2] if samples.ndim == 5 else 0
        if slots not in (1, len(domains)):
            raise ValueError(f"no roles came along with this latent of shape {tuple(samples.shape)}: "
                             "take positive, negative and latent from Jodi Role Switch")
        labels = Role.GENERATE if slots > 1 else Role.IGNORE
        roles = JointRoles(domains, [Role.GENERATE] + [labels] * (len(domains) - 1))
    if roles.domains != domains:
        raise ValueError(f"the roles are for {', '.join(roles.domains)}, but this model has {', '.join(domains)}: "
                         "connect role switch, sampler and decoder to the same Jodi Loader")
    roles.check_latent(samples)
    return roles


def config_of(vae) -> JointConfig:
    """What a VAE tells of the joint model that it serves. ValueError for one that came from another loader."""
    if not hasattr(vae, "joint_config"):
        raise ValueError("this VAE belongs to no joint model: connect that of Jodi Loader or JointNet Loader")
    return vae.joint_config
