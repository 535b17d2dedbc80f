"""The curves of all runs, as data that the page draws: any metric of `metrics.jsonl` over steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...experiment import Cell
from ..analysis import Analysis
from ..answer import name_of, varying

MOST_POINTS = 80  # of a curve; longer ones are averaged in bins
NO_CURVES = {"step", "epoch"}


def curves_of(analysis: Analysis) -> dict[str, Any]:
    """For the page: the metrics, and of each run its setting and its curves by metric.

    `shown` names the settings that are visible at first: the best three.
    """
    axes = varying(analysis.experiment)
    runs = [
        {
            "name": cell.name,
            "setting": name_of(cell.point, axes),
            "curves": {
                metric: _curve(cell, metric)
                for metric in sorted(set().union(*cell.records) - NO_CURVES)
            },
        }
        for cell in analysis.experiment.cells
        if cell.records
    ]
    names = {metric for run in runs for metric in run["curves"]}
    best = [name_of(arm.point, axes) for arm in analysis.main.ranked[:3]] if analysis.main else []
    return {"metrics": sorted(names, key=_order), "shown": best, "runs": runs}


def _order(metric: str) -> tuple[int, str]:
    first = ("eval_rewards/accuracies", "eval_loss", "loss", "grad_norm", "eval_kl", "kl")
    return (first.index(metric) if metric in first else len(first)), metric


def _curve(cell: Cell, metric: str) -> list[list[float]]:
    """Steps and finite values, in at most `MOST_POINTS` bins of equal size."""
    known = [(r["step"], r[metric]) for r in cell.records if np.isfinite(r.get(metric, np.nan))]
    bins = np.array_split(
        np.array(known, np.float64).reshape(-1, 2), min(len(known), MOST_POINTS) or 1
    )
    means = [one.mean(axis=0) for one in bins if len(one)]
    return [[float(f"{one[place]:.4g}") for one in means] for place in (0, 1)]
