"""Painting a batch of scenes with signed distances: every stroke fills the picture and all exact labels at once.

Lengths are in *units*: one unit is about the side of the picture, so 1 / unit pixels is the edge softness. The soft
layer holds what is shown (antialiased), the hard layer what is measured (crisp).
"""

import math

import torch

# Channels of the hard layer.
TONE, NORMAL, DEPTH, CLASS, FACE = slice(0, 3), slice(3, 6), 6, 7, 8
IMAGE, ALBEDO = slice(0, 3), slice(3, 6)  # of the soft layer

GROUND_FACES = 16  # faces below lie flat on the ground and take shadows
SUN_HEIGHT = 0.65  # vertical part of the light's direction; flat ground is lit fully


def box(x, y, left, right, bottom, top):
    """Signed distance to an axis-parallel box (exact inside, good near the border)."""
    return torch.maximum((x - (left + right) / 2).abs() - (right - left) / 2,
                         (y - (bottom + top) / 2).abs() - (top - bottom) / 2)


def ellipse(x, y, cx, cy, rx, ry):
    """Distance to an ellipse, exact for a circle and first order near the border otherwise."""
    small = min(rx, ry)
    if rx == ry:
        return torch.hypot(x - cx, y - cy) - rx
    radius = torch.hypot((x - cx) / rx, (y - cy) / ry)
    slope = torch.hypot((x - cx) / rx**2, (y - cy) / ry**2).clamp_min(1e-6)
    return torch.where(radius > 0.3, (radius - 1) * radius / slope, -small)


