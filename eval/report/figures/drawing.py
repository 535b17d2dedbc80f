"""The look of a picture: readable in grey, by colour-blind readers, and on a phone.

Every line has a marker and a dash pattern besides its colour. Every picture is one panel, so that a
narrow screen shows the pictures below each other at full size.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours: all common kinds of colour vision tell them apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (8, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (2, 3)),
)
BAND = "#e8e8e8"
# The two betas that the experiment is about.
EXTREMES = (0.01, 2.5)

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "hatch.color": "#ffffff",
    "hatch.linewidth": 0.7,
    # Names inside the file are hashes. With a fixed salt, the same picture gives the same file.
    "svg.hashsalt": "tddpo_jax",
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawn panel.

    Attributes:
        name: the name of its file, without the ending.
        title: what it shows, also for those who cannot see it.
        inches: its width.
        svg: the drawing. Text is drawn as outlines, so it needs no fonts.
    """

    name: str
    title: str
    inches: float
    svg: bytes

    @property
    def uri(self) -> str:
        """The picture as a data address, for a page that loads nothing."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


@dataclasses.dataclass(frozen=True)
class Look:
    """The colour, marker and dashes that tell a line from others."""

    colour: str
    marker: str
    dashes: Any

    @property
    def line(self) -> dict[str, Any]:
        """The arguments of matplotlib for the line."""
        return {"color": self.colour, "linestyle": self.dashes}


def look(number: int) -> Look:
    """The look of the line of this number. After seven lines, markers and colours mix anew."""
    turn = number // len(COLOURS)
    place = number % len(COLOURS)
    return Look(COLOURS[place], MARKERS[(place + turn) % len(MARKERS)], DASHES[place])


class Frame(NamedTuple):
    """Room around the axes, in inches. It is fixed, so that panels side by side line up."""

    left: float = 0.62
    right: float = 0.12
    top: float = 0.3
    bottom: float = 0.95


USUAL = Frame()


@contextmanager
def panel(
    title: str, *, width: float = 4.4, height: float = 3.4, frame: Frame = USUAL
) -> Iterator[tuple[Figure, Axes]]:
    """Makes a figure with one pair of axes in our style. Sizes are in inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(
            left=frame.left / width,
            right=1 - frame.right / width,
            bottom=frame.bottom / height,
            top=1 - frame.top / height,
        )
        axes = figure.add_subplot()
        axes.set_title(title, loc="left")
        yield figure, axes


def picture(figure: Figure, name: str, title: str) -> Picture:
    """The figure as SVG."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    width = float(figure.get_size_inches()[0])
    return Picture(name.replace(" ", "_"), title, width, file.getvalue())


def beta_axis(axes: Axes, betas: Sequence[float]) -> None:
    """Puts the betas on the axis, evenly spaced. The extremes are bold, on a grey band."""
    axes.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    axes.set_xlim(-0.5, len(betas) - 0.5)
    axes.set_xlabel("beta (values tried, evenly spaced)")
    axes.grid(axis="x", visible=False)
    for place, beta in enumerate(betas):
        if beta in EXTREMES:
            axes.axvspan(place - 0.45, place + 0.45, color=BAND, zorder=0, linewidth=0)
            axes.get_xticklabels()[place].set_fontweight("bold")


def legend_below(figure: Figure, axes: Axes) -> None:
    """Puts the legend at the bottom, where it covers nothing. It holds each label once."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="lower center", ncols=3, handlelength=3.2)
