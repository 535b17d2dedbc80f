"""Pictures over steps: one panel per loss and tau, one look per beta, one line per seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ...experiment import Cell, Experiment, Record
from .drawing import Picture, legend_below, look, panel, picture

MOST_POINTS = 60  # of a line; longer lines are averaged in bins

Curve = tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]


def learning_curves(experiment: Experiment) -> list[Picture]:
    """Draws validation reward accuracy and training loss over steps."""
    accuracy = _panels(
        experiment,
        lambda cell: _curve(cell.validations, "eval_rewards/accuracies"),
        name="curve_accuracy",
        title="validation reward accuracy",
        unit="share of pairs",
        same_scale=True,
    )
    loss = _panels(
        experiment,
        lambda cell: _curve(cell.training, "loss"),
        name="curve_loss",
        title="training loss",
        unit="nats",
    )
    return accuracy + loss


def gradient_norms(experiment: Experiment) -> list[Picture]:
    """Draws the norm of the gradient before clipping, over steps."""
    return _panels(
        experiment,
        lambda cell: _curve(cell.training, "grad_norm"),
        name="grad_norm",
        title="gradient norm",
        unit="L2 norm before clipping",
        same_scale=True,
        logarithmic=True,
    )


def _curve(records: Sequence[Record], metric: str) -> Curve:
    """Steps and finite values of a metric, in at most `MOST_POINTS` bins of equal size."""
    known = [(r["step"], r[metric]) for r in records if np.isfinite(r.get(metric, np.nan))]
    steps, values = np.array(known, np.float64).reshape(-1, 2).T
    bins = np.array_split(np.arange(len(steps)), min(len(steps), MOST_POINTS)) if known else []
    return (
        np.array([steps[one].mean() for one in bins]),
        np.array([values[one].mean() for one in bins]),
    )


def _panels(
    experiment: Experiment,
    curve_of: Callable[[Cell], Curve],
    *,
    name: str,
    title: str,
    unit: str,
    same_scale: bool = False,
    logarithmic: bool = False,
) -> list[Picture]:
    curves = {cell.name: curve_of(cell) for cell in experiment.cells}
    drawn = [cell for cell in experiment.cells if len(curves[cell.name][0])]
    if not drawn:
        return []
    every = np.concatenate([curves[cell.name][1] for cell in drawn])
    betas = experiment.betas
    pictures = []
    for series in dict.fromkeys(cell.point.series for cell in drawn):
        own = [cell for cell in drawn if cell.point.series == series]
        with panel(f"{title}: {series}") as (figure, axes):
            for cell in own:
                _draw(axes, cell, curves[cell.name], betas.index(float(cell.point.beta)))
            if logarithmic:
                _logarithmic(axes)
            if same_scale:
                _same_scale(axes, every, logarithmic)
            axes.set_xlabel("step")
            axes.set_ylabel(unit)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            legend_below(figure, axes)
            pictures.append(
                picture(figure, f"{name}-{series}".replace(",", ""), f"{title}: {series}")
            )
    return pictures


def _draw(axes: Axes, cell: Cell, curve: Curve, number: int) -> None:
    steps, values = curve
    style = look(number)
    axes.plot(
        steps,
        values,
        marker=style.marker,
        markersize=3.2,
        markevery=max(len(steps) // 6, 1),
        linewidth=0.9,
        alpha=0.85,
        label=f"beta {cell.point.beta:g}",
        **style.line,
    )
    if cell.state == "diverged":
        axes.plot(
            steps[-1], values[-1], "x", color="black", markersize=8, zorder=4, label="diverged"
        )


def _logarithmic(axes: Axes) -> None:
    """Sets a logarithmic axis with short labels: matplotlib's own, as `6 x 10^0`, have no room."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _same_scale(axes: Axes, values: Float[np.ndarray, " N"], logarithmic: bool) -> None:
    """Sets limits that hold all values of all panels."""
    low, high = float(values.min()), float(values.max())
    if logarithmic and low > 0:
        axes.set_ylim(low / 1.2, high * 1.2)
    elif not logarithmic:
        room = 0.05 * max(high - low, 1e-3)
        axes.set_ylim(low - room, high + room)
