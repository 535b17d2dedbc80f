"""Heat maps: beta runs down, tau across, and a tile shows the mean over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle

from ...experiment import Experiment, Point
from ..number_formats import NONE
from ..statistics.score_statistics import Study
from .drawing import EXTREMES, Frame, Picture, panel, picture

FRAME = Frame(left=0.6, right=0.95, bottom=0.45)
TILE = (1.0, 0.62)  # inches
# The lines of a tile: place below its middle, font size, font weight.
LINES = ((-0.2, 10.0, "bold"), (0.1, 6.5, "normal"), (0.34, 7.0, "normal"))


def heat_map(experiment: Experiment, study: Study, *, logarithmic: bool = False) -> Picture:
    """Draws a tile per setting. A loss without tau has one column. The extreme betas are framed."""
    score, betas = study.score, experiment.betas
    columns = list(dict.fromkeys((point.loss, point.tau) for point in experiment.points))
    title = f"{score.title} ({score.unit})"
    width = FRAME.left + FRAME.right + TILE[0] * max(len(columns), 3)
    height = FRAME.top + FRAME.bottom + TILE[1] * len(betas)
    with panel(title, width=width, height=height, frame=FRAME) as (figure, axes):
        colours = matplotlib.cm.ScalarMappable(
            _norm(study, logarithmic), "cividis" if score.higher else "cividis_r"
        )
        for across, (loss, tau) in enumerate(columns):
            for down, beta in enumerate(betas):
                point = Point(loss, beta, tau)
                found = study.estimates.get(point)
                colour = colours.to_rgba(np.array(found.mean)) if found else np.ones(4)
                _tile(axes, across, down, colour, _lines(experiment, study, point))
        _name_axes(axes, columns, betas)
        box = axes.get_position()
        place = figure.add_axes((box.x1 + 0.12 / width, box.y0, 0.14 / width, box.height))
        figure.colorbar(colours, cax=place, label=score.unit).outline.set_visible(False)
        return picture(figure, f"heat_map-{score.name}", f"Heat map of {title} by beta and tau")


def _norm(study: Study, logarithmic: bool) -> Normalize:
    means = [found.mean for point, found in study.estimates.items() if point.is_setting]
    low, high = min(means), max(means)
    if logarithmic and low > 0:
        return LogNorm(low, max(high, low * 1.01))
    return Normalize(low, max(high, low + 1e-9))


def _lines(experiment: Experiment, study: Study, point: Point) -> list[str]:
    """The lines of a tile: the mean, its interval, how many cells diverged."""
    found = study.estimates.get(point)
    if found is None:
        return ["no score"] if point in experiment.points else [NONE]
    low, high = (study.show.number(end) for end in found.interval)
    lines = [study.show.number(found.mean), f"{low} to {high}"]
    diverged, ended = experiment.diverged(point)
    return [*lines, f"× {diverged} of {ended} diverged"] if diverged else lines


def _tile(
    axes: Axes, across: int, down: int, colour: Float[np.ndarray, 4], lines: Sequence[str]
) -> None:
    corner = (across + 0.02, down + 0.02)
    axes.add_patch(Rectangle(corner, 0.96, 0.96, color=colour, linewidth=0))
    # The brightness that the eye sees decides which ink is readable.
    brightness = float(np.dot(colour[:3], (0.2126, 0.7152, 0.0722)))
    ink = "black" if brightness > 0.45 else "white"
    for text, (place, size, weight) in zip(lines, LINES, strict=False):
        axes.text(
            across + 0.5,
            down + 0.5 + place,
            text,
            horizontalalignment="center",
            verticalalignment="center",
            color=ink,
            fontsize=size,
            fontweight=weight,
        )


def _name_axes(
    axes: Axes, columns: Sequence[tuple[str, float | str | None]], betas: Sequence[float]
) -> None:
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(betas), 0)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    names = [loss if tau is None else f"{loss}\ntau {tau:g}" for loss, tau in columns]
    axes.set_xticks(np.arange(len(columns)) + 0.5, names)
    axes.set_yticks(np.arange(len(betas)) + 0.5, [f"{beta:g}" for beta in betas])
    axes.set_ylabel("beta")
    for down, beta in enumerate(betas):
        if beta in EXTREMES:
            axes.get_yticklabels()[down].set_fontweight("bold")
            place = (0.0, float(down))
            axes.add_patch(
                Rectangle(place, len(columns), 1, fill=False, linewidth=1.6, clip_on=False)
            )
