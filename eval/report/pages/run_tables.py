"""Tables of the runs: one row per cell, where the runs came from, the settings that differ."""

from __future__ import annotations

import numpy as np

from ...experiment import Cell, Experiment
from ..number_formats import NONE, Format, beta_or_tau, significant
from ..read.find_scores import Found
from ..read.settings import differing_settings
from .comparison_tables import heading
from .tables import Entry, Link, Table

NOT_SHOWN = ("eval_logps/accuracies", "log_ratio_margin")


def cells_table(experiment: Experiment, found: Found) -> Table:
    """One row per cell. A click on a column's head sorts the rows."""
    scores = [score for score in found.scores if score.name not in NOT_SHOWN]
    tau = ["tau"] if any(point.tau is not None for point in experiment.points) else []
    axes = ["beta", *tau, *experiment.other_axes]
    table = Table(
        "A click on a head sorts. The checkpoints are the steps that the first / the second half "
        "of the held-out items chose. A diverged run is highlighted.",
        [
            *("run", "state", "loss", *axes, "seed", "checkpoints chosen"),
            *(*map(heading, scores), "largest gradient norm", "pairs/s"),
        ],
        [],
        sortable=True,
    )
    for number, cell in enumerate(experiment.cells):
        address = f"{cell.name}/" if experiment.is_grid else "./"
        link = Link(cell.name, address, str(cell.folder))
        chosen = found.checkpoints.get(cell.name)
        if cell.divergence:
            table.highlighted.add(number)
        table.rows.append(
            [
                cell.name if cell.state == "missing" else link,
                cell.state + (f" at step {cell.divergence['step']}" if cell.divergence else ""),
                cell.point.loss,
                *(beta_or_tau(cell.point.numbers.get(name)) for name in axes),
                str(cell.seed),
                "{} / {}".format(*chosen) if chosen else NONE,
                *(Format(score.decimals).number(score.of(number)) for score in scores),
                *map(significant, training_numbers(cell)),
            ]
        )
    return table


def training_numbers(cell: Cell) -> list[float]:
    """The largest gradient norm and the median of pairs per second; NaN before the first step."""
    found = []
    for metric, reduce in (("grad_norm", np.max), ("pairs_per_second", np.median)):
        values = [record.get(metric, np.nan) for record in cell.training]
        known = [value for value in values if np.isfinite(value)]
        found.append(float(reduce(known)) if known else float("nan"))
    return found


def differing_table(experiment: Experiment) -> Table | None:
    """The settings in which cells differ, besides the axes of the grid; None if there are none."""
    differing = differing_settings(experiment)
    if not differing:
        return None
    losses = list(dict.fromkeys(point.loss for point in experiment.points))
    rows: list[list[Entry]] = [
        [name, *("; ".join(map(str, values.get(loss, [NONE]))) for loss in losses)]
        for name, values in differing.items()
    ]
    caption = "Settings in which cells differ, besides loss, beta, tau and seed."
    return Table(caption, ["setting", *losses], rows)