def capsule(x, y, start, end, radius):
    """Signed distance to a thick line; `start`, `end` are pairs of numbers or of (n, 1, 1) tensors."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = (((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(x - start[0] - along * dx, y - start[1] - along * dy) - radius


def convex(x, y, *corners):
    """Signed distance to a convex polygon with corners in clockwise order (y up)."""
    sides = []
    for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0])):
        length = math.hypot(bx - ax, by - ay)
        sides.append((x - ax) * ((ay - by) / length) + (y - ay) * ((bx - ax) / length))
    return torch.stack(sides).amax(0)


def ball_normal(x, y, cx, cy, rx, ry):
    """(n, 3, h, w) normals of an ellipsoid seen from the front."""
    nx, ny = ((x - cx) / rx).clamp(-1, 1), ((y - cy) / ry).clamp(-1, 1)
    shrink = torch.hypot(nx, ny).clamp_min(1.0)
    nx, ny = nx / shrink, ny / shrink
    return torch.stack((nx, ny, (1 - nx * nx - ny * ny).clamp_min(0).sqrt()), 1)


class Canvas:
    """The layers of B pictures, with a margin so that windows may reach over the border."""

    def __init__(self, batch: int, height: int, width: int):
        self.height, self.width = height, width
        short, long = sorted((height, width))
        self.unit = short**0.7 * long**0.3  # things keep their shape and fit into wide and tall pictures
        self.margin = round(0.5 * self.unit)
        size = (height + 2 * self.margin, width + 2 * self.margin)
        self.soft = torch.zeros(batch, 6, *size)
        self.hard = torch.zeros(batch, 9, *size)
        self.pose = torch.zeros(batch, 3, *size)

    def crop(self, layer):
        return layer[..., self.margin:self.margin + self.height, self.margin:self.margin + self.width]

    def whole(self, count: int):
        """The window of `count` whole pictures."""
        return [self.margin] * count, [self.margin] * count, self.width, self.height

    def around(self, anchor_px, extent):
        """Windows of one size around anchors (n, 2), for things within `extent` (left, right, bottom, top) units."""
        left, right, bottom, top = (1.1 * self.unit * side for side in extent)  # sizes vary by less than a tenth
        width, height = math.ceil(right - left), math.ceil(top - bottom)
        x_px, y_px = (anchor_px + self.margin).unbind(1)
        x0 = (x_px + left).int().clamp(0, self.soft.shape[-1] - width)
        y0 = (y_px - top).int().clamp(0, self.soft.shape[-2] - height)
        return x0.tolist(), y0.tolist(), width, height


class Brush:
    """A window onto some pictures of a canvas in which strokes are laid, with coordinates of its own.

    x (rightwards, mirrored where flip is -1) and y (upwards) are (n, h, w) in units from the anchor; `commit` puts
    the window back. light: sun side (n,), shade of unlit faces (n,) and the colour (n, 3) of the light.
    """

    def __init__(self, canvas, rows, anchor_px, window, light, size=None, flip=None):
        ones = torch.ones(len(rows))
        self.size, self.flip = size if size is not None else ones, flip if flip is not None else ones
        self.canvas, self.rows, self.scale = canvas, rows, (canvas.unit * self.size)[:, None, None]
        self.x0, self.y0, self.width, self.height = window
        x_px, y_px = (anchor_px + canvas.margin).unbind(1)
        grid_x = torch.tensor(self.x0)[:, None] + torch.arange(self.width) + 0.5 - x_px[:, None]
        grid_y = torch.tensor(self.y0)[:, None] + torch.arange(self.height) + 0.5 - y_px[:, None]
        self.x = (grid_x * self.flip[:, None])[:, None, :] / self.scale + torch.zeros(self.height, 1)
        self.y = -grid_y[:, :, None] / self.scale + torch.zeros(self.width)
        sun, self.ambient, self.tint = light
        self.towards_sun = torch.stack((0.55 * sun * self.flip, SUN_HEIGHT * ones, 0.52 * ones), 1)
        self.soft, self.hard, self.pose = (self._read(layer) for layer in (canvas.soft, canvas.hard, canvas.pose))

    def _views(self, layer):
        return [layer[row, :, y:y + self.height, x:x + self.width] for row, x, y in zip(self.rows, self.x0, self.y0)]

    def _read(self, layer):
        return torch.stack(self._views(layer))

    def commit(self):
        for layer, mine in ((self.canvas.soft, self.soft), (self.canvas.hard, self.hard),
                            (self.canvas.pose, self.pose)):
            for view, new in zip(self._views(layer), mine):
                view.copy_(new)

    def paint(self, distance, albedo, normal, depth, kind, face):
        """Lay one face over what is there.

        distance (n, h, w) in units; albedo (n, 3), three numbers 0..1 or (n, 3, h, w); normal three numbers or
        (n, 3, h, w); depth (n, 1, 1) or (n, h, w), 1 is near; kind: class 0..11; face: number of the face.
        """
        albedo = _spread(albedo)
        normal = _spread(normal)
        shade = (normal * self.towards_sun[:, :, None, None]).sum(1, keepdim=True).clamp_min(0) / SUN_HEIGHT
        dark = self.ambient[:, None, None, None]
        colour = albedo * (dark + (1 - dark) * shade).clamp_max(1) * self.tint[:, :, None, None]
        self.lay(distance, colour, albedo)
        inside = (distance < 0)[:, None]
        hard = self.hard
        hard[:, NORMAL] = torch.where(inside, normal * torch.stack(
            (self.flip, *torch.ones(2, len(self.flip))), 1)[:, :, None, None], hard[:, NORMAL])
        hard[:, TONE] = torch.where(inside, colour, hard[:, TONE])
        inside = inside[:, 0]
        hard[:, DEPTH] = torch.where(inside, depth, hard[:, DEPTH])
        hard[:, CLASS] = torch.where(inside, kind, hard[:, CLASS])
        hard[:, FACE].masked_fill_(inside, face)

    def lay(self, distance, colour, albedo):
        cover = self._cover(distance)
        self.soft[:, IMAGE] += cover * (colour - self.soft[:, IMAGE])
        self.soft[:, ALBEDO] += cover * (albedo - self.soft[:, ALBEDO])

    def glow(self, distance, colour):
        """Light that is seen in the picture only."""
        cover = self._cover(distance)
        self.soft[:, IMAGE] += cover * (colour - self.soft[:, IMAGE])
        self.hard[:, TONE] = torch.where((distance < 0)[:, None], colour, self.hard[:, TONE])

    def shadow(self, distance):
        """Darken the picture where the ground is seen."""
        ground = (self.hard[:, FACE:FACE + 1] < GROUND_FACES) & (self.hard[:, FACE:FACE + 1] > 0)
        dark = (0.9 - self.ambient[:, None, None, None]) * ground
        self.soft[:, IMAGE] *= 1 - dark * self._cover(distance)
        self.hard[:, TONE] *= 1 - dark * (distance < 0)[:, None]

    def mark(self, distance, colour):
        """A stroke in the pose picture."""
        self.pose += self._cover(distance) * (_spread(colour) - self.pose)

    def _cover(self, distance):
        return (0.5 - distance * self.scale).clamp(0, 1)[:, None]


def _spread(value):
    """Three numbers or (n, 3) -> broadcastable to (n, 3, h, w)."""
    value = torch.as_tensor(value, dtype=torch.float32)
    return value if value.ndim == 4 else value.reshape(-1, 3, 1, 1)
