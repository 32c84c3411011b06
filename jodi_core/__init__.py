"""Jodi without a host: one model of a picture and its labels (arXiv 2505.19084), its sampler, weights and pipeline.

    from jodi_core import JodiPipeline
    result = JodiPipeline.from_pretrained("tiny")("a red house beside a lake", seed=7)

Names are imported on first use, so that importing the package costs nothing.
"""

from importlib import import_module

_HOMES = {
    "JodiConfig": ".models.jodi", "JodiTransformer": ".models.jodi", "Role": ".domains",
    "flow_timesteps": ".sampling", "sample_flow_dpm": ".sampling", "JodiPipeline": ".pipeline",
    "DualDiffusionPipeline": ".dual_diffusion.pipeline", "JointNetPipeline": ".jointnet.pipeline",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
