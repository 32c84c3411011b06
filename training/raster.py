"""Painting a batch of scenes with signed distances: every stroke fills the picture and all exact labels at once.

Lengths are in *units* of about the side of the picture. What is shown is antialiased, what is measured is crisp.
"""

import math

import torch

# Channels of a canvas. TONE is the image without soft borders, FACE the number of the face that is seen.
IMAGE, ALBEDO, TONE, NORMAL = slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 12)
DEPTH, CLASS, FACE, POSE, SHADOW = slice(12, 13), slice(13, 14), slice(14, 15), slice(15, 18), slice(18, 19)
CHANNELS = 19

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
    """All channels of B pictures, (B, CHANNELS, height, width)."""

    def __init__(self, batch: int, height: int, width: int):
        self.height, self.width = height, width
        short, long = sorted((height, width))
        self.unit = short**0.7 * long**0.3  # things keep their shape and fit into wide and tall pictures
        self.layers = torch.zeros(batch, CHANNELS, height, width)

    def whole(self, count: int):
        """The window of `count` whole pictures."""
        return [0] * count, [0] * count, self.width, self.height

    def around(self, anchor_px, extent):
        """Windows of one size around anchors (n, 2), for things within `extent` (left, right, bottom, top) units.

        A window that would reach over the border is moved inwards, where it still holds all that can be seen.
        """
        left, right, bottom, top = (1.1 * self.unit * side for side in extent)  # sizes vary by less than a tenth
        width, height = min(math.ceil(right - left), self.width), min(math.ceil(top - bottom), self.height)
        x_px, y_px = anchor_px.unbind(1)
        x0 = (x_px + left).int().clamp(0, self.width - width)
        y0 = (y_px - top).int().clamp(0, self.height - height)
        return x0.tolist(), y0.tolist(), width, height


class Brush:
    """A window onto some pictures of a canvas in which strokes are laid, with coordinates of its own.

    x (rightwards, mirrored where flip is -1) and y (upwards) are (n, h, w) in units from the anchor; `commit` puts
    the window back. light: side of the sun (n,), shade of unlit faces (n,) and colour (n, 3) of the light.
    """

    def __init__(self, canvas, rows, anchor_px, window, light, size=None, flip=None):
        ones = torch.ones(len(rows))
        self.flip = flip if flip is not None else ones
        self.scale = (canvas.unit * (size if size is not None else ones))[:, None, None]
        x0, y0, width, height = window
        x_px, y_px = anchor_px.unbind(1)
        grid_x = torch.tensor(x0)[:, None] + torch.arange(width) + 0.5 - x_px[:, None]
        grid_y = torch.tensor(y0)[:, None] + torch.arange(height) + 0.5 - y_px[:, None]
        self.x = (grid_x * self.flip[:, None])[:, None, :] / self.scale + torch.zeros(height, 1)
        self.y = -grid_y[:, :, None] / self.scale + torch.zeros(width)
        sun, self.ambient, self.tint = light
        self.towards_sun = torch.stack((0.55 * sun * self.flip, SUN_HEIGHT * ones, 0.52 * ones), 1)
        self._views = [canvas.layers[row, :, y:y + height, x:x + width] for row, x, y in zip(rows, x0, y0)]
        self.layers = torch.stack(self._views)

    def commit(self):
        for view, mine in zip(self._views, self.layers):
            view.copy_(mine)

    def put(self, channels, where, value):
        """Replace channels where a (n, 1, h, w) mask is true."""
        self.layers[:, channels] = torch.where(where, value, self.layers[:, channels])

    def blend(self, channels, cover, value):
        """Replace channels by as much as the (n, 1, h, w) cover says."""
        part = self.layers[:, channels]
        part += cover * (value - part)

    def paint(self, distance, albedo, normal, depth, kind, face):
        """Lay one face over what is there.

        distance (n, h, w) in units; albedo (n, 3) or three numbers 0..1; normal three numbers or (n, 3, h, w) in the
        brush's own x; depth (n, 1, 1) or (n, h, w), 1 is near; kind: class 0..11; face: number of the face.
        """
        albedo, normal = _spread(albedo), _spread(normal)
        lit = (normal * self.towards_sun[:, :, None, None]).sum(1, keepdim=True).clamp_min(0) / SUN_HEIGHT
        dark = self.ambient[:, None, None, None]
        colour = albedo * (dark + (1 - dark) * lit).clamp_max(1) * self.tint[:, :, None, None]
        cover, inside = self._cover(distance), (distance < 0)[:, None]
        self.blend(IMAGE, cover, colour)
        self.blend(ALBEDO, cover, albedo)
        self.blend(SHADOW, cover, 0.0)
        self.put(TONE, inside, colour)
        self.put(NORMAL, inside, normal * torch.stack((self.flip, *torch.ones(2, len(self.flip))), 1)[..., None, None])
        self.put(DEPTH, inside, depth[:, None])
        self.put(CLASS, inside, kind)
        self.put(FACE, inside, face)

    def glow(self, distance, colour):
        """Light that is seen in the picture only; colour (n, 3)."""
        self.blend(IMAGE, self._cover(distance), _spread(colour))
        self.put(TONE, (distance < 0)[:, None], _spread(colour))

    def shadow(self, distance):
        """Darken the picture where the ground is seen."""
        ground, cover = self.layers[:, FACE] < GROUND_FACES, self._cover(distance)
        dark = (0.9 - self.ambient[:, None, None, None]) * ground
        self.layers[:, IMAGE] *= 1 - dark * cover
        self.layers[:, SHADOW] = torch.maximum(self.layers[:, SHADOW], cover * ground)
        self.layers[:, TONE] *= 1 - dark * (distance < 0)[:, None]

    def mark(self, distance, colour):
        """A stroke in the pose picture."""
        self.blend(POSE, self._cover(distance), _spread(colour))

    def _cover(self, distance):
        return (0.5 - distance * self.scale).clamp(0, 1)[:, None]


def _spread(value):
    """Three numbers or (n, 3) -> broadcastable to (n, 3, h, w)."""
    value = torch.as_tensor(value, dtype=torch.float32)
    return value if value.ndim == 4 else value.reshape(-1, 3, 1, 1)
