"""Draws one chart as SVG: lines with dots, named at their ends, whose values show on hover.

Colours are variables, so that a chart follows the light or dark scheme of its page. A file of its
own carries the variables with it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

# Okabe and Ito's colours, which all common kinds of colour vision tell apart.
COLOURS = 7
STYLE = """:root { --bg: #fff; --ink: #1b1b1b; --soft: #5a5a5a; --line: #d8d8d8; --tint: #f3f3ef;
  --link: #0b4f8a; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0578d; --c4: #a97a00;
  --c5: #7355c0; --c6: #1b1b1b; }
@media (prefers-color-scheme: dark) { :root { --bg: #16181b; --ink: #e8e8e8; --soft: #a8a8a8;
  --line: #3a3d42; --tint: #22252a; --link: #7cc0f5; --c0: #56b4e9; --c1: #ff8a3d; --c2: #3cc99a;
  --c3: #e08fc0; --c4: #f0c040; --c5: #b9a5f5; --c6: #e8e8e8; } }
svg { font-family: system-ui, sans-serif; } svg text { fill: var(--soft); font-size: 14px; }
svg .name { font-size: 14px; font-weight: 600; } svg .grid { stroke: var(--line); }
svg .base { stroke: var(--soft); stroke-dasharray: 5 4; } svg .line { fill: none; stroke-width: 2; }
"""
WIDTH, LEFT, TOP, BOTTOM, HEIGHT = 500, 50, 30, 250, 300
GAP = 17  # between the names of lines


class Dot(NamedTuple):
    """A value of a line.

    Attributes:
        x: the place on the axis, from 0 to 1.
        seeds: places and values of the single seeds, drawn small.
        interval: an upright bar, cut at the chart's edges; None for none.
    """

    x: float
    y: float
    text: str
    seeds: Sequence[tuple[float, float]] = ()
    interval: tuple[float, float] | None = None


class Line(NamedTuple):
    """A named line; the number chooses its colour, and its dashes after seven lines."""

    name: str
    number: int
    dots: list[Dot]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawn chart.

    Attributes:
        name: the name of its file, without the ending.
        title: what it shows, also for those who cannot see it.
        svg: the drawing, for a page that holds `STYLE`.
    """

    name: str
    title: str
    svg: str

    @property
    def file(self) -> str:
        """The drawing as a file of its own."""
        background = '<rect width="100%" height="100%" fill="var(--bg)"/>'
        head, tail = self.svg.split(">", 1)
        namespace = ' xmlns="http://www.w3.org/2000/svg"'
        return f"{head}{namespace}><style>{STYLE}</style>{background}{tail}\n"


def ticks_between(low: float, high: float) -> list[float]:
    """Three to six round numbers that hold both values between them.

    >>> ticks_between(0.44, 0.68)
    [0.4, 0.5, 0.6, 0.7]
    """
    spread = max(high - low, abs(high) * 1e-3, 1e-6)
    power = 10.0 ** math.floor(math.log10(spread / 3))
    step = next(power * n for n in (1, 2, 5, 10) if spread / (power * n) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def logarithmic(values: Sequence[float]) -> tuple[list[tuple[float, str]], np.ndarray]:
    """The marks of a logarithmic axis for positive values, and their places on it."""
    logs = np.log10(np.asarray(values, np.float64))
    low, high = float(logs.min()), float(logs.max())
    room = max(0.06 * (high - low), 0.05)
    low, high = low - room, high + room
    steps = (1,) if high - low > 3 else (1, 3) if high - low > 1.3 else (1, 2, 5)
    every = [n * 10.0**p for p in range(math.floor(low), math.ceil(high) + 1) for n in steps]
    places = (np.log10(every) - low) / (high - low)
    marks = [(float(x), f"{v:g}") for x, v in zip(places, every, strict=True) if 0 <= x <= 1]
    return marks, (logs - low) / (high - low)


def limits_of(lines: Sequence[Line], base: float | None) -> tuple[float, float]:
    """The lowest and the highest value that a chart must show."""
    values = [dot.y for line in lines for dot in line.dots]
    values += [y for line in lines for dot in line.dots for _, y in dot.seeds]
    values += [] if base is None else [base]
    return min(values), max(values)


def chart(
    name: str,
    title: str,
    lines: Sequence[Line],
    across: str,
    marks: Sequence[tuple[float, str]],
    upright: str,
    *,
    base: float | None = None,
    limits: tuple[float, float] | None = None,
) -> Picture:
    """Draws lines over an axis.

    Args:
        name, title: of the picture.
        lines: the lines, each with a dot or more.
        across: what the axis below shows.
        marks: its ticks: the place of each from 0 to 1, and its text.
        upright: what the upright axis shows.
        base: the value of the model before training, a dashed line.
        limits: the values that the upright axis must hold; by default those of the lines.
    """
    levels = ticks_between(*(limits or limits_of(lines, base)))
    right = float(WIDTH - 16) - min(max((len(line.name) for line in lines), default=0) * 9, 210)

    def place(dot: tuple[float, float]) -> tuple[float, float]:
        share = (dot[1] - levels[0]) / (levels[-1] - levels[0])
        x = LEFT + 14 + dot[0] * (right - LEFT - 28)
        return round(x, 1), round(BOTTOM - min(max(share, 0.0), 1.0) * (BOTTOM - TOP), 1)

    parts = [f'<text x="4" y="14">{escape(upright)}</text>']
    for level in levels:
        y = place((0.0, level))[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 5}" text-anchor="end">{level:g}</text>')
    for share, text in marks:
        x = place((share, 0.0))[0]
        parts.append(f'<text x="{x}" y="{BOTTOM + 18}" text-anchor="middle">{escape(text)}</text>')
    middle = (LEFT + right) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>'
    )
    if base is not None:
        y = place((0.0, base))[1]
        parts.append(f'<line class="base" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT + 2}" y="{y - 5}">before training</text>')
    ends = {}
    for line in lines:
        colour = f"var(--c{line.number % COLOURS})"
        dashes = f' stroke-dasharray="{3 * (line.number // COLOURS)} 3"'
        spots = [place((dot.x, dot.y)) for dot in line.dots]
        ends[line.name] = (max(spots), colour)
        points = " ".join(f"{x},{y}" for x, y in spots)
        parts.append(
            f'<polyline class="line" stroke="{colour}" points="{points}"'
            f"{dashes if line.number >= COLOURS else ''}/>"
        )
        for dot, spot in zip(line.dots, spots, strict=True):
            small = [place(seed) for seed in dot.seeds]
            bar = [place((dot.x, y)) for y in dot.interval] if dot.interval else None
            parts += [f'<g fill="{colour}" stroke="{colour}">', *_dot(dot.text, spot, small, bar)]
    parts += _names(ends, right)
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
    return Picture(name.replace(" ", "_").replace("/", "_"), title, svg)


def _dot(
    text: str,
    spot: tuple[float, float],
    seeds: Sequence[tuple[float, float]],
    bar: Sequence[tuple[float, float]] | None,
) -> Iterator[str]:
    """A dot with its seeds and its interval; the text shows on hover."""
    yield f"<title>{escape(text)}</title>"
    if bar:
        (x, low), (_, high) = bar
        yield f'<line x1="{x}" x2="{x}" y1="{low}" y2="{high}" opacity=".4"/>'
    for x, y in seeds:
        yield f'<circle cx="{x}" cy="{y}" r="2.5" opacity=".55" stroke="none"/>'
    x, y = spot
    # The transparent disc makes a dot easy to touch.
    yield f'<circle cx="{x}" cy="{y}" r="12" opacity="0"/><circle cx="{x}" cy="{y}" r="4.5"/></g>'


def _names(ends: dict[str, tuple[tuple[float, float], str]], right: float) -> Iterator[str]:
    """The names of lines beside their ends, moved apart where they would lie on each other."""
    heights: list[float] = []
    order = sorted(ends.items(), key=lambda one: one[1][0][1])
    for _, (spot, _) in order:
        heights.append(max(spot[1], heights[-1] + GAP if heights else TOP))
    over = max(heights[-1] - BOTTOM, 0.0) if heights else 0.0
    for (name, (spot, colour)), height in zip(order, heights, strict=True):
        y = round(height - over, 1)
        yield f'<line stroke="{colour}" x1="{spot[0] + 6}" y1="{spot[1]}" '
        yield f'x2="{right + 2}" y2="{y}" opacity=".35"/>'
        yield f'<text class="name" x="{right + 5}" y="{y + 5}" style="fill: {colour}">'
        yield f"{escape(name)}</text>"
