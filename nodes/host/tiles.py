"""The network evaluated in overlapping windows, as a wrapper that the host's patcher carries."""

from comfy.patcher_extension import WrappersMP

from ...jodi_core.tiles import by_windows


def in_tiles(model, tile: int, overlap: float):
    """A clone of MODEL whose network sees windows of `tile` pixels (0: the square size it was trained for).

    overlap: fraction of a window. ValueError if the tile is smaller than two tokens.
    """
    config, factor = model.model.diffusion_model.config, model.model.latent_format.spacial_downscale_ratio
    side = tile // factor if tile else config.input_size
    side -= side % config.patch_size
    if side < 2 * config.patch_size:
        raise ValueError(f"a tile of {tile} pixels is smaller than two tokens of this model: take at least "
                         f"{2 * config.patch_size * factor}, or 0 for the model's own size of "
                         f"{config.input_size * factor}")
    shared = min(side - config.patch_size, round(side * overlap))

    def tiled(executor, x, timesteps, context, roles, clean, *rest):
        def evaluate(part):
            return executor(x[part], timesteps, context, roles, None if clean is None else clean[part], *rest)
        return by_windows(evaluate, x, (side, side), (shared, shared))

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "jodi_tiles", tiled)
    return clone
