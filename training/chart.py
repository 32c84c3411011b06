"""Line charts as a picture, drawn with Pillow: panels with axes, round ticks, legends. Lengths in its pixels."""

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

COLOURS = ("#1f6fb4", "#d9541a", "#2a9d57", "#8e5bb5", "#c9971c", "#3aaec0", "#b3325f", "#6b6b6b")
INK, GREY, GRID, PAPER = "#262626", "#6a6a6a", "#e4e4e4", "#ffffff"
SHARP = 3           # drawn so much larger and then reduced, which smooths the lines
PANEL = (480, 312)  # width, height with title and axes
LEFT, RIGHT, TITLE, BELOW, LINE = 58, 14, 30, 46, 17    # around the axes; a line of the legend
MARGIN, HEAD = 16, 34
FEW = 30            # points that are also drawn as dots
LOGARITHMIC = 12    # times that values may differ before the axis is logarithmic


@dataclass(frozen=True)
class Curve:
    label: str
    steps: list[float]
    values: list[float]
    colour: str
    raw: list[float] | None = None    # before smoothing, drawn faintly


@dataclass(frozen=True)
class Panel:
    title: str
    curves: list[Curve]
    legend: bool = False
    zero: bool = False      # the axis begins at 0


# ---- axes -------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    ticks: list[float]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """0..1 between the ends."""
        if self.logarithmic:
            return math.log(max(value, 1e-30) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within low..high, at most `most` steps."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    unit = next(power * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (power * factor) <= most)
    return [number * unit for number in range(math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9) + 1)]


def value_axis(panel: Panel) -> Axis:
    """From all drawn values, but of the faint ones only the middle 96 of 100."""
    values = [value for curve in panel.curves for value in (*curve.values, *middle(curve.raw or []))]
    low, high = min(values), max(values)
    if low > 0 and high > LOGARITHMIC * low and not panel.zero:
        low, high = low / 1.1, high * 1.1
        ticks = [factor * 10.0 ** power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
                 for factor in ((1,) if high > 1e4 * low else (1, 2, 5))]
        return Axis(low, high, [tick for tick in ticks if low <= tick <= high], True)
    low = min(low, 0.0) if panel.zero else low
    room = 0.06 * (high - low) or abs(high) / 2 or 1.0
    low, high = (low if panel.zero else low - room), high + room
    return Axis(low, high, round_ticks(low, high, 8))


def middle(values: list[float]) -> list[float]:
    ordered = sorted(values)
    cut = len(ordered) // 50
    return ordered[cut:len(ordered) - cut]


