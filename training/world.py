"""The toy world: pictures of scenes with all seven labels, exact, and the folder layout of the training data.

`python -m training.world DIR --count 1000 --seed 0 --size 128` writes a data set.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from jodi_core.domains import JODI_DOMAINS
from jodi_core.segmentation import PALETTE_12
from training.captions import caption
from training.objects import (DRAWINGS, MOUNTAIN, PLANT, ROAD, SKY, UNLABELED, UP, WATER, colours_of, rgb)
from training.raster import (ALBEDO, CLASS, DEPTH, FACE, GROUND_FACES, IMAGE, NORMAL, POSE, SHADOW, TONE, Brush, Canvas)
from training.scene import COLOURS, Scene, Thing, sample_scene

__all__ = ["COLOURS", "Scene", "Thing", "colour_word", "render", "sample_scene", "write_dataset"]

# sky -> colour above, colour at the horizon, shade of unlit faces, colour of the light
_SKY = {
    "clear": (rgb(70, 160, 245), rgb(170, 220, 255), 0.5, (1.0, 1.0, 1.0)),
    "sunset": (rgb(238, 110, 60), rgb(255, 200, 110), 0.5, (1.0, 0.88, 0.76)),
    "overcast": (rgb(150, 158, 168), rgb(196, 202, 208), 0.78, (0.93, 0.95, 0.98)),
}
_SUN = {"clear": rgb(255, 244, 170), "sunset": rgb(255, 236, 120)}
_GROUND = {"grass": (rgb(112, 190, 62), PLANT), "sand": (rgb(232, 204, 142), UNLABELED),
           "snow": (rgb(226, 236, 246), UNLABELED)}
_PATH = {"road": (rgb(110, 108, 116), ROAD), "lake": (rgb(40, 130, 205), WATER)}
_ROCK, _CAP = rgb(122, 118, 148), rgb(240, 242, 250)
_FAR, _NEAR = 0.12, 1.0  # disparity of the ground at the horizon and at the bottom edge
_EDGE = 0.07  # smallest step of the picture (0..1, any channel) that counts as an edge


@torch.no_grad()
def render(scenes: list[Scene], height: int, width: int, shadows: bool = False) -> dict[str, torch.Tensor]:
    """Pictures of scenes: domain name -> (B, 3, height, width) uint8 for each of JODI_DOMAINS, and if asked for
    "shadow": white where a thing keeps the sun from the ground.

    depth is a disparity, 0 for the sky and 255 for the nearest ground; normals are (n + 1) / 2 in camera space (x
    right, y up, z to the viewer) with the sky facing the viewer; lines are white on black.
    """
    canvas = Canvas(len(scenes), height, width)
    sides = torch.tensor([float(scene.sun) for scene in scenes])
    ambient = torch.tensor([_SKY[scene.sky][2] for scene in scenes])
    tint = torch.tensor([_SKY[scene.sky][3] for scene in scenes])
    _paint_backdrop(canvas, scenes, (sides, ambient, tint))
    for kind, (draw, extent) in DRAWINGS.items():
        rows = [row for row, scene in enumerate(scenes) if scene.thing(kind)]
        if rows:
            light = sides[rows], ambient[rows], tint[rows]
            _paint_things(canvas, rows, [scenes[row] for row in rows], kind, draw, extent, light)
    pictures = _labels(canvas.layers, max(1, round(canvas.unit / 128)))
    return pictures | ({"shadow": _bytes(canvas.layers[:, SHADOW]).expand(-1, 3, -1, -1)} if shadows else {})


def _paint_things(canvas, rows, scenes, kind, draw, extent, light):
    """All things of one kind, in the pictures `rows` that have it."""
    things = [scene.thing(kind) for scene in scenes]
    foot = torch.tensor([thing.y for thing in things])
    horizon = torch.tensor([scene.horizon for scene in scenes])
    x = torch.tensor([thing.x for thing in things]) * canvas.width
    anchor = torch.stack((x, (horizon + (1 - horizon) * foot) * canvas.height), 1)
    # A person is mirrored through its joints, which keep left and right apart.
    flip = torch.tensor([1.0 if kind == "person" else float(thing.flip) for thing in things])
    size = torch.tensor([thing.size for thing in things])
    brush = Brush(canvas, rows, anchor, canvas.around(anchor, extent), light, size, flip)
    draw(brush, (_FAR + (_NEAR - _FAR) * foot)[:, None, None], colours_of(things), things)
    brush.commit()


def _paint_backdrop(canvas, scenes, light):
    """Sky, mountains, ground, road and lake; the brushes' y = 0 is the horizon, x = 0 the left border."""
    wide, high = canvas.width / canvas.unit, canvas.height / canvas.unit

    def on(rows):
        horizon = torch.tensor([scenes[row].horizon for row in rows])
        anchor = torch.stack((torch.zeros(len(rows)), horizon * canvas.height), 1)
        brush = Brush(canvas, rows, anchor, canvas.whole(len(rows)), tuple(part[rows] for part in light))
        return brush, [scenes[row] for row in rows], ((1 - horizon) * high)[:, None, None]

    rows = list(range(len(scenes)))
    brush, chosen, deep = on(rows)
    _paint_sky(brush, chosen, wide, high)
    brush.commit()
    for number in range(2):
        peaks = [row for row in rows if len(scenes[row].mountains) > number]
        if peaks:
            brush, chosen, _ = on(peaks)
            _paint_mountain(brush, _column(scene.mountains[number] for scene in chosen), wide, high, 17 + 4 * number)
            brush.commit()
    brush, chosen, deep = on(rows)
    _paint_ground(brush, chosen, deep)
    brush.commit()
    for path, shape in (("road", _road), ("lake", _lake)):
        crossed = [row for row in rows if scenes[row].path == path]
        if crossed:
            brush, chosen, deep = on(crossed)
            shape(brush, _column((scene.path_x * wide,) for scene in chosen)[0], deep, wide)
            brush.commit()


