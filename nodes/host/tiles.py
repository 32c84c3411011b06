"""The network evaluated in overlapping windows, as wrappers that the host's patcher carries."""

import torch
from comfy.patcher_extension import WrappersMP

from ...jodi_core.tiles import Tiling, by_windows, merge

SEED = "jodi_seed"    # of the run, among the host's transformer options


def in_tiles(model, tile: int, overlap: float, circular: bool = False, full_view: float = 0.0,
             full_weight: float = 5.0):
    """A clone of MODEL whose network sees windows of `tile` pixels (0: the square size it was trained for).

    overlap: fraction of a window. circular, full_view, full_weight: as of `Tiling`; without them windows are spread
    evenly. Whatever lies like the latent (clean latents, masks) is cut alike. ValueError if the tile is smaller than
    two tokens.
    """
    side, shared = window_cells(model, tile, overlap)

    def tiled(executor, x, timesteps, *rest):
        def evaluate(part):
            return executor(x[part], timesteps, *(value[part] if lies_like(value, x) else value for value in rest))
        size = tuple(x.shape[-2:])
        if not circular and (not full_view or max(size) <= side):
            return by_windows(evaluate, x, (side, side), (shared, shared))
        ramp = max(1, shared // 4)    # at the upper and lower edge it would only let the full view count for more
        tiling = Tiling((side, side), side - shared, (ramp if size[0] > side else 0, ramp), circular, full_view,
                        full_weight)
        step, steps = place_in_run(rest[-1])
        offset = tiling.offsets(steps, rest[-1][SEED])[step]
        return merge(evaluate, x, tiling.windows(size, offset=offset, full=tiling.full_at(step, steps)))

    clone = model.clone()
    for kind in (WrappersMP.DIFFUSION_MODEL, WrappersMP.PREDICT_NOISE):    # tiles in tiles would go round in each
        clone.remove_wrappers_with_key(kind, "jodi_tiles")
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "jodi_tiles", tiled)
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "jodi_tiles", tell_seed)
    return clone


def window_cells(model, tile: int, overlap: float) -> tuple[int, int]:
    """(side of a window, what it shares with the next one) in latent cells."""
    config, factor = model.model.diffusion_model.config, model.model.latent_format.spacial_downscale_ratio
    side = tile // factor if tile else config.input_size
    side -= side % config.patch_size
    if side < 2 * config.patch_size:
        raise ValueError(f"a tile of {tile} pixels is smaller than two tokens of this model: take at least "
                         f"{2 * config.patch_size * factor}, or 0 for the model's own size of "
                         f"{config.input_size * factor}")
    return side, min(side - config.patch_size, round(side * overlap))


def lies_like(value, x_BCDhw: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == x_BCDhw.ndim and value.shape[-2:] == x_BCDhw.shape[-2:]


def place_in_run(options: dict) -> tuple[int, int]:
    """(step, steps) of an evaluation, by its time: samplers that evaluate a step twice do not count calls."""
    sigmas = options["sample_sigmas"]
    steps = len(sigmas) - 1
    return min(int((sigmas > options["sigmas"][0]).sum()), steps - 1), steps


def tell_seed(executor, x, timestep, model_options={}, seed=None):
    options = model_options["transformer_options"] | {SEED: seed or 0}
    return executor(x, timestep, model_options | {"transformer_options": options}, seed)
