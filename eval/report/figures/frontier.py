"""A picture of reward against KL: what a score costs in distance from the reference.

References:
    Rafailov et al., "Direct Preference Optimization" (2023), arXiv 2305.18290, figure 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from ...experiment import Experiment, Point
from ..read.scores import Score
from .drawing import EXTREMES, Look, Picture, legend_below, look, panel, picture

# For each setting, the KL and the score of its cells.
Places = dict[Point, Float[np.ndarray, "N 2"]]


def frontier(
    experiment: Experiment, score: Score, kl: Mapping[str, float], kl_label: str
) -> Picture:
    """Draws a small mark per cell, a large mark per setting, and a line along beta per series.

    Args:
        experiment: the cells.
        score: the score on the upright axis.
        kl: the KL of each cell in nats, by the cell's name; cells without one are left out.
        kl_label: the label of the KL's axis, which says what it is measured on.
    """
    title = f"{score.title} against KL"
    places = _places(experiment, score, kl)
    with panel(title, width=5.4, height=4.4) as (figure, axes):
        for number, series in enumerate(dict.fromkeys(point.series for point in places)):
            own = {point: xy for point, xy in places.items() if point.series == series}
            _draw(axes, own, look(number))
        axes.set_xscale("log")
        axes.set_xlabel(kl_label)
        axes.set_ylabel(f"{score.title} ({score.unit})")
        legend_below(figure, axes)
        return picture(figure, f"frontier-{score.name}", f"{title}, one mark per cell")


def _places(experiment: Experiment, score: Score, kl: Mapping[str, float]) -> Places:
    """KL and score of each cell. A sampled KL of 0 or less is drawn at the smallest above 0."""
    found: dict[Point, list[tuple[float, float]]] = {}
    for number, cell in enumerate(experiment.cells):
        if cell.ended and score.has(number) and np.isfinite(kl.get(cell.name, np.nan)):
            found.setdefault(cell.point, []).append((kl[cell.name], score.of(number)))
    smallest = min((x for own in found.values() for x, _ in own if x > 0), default=1.0)
    return {point: np.maximum(own, [smallest, -np.inf]) for point, own in found.items()}


def _draw(axes: Axes, places: Places, style: Look) -> None:
    for xy in places.values():
        axes.plot(*xy.T, style.marker, color=style.colour, markersize=3.5, alpha=0.5)
    # The middle of the marks: the KL axis is logarithmic, so its mean is geometric.
    means = {
        point: (np.exp(np.log(xy[:, 0]).mean()), xy[:, 1].mean()) for point, xy in places.items()
    }
    axes.plot(
        *np.array(list(means.values())).T,
        marker=style.marker,
        markersize=6.5,
        markeredgecolor="white",
        linewidth=1.2,
        label=next(iter(places)).series,
        **style.line,
    )
    for point, place in means.items():
        axes.annotate(
            f"{point.beta:g}",
            place,
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=6.5,
            color=style.colour,
            fontweight="bold" if point.beta in EXTREMES else "normal",
        )