def number(value: float, small: float = 1e-3) -> str:
    """A short label: 0.25, 20k, 1.5M; below `small` 2e-5."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{round(value / size, 4):g}{letter}"
    if 0 < abs(value) < small:
        mantissa, _, power = f"{value:.3e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{round(value, 12):g}"


# ---- drawing ----------------------------------------------------------------------------------------------------

class Canvas:
    """Draws in pixels of the result on a picture that is SHARP times larger."""

    def __init__(self, width: int, height: int):
        self.image = Image.new("RGB", (width * SHARP, height * SHARP), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, place, text: str, size: int = 12, colour: str = INK, anchor: str = "la") -> None:
        self.draw.text([SHARP * value for value in place], text, fill=colour, font=font(size), anchor=anchor)

    def line(self, points, colour: str, width: float) -> None:
        self.draw.line([(SHARP * x, SHARP * y) for x, y in points], fill=colour, width=round(SHARP * width),
                       joint="curve")

    def dot(self, x: float, y: float, colour: str) -> None:
        self.draw.ellipse([SHARP * (x - 2.6), SHARP * (y - 2.6), SHARP * (x + 2.6), SHARP * (y + 2.6)], fill=colour)

    def paste(self, other: "Canvas", left: float, top: float) -> None:
        self.image.paste(other.image, (round(left * SHARP), round(top * SHARP)))

    def finished(self) -> Image.Image:
        return self.image.reduce(SHARP)


def font(size: int):
    return ImageFont.load_default(size * SHARP)


def text_width(text: str, size: int = 12) -> float:
    return font(size).getlength(text) / SHARP


def faint(colour: str) -> str:
    return "#" + "".join(f"{round(255 - 0.32 * (255 - int(colour[at:at + 2], 16))):02x}" for at in (1, 3, 5))


def legend_rows(entries: list[tuple[str, str]], width: float) -> list[list[tuple[float, str, str]]]:
    """(label, colour) in rows of at most `width`: (left, label, colour)."""
    rows, left = [[]], 0.0
    for label, colour in entries:
        wide = 34 + text_width(label)
        if left and left + wide > width:
            rows.append([])
            left = 0.0
        rows[-1].append((left, label, colour))
        left += wide
    return rows


def draw_legend(canvas: Canvas, rows, left: float, top: float) -> None:
    for place, row in enumerate(rows):
        for offset, label, colour in row:
            middle_y = top + LINE * (place + 0.5)
            canvas.line([(left + offset, middle_y), (left + offset + 16, middle_y)], colour, 2.2)
            canvas.text((left + offset + 21, middle_y), label, colour=GREY, anchor="lm")


def draw_panel(canvas: Canvas, panel: Panel, left: float, top: float, steps: Axis) -> None:
    width, height = PANEL
    wide = width - LEFT - RIGHT
    rows = legend_rows([(curve.label, curve.colour) for curve in panel.curves], wide) if panel.legend else []
    x0, y0 = left + LEFT, top + TITLE + LINE * len(rows)
    high = top + height - BELOW - y0
    values = value_axis(panel)
    canvas.text((x0, top + TITLE / 2), panel.title, 14, anchor="lm")
    draw_legend(canvas, rows, x0, top + TITLE - 4)
    area = Canvas(wide, round(high))
    small = 1e-2 if max(map(abs, values.ticks)) < 1e-2 else 1e-3    # all labels of an axis alike
    for tick in values.ticks:
        y = (1 - values.place(tick)) * high
        area.line([(0, y), (wide, y)], GRID, 0.8)
        canvas.text((x0 - 7, y0 + y), number(tick, small), 11, GREY, "rm")
    for tick in steps.ticks:
        x = steps.place(tick) * wide
        area.line([(x, 0), (x, high)], GRID, 0.8)
        canvas.text((x0 + x, y0 + high + 6), number(tick), 11, GREY, "ma")
    canvas.text((x0 + wide / 2, y0 + high + 21), "step", 11, GREY, "ma")
    draw_curves(area, panel, steps, values, wide, high)
    canvas.paste(area, x0, y0)
    canvas.line([(x0, y0), (x0, y0 + high), (x0 + wide, y0 + high)], GREY, 1)


def draw_curves(area: Canvas, panel: Panel, steps: Axis, values: Axis, wide: float, high: float) -> None:
    def points(curve: Curve, heights: list[float]) -> list[tuple[float, float]]:
        return [(steps.place(step) * wide, (1 - values.place(value)) * high)
                for step, value in zip(curve.steps, heights)]

    for curve in panel.curves:
        if curve.raw:
            area.line(points(curve, curve.raw), faint(curve.colour), 1)
    for curve in panel.curves:
        places = points(curve, curve.values)
        area.line(places, curve.colour, 1.8)
        for place in places if len(places) <= FEW else ():
            area.dot(*place, curve.colour)


def draw_page(heading: str, entries: list[tuple[str, str]], panels: list[Panel], columns: int) -> Image.Image:
    """Panels row by row over the same steps. entries: (label, colour) of a legend for all of them."""
    last = max(curve.steps[-1] for panel in panels for curve in panel.curves)
    last = max(last, 1)
    steps = Axis(-0.015 * last, 1.015 * last, round_ticks(0, last, 7))
    width, height = PANEL
    columns = min(columns, len(panels))
    full = columns * width + 2 * MARGIN
    legend = legend_rows(entries, full - 2 * MARGIN - LEFT) if entries else []
    top = MARGIN + HEAD + LINE * len(legend)
    canvas = Canvas(full, top + math.ceil(len(panels) / columns) * height + MARGIN)
    canvas.text((MARGIN + LEFT, MARGIN + HEAD / 2), heading, 18, anchor="lm")
    draw_legend(canvas, legend, MARGIN + LEFT, MARGIN + HEAD)
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        draw_panel(canvas, panel, MARGIN + column * width, top + row * height, steps)
    return canvas.finished()
