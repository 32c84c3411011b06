"""The published applications of JointNet (spec 4), each a call of the pipeline with what it needs.

Joint generation, inpainting with masks, and refining a map (the picture given, the map with a mask of ones and a
strength below 1) are calls of the pipeline itself. Further arguments of each function go there, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..fitting import resize, widen
from ..pictures import load_picture
from ..tiles import Tiling
from .pipeline import JointNetPipeline, JointNetResult
from .sampling import Sampling

STRIDE, RAMP = 32, 8  # cells
PANORAMA_SIZE = (512, 2048)
UPSAMPLING = Sampling(strength=0.4, tiling=Tiling((64, 64), STRIDE, ramp=(RAMP, RAMP)))


def panorama_tiling(height: int) -> Tiling:
    """Windows of a closed panorama `height` cells high: squares of that height, and the whole in the first steps."""
    return Tiling((height, height), min(STRIDE, height), ramp=(0, RAMP), wrap=True, full_view=0.4, full_weight=5.0)


def panorama(pipe: JointNetPipeline, prompt: str | Sequence[str] = "", *, size: tuple[int, int] | None = None,
             pictures: dict | None = None, how: Sampling = Sampling(), **options) -> JointNetResult:
    """A closed panorama and its map, all 360 degrees of it (spec 4.3, and 4.4 with pictures and masks).

    size: (height, width) in pixels, default that of the pictures, else 512 x 2048. how: its windows, if it has some,
    stand in for the published ones.
    """
    pictures = {name: load_picture(picture) for name, picture in (pictures or {}).items()}
    height, width = size or next((tuple(picture.shape[-2:]) for picture in pictures.values()), PANORAMA_SIZE)
    how = replace(how, tiling=how.tiling or panorama_tiling(height // pipe.config.latent_factor))
    return pipe(prompt, pictures=pictures, height=height, width=width, how=how, **options)


def convert(pipe: JointNetPipeline, picture, to: str, prompt: str | Sequence[str] = "", *,
            how: Sampling = Sampling(), **options) -> JointNetResult:
    """A picture as its map, or a map as a picture: the presets rgb2j and j2rgb (spec 4.2).

    to: the domain wanted; `picture` is of the other one. ValueError for a strength below 1: nothing is there to start
    from. The windows of `how` make it one of a panorama or of a large picture.
    """
    if to not in pipe.domains:
        raise ValueError(f"this model has no domain {to}; it has {', '.join(pipe.domains)}")
    source = next(name for name in pipe.domains if name != to)
    return pipe(prompt, pictures={source: picture}, generate=[to], how=how, **options)


def expand(pipe: JointNetPipeline, picture, width: int, prompt: str | Sequence[str] = "", *,
           how: Sampling = Sampling(), copies: int | None = None, **options) -> JointNetResult:
    """A picture made wider, to a closed panorama with its map (spec 4.4, preset expand).

    picture: of the height of the panorama; stays in its middle. width: of the panorama, in pixels. Beside the picture
    are its mirror images, which matter for strengths below 1; copies: see `fitting.widen`, published is 1.
    """
    canvas_B3HW, mask_B1HW = widen(load_picture(picture), width, copies)
    image, depth = pipe.domains
    return panorama(pipe, prompt, size=tuple(canvas_B3HW.shape[-2:]), how=how,
                    pictures={image: canvas_B3HW, depth: torch.zeros_like(canvas_B3HW)},
                    masks={image: mask_B1HW, depth: torch.ones_like(mask_B1HW)}, **options)


def upsample(pipe: JointNetPipeline, pictures: dict, size: tuple[int, int], prompt: str | Sequence[str] = "", *,
             given: str | None = None, how: Sampling = UPSAMPLING,
             stretch: Callable[[Tensor, tuple[int, int]], Tensor] = resize, **options) -> JointNetResult:
    """A picture and its map, larger and with detail (spec 4.5): preset both, or image or joint with the other given.

    pictures: both domains -> picture. size: (height, width) wanted, in pixels. given: the domain that has this size
    and stays as it is. stretch: how the others come to it; bilinear, where published is Lanczos for pictures and
    nearest for maps, which start it off in blocks.
    """
    absent = [name for name in pipe.domains if name not in pictures]
    if absent:
        raise ValueError(f"upsampling starts from both, but {', '.join(absent)} is missing: make it first by `convert`")
    loaded = {name: load_picture(picture) for name, picture in pictures.items()}
    larger = {name: picture if name == given else stretch(picture, size) for name, picture in loaded.items()}
    masks = {name: torch.ones_like(picture[:, :1]) for name, picture in larger.items() if name != given}
    return pipe(prompt, pictures=larger, masks=masks, height=size[0], width=size[1], how=how, **options)
