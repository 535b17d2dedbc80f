"""Tables of the runs: one row per cell, where the runs came from, the settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...experiment import Cell, Experiment
from ..number_formats import NONE, Format, beta_or_tau, significant
from ..read.find_scores import Found
from ..read.scores import Score
from ..read.settings import differing_settings
from ..read.validation_scores import Checkpoints
from .comparison_tables import heading
from .tables import Entry, Link, Table

NOT_SHOWN = ("eval_logps/accuracies", "log_ratio_margin")


def cells_table(experiment: Experiment, found: Found) -> Table:
    """One row per cell. A click on a column's head sorts the rows."""
    scores = [score for score in found.scores if score.name not in NOT_SHOWN]
    tau = ["tau"] if any(point.tau is not None for point in experiment.points) else []
    axes = [*tau, *experiment.other_axes]
    head = ["run", "state", "loss", "beta", *axes, "seed", "checkpoints chosen"]
    head += [*(heading(score) for score in scores), "largest gradient norm", "pairs/s"]
    rows = [
        _cell_row(experiment, cell, number, scores, axes, found.checkpoints.get(cell.name))
        for number, cell in enumerate(experiment.cells)
    ]
    diverged = {n for n, cell in enumerate(experiment.cells) if cell.state == "diverged"}
    return Table(
        "A click on a head sorts. The checkpoints are the steps that the first / the second half "
        "of the held-out items chose. A diverged run is highlighted.",
        head,
        rows,
        highlighted=diverged,
        sortable=True,
    )


def _cell_row(
    experiment: Experiment,
    cell: Cell,
    number: int,
    scores: Sequence[Score],
    axes: Sequence[str],
    checkpoints: Checkpoints | None,
) -> list[Entry]:
    base = f"{cell.name}/" if experiment.is_grid else ""
    point, state = cell.point, cell.state
    at = f" at step {cell.divergence['step']}" if cell.divergence else ""
    row: list[Entry] = [
        Link(cell.name, base or "./", str(cell.folder)) if state != "missing" else cell.name,
        f"{state}{at}",
        point.loss,
        beta_or_tau(point.beta),
        *(beta_or_tau(point.numbers.get(name)) for name in axes),
        str(cell.seed),
        f"{checkpoints.first} / {checkpoints.second}" if checkpoints else NONE,
    ]
    row += [Format(score.decimals).number(score.of(number)) for score in scores]
    return [*row, significant(largest_gradient(cell)), significant(speed(cell))]


def largest_gradient(cell: Cell) -> float:
    """The largest finite gradient norm of a run; NaN before its first step."""
    return _of_training(cell, "grad_norm", np.max)


def speed(cell: Cell) -> float:
    """The median of a run's pairs per second; NaN before its first step."""
    return _of_training(cell, "pairs_per_second", np.median)


def _of_training(cell: Cell, metric: str, reduce: Any) -> float:
    values = [record.get(metric, np.nan) for record in cell.training]
    known = [value for value in values if np.isfinite(value)]
    return float(reduce(known)) if known else float("nan")


def differing_tables(experiment: Experiment) -> list[Table]:
    """The settings in which cells differ, besides the axes of the grid; empty if there are none."""
    differing = differing_settings(experiment)
    if not differing:
        return []
    losses = list(dict.fromkeys(point.loss for point in experiment.points))
    rows: list[list[Entry]] = [
        [name, *("; ".join(map(str, values.get(loss, [NONE]))) for loss in losses)]
        for name, values in differing.items()
    ]
    caption = "Settings in which cells differ, besides loss, beta, tau and seed."
    return [Table(caption, ["setting", *losses], rows)]