def _column(values):
    """Tuples of numbers, one per scene -> one (n, 1, 1) tensor per place in the tuple."""
    return torch.tensor(list(values)).T[:, :, None, None]


def _paint_sky(brush, scenes, wide, high):
    top, low = (torch.tensor([_SKY[scene.sky][i] for scene in scenes])[:, :, None, None] for i in (0, 1))
    height = (brush.y / (0.5 * high)).clamp(0, 1)[:, None]
    layers = brush.layers
    layers[:, ALBEDO], layers[:, NORMAL.stop - 1], layers[:, CLASS] = 0.4 * top + 0.6 * low, 1, SKY
    layers[:, FACE] = GROUND_FACES
    layers[:, IMAGE] = layers[:, TONE] = low + (top - low) * height
    sun_x = _column((0.5 * wide + 0.34 * wide * scene.sun,) for scene in scenes)[0]
    sun_y = _column(((scene.horizon - 0.15) * high,) for scene in scenes)[0]
    disc = torch.hypot(brush.x - sun_x, brush.y - sun_y) - 0.065
    shown = torch.tensor([scene.sky in _SUN for scene in scenes])[:, None, None]
    disc = torch.where(shown, disc, 1.0)
    brush.glow(disc, torch.tensor([_SUN.get(scene.sky, (0, 0, 0)) for scene in scenes]))


def _paint_mountain(brush, shape, wide, high, face):
    """shape: peak, height and half width, (n, 1, 1) fractions of the picture each."""
    peak, top, half = shape[0] * wide, shape[1] * high, shape[2] * wide
    across, steep = brush.x - peak, torch.hypot(top, half)
    slope = (across.abs() * top + (brush.y - top) * half) / steep
    depth = torch.full_like(brush.x, 0.06)
    snow = torch.maximum(slope, 0.68 * top - brush.y)
    for part, colour, number in ((slope, _ROCK, face), (snow, _CAP, face + 2)):
        brush.paint(part, colour, (-0.62, 0.45, 0.643), depth, MOUNTAIN, number)
        brush.paint(torch.maximum(part, -across), colour, (0.62, 0.45, 0.643), depth, MOUNTAIN, number + 1)


def _paint_ground(brush, scenes, deep):
    colour, kind = zip(*(_GROUND[scene.ground] for scene in scenes))
    depth = _FAR + (_NEAR - _FAR) * (-brush.y / deep).clamp(0, 1)
    brush.paint(brush.y, torch.tensor(colour), UP, depth, torch.tensor(kind)[:, None, None, None].float(), 1)


def _road(brush, x, deep, wide):
    """Straight from under the viewer's feet to the horizon at x."""
    near = (-brush.y / deep).clamp(0, 1)
    middle = x + (0.5 * wide - x) * near
    distance = torch.maximum((brush.x - middle).abs() - 0.02 - 0.22 * near, brush.y)
    brush.paint(distance, *_flat("road", brush))


def _lake(brush, x, deep, wide):
    half = 0.36 * wide
    across, along = (brush.x - x) / half, (brush.y / deep + 0.49) / 0.15
    radius = torch.hypot(across, along)
    slope = torch.hypot(across / half, along / (0.15 * deep)).clamp_min(1e-6)
    brush.paint(torch.where(radius > 0.3, (radius - 1) * radius / slope, -1.0), *_flat("lake", brush))


def _flat(path, brush):
    """What a brush needs to paint on the ground: colour, normal, the depth that is there, class, face."""
    colour, kind = _PATH[path]
    return colour, UP, brush.layers[:, DEPTH.start], kind, 2


def _labels(layers, thick):
    pictures = {
        "image": layers[:, IMAGE], "albedo": layers[:, ALBEDO], "normal": (layers[:, NORMAL] + 1) / 2,
        "depth": layers[:, DEPTH], "openpose": layers[:, POSE],
        "lineart": _lines(layers[:, FACE], 0.5, thick), "edge": _lines(layers[:, TONE], _EDGE, thick),
    }
    pictures = {name: _bytes(value) for name, value in pictures.items()}
    pictures["segmentation"] = PALETTE_12[layers[:, CLASS.start].long()].permute(0, 3, 1, 2)
    return {name: pictures[name].expand(-1, 3, -1, -1).contiguous() for name in JODI_DOMAINS}


def _bytes(values):
    return (255 * values.clamp(0, 1)).round().byte()


def _lines(values, step, thick):
    """(B, C, H, W) -> (B, 1, H, W) of 0 and 1: pixels on both sides of a step, made `thick` times as wide."""
    down = (values[:, :, 1:] - values[:, :, :-1]).abs().amax(1, keepdim=True) > step
    across = (values[..., 1:] - values[..., :-1]).abs().amax(1, keepdim=True) > step
    marks = torch.zeros_like(values[:, :1])
    for part, found in ((marks[:, :, 1:], down), (marks[:, :, :-1], down),
                        (marks[..., 1:], across), (marks[..., :-1], across)):
        part.masked_fill_(found, 1)
    return F.max_pool2d(marks, 2 * thick - 1, 1, thick - 1)


def colour_word(albedo_3HW: torch.Tensor, mask_HW: torch.Tensor) -> str:
    """The word of COLOURS that most pixels under the mask come close to (0..255 albedo); "" if none does."""
    pixels = albedo_3HW[:, mask_HW].float().T
    near, word = torch.cdist(pixels, torch.tensor(list(COLOURS.values())).float()).min(1)
    votes = word[near < 80].bincount(minlength=len(COLOURS))
    return tuple(COLOURS)[votes.argmax()] if votes.any() else ""


def ink(pictures: dict[str, torch.Tensor]) -> torch.Tensor:
    """The scenes drawn with a pen and a grey wash on cream paper: another `image` for the same labels."""
    grey = pictures["image"].float().mean(1, keepdim=True) / 255
    strokes = pictures["lineart"].float() / 255
    paper = torch.tensor([250.0, 243.0, 226.0])[:, None, None]
    return (paper * (0.6 + 0.4 * grey) * (1 - 0.85 * strokes)).round().byte()


STYLES = {"plain": lambda pictures: pictures["image"], "ink": ink}


def styled(pictures: dict[str, torch.Tensor], style: str) -> dict[str, torch.Tensor]:
    return pictures | {"image": STYLES[style](pictures)}


def write_dataset(folder: str | Path, count: int, seed: int, size: int, batch: int = 32, style: str = "plain",
                  shadows: bool = False) -> Path:
    """Write `count` scenes (seeds seed, seed + 1, ...) of size x size pixels as a training folder; its metadata file.

    style: of the image, one of STYLES. shadows: with `annotation_shadow`.

    Layout: `metadata.jsonl` with one JSON object per scene: `image`, `info` {height, width}, `caption` {"toy": text}
    and `annotation_<domain>` for lineart, edge, depth, normal, albedo, seg_12colors, openpose; paths are relative to
    the folder, pictures are PNG files in `images/` and `annotation_<domain>/`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    labels = (*JODI_DOMAINS[1:], *(["shadow"] if shadows else []))
    places = {name: f"annotation_{'seg_12colors' if name == 'segmentation' else name}" for name in labels}
    for place in ("images", *places.values()):
        (folder / place).mkdir(exist_ok=True)
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as lines:
        for first in range(seed, seed + count, batch):
            seeds = range(first, min(first + batch, seed + count))
            scenes = [sample_scene(one) for one in seeds]
            pictures = styled(render(scenes, size, size, shadows), style)
            for row, (one, scene) in enumerate(zip(seeds, scenes)):
                entry = {"image": f"images/{one:08d}.png", "info": {"height": size, "width": size},
                         "caption": {"toy": caption(scene, one)}}
                entry |= {place: f"{place}/{one:08d}.png" for place in places.values()}
                for name, picture in pictures.items():
                    path = entry["image" if name == "image" else places[name]]
                    Image.fromarray(picture[row].permute(1, 2, 0).numpy()).save(folder / path)
                lines.write(json.dumps(entry) + "\n")
    return folder / "metadata.jsonl"


def write_pictures(folder: str | Path, count: int, seed: int, size: int, style: str = "plain", batch: int = 32) -> Path:
    """Pictures alone, each with its caption in a .txt file beside it, as people keep their own; the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(seed, seed + count, batch):
        seeds = range(first, min(first + batch, seed + count))
        scenes = [sample_scene(one) for one in seeds]
        pictures = render(scenes, size, size)
        for one, scene, picture in zip(seeds, scenes, styled(pictures, style)["image"]):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{one:08d}.png")
            (folder / f"{one:08d}.txt").write_text(caption(scene, one) + "\n", encoding="utf-8")
    return folder


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m training.world", description="Write a toy data set.")
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--count", type=int, default=256, help="number of scenes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first scene; the others follow it")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--style", choices=tuple(STYLES), default="plain", help="of the pictures, not of the labels")
    parser.add_argument("--shadows", action="store_true", help="one more label: annotation_shadow")
    parser.add_argument("--pictures-only", action="store_true", help="pictures and captions in .txt files, no labels")
    options = parser.parse_args(arguments)
    if options.pictures_only:
        return print(write_pictures(options.folder, options.count, options.seed, options.size, options.style))
    print(write_dataset(options.folder, options.count, options.seed, options.size, style=options.style,
                        shadows=options.shadows))


if __name__ == "__main__":
    main()
