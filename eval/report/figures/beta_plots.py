"""Pictures of scores over beta, and of how much they vary with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...experiment import Experiment
from ..statistics.score_statistics import Study
from ..statistics.sensitivity import series_of
from .drawing import (
    Frame,
    Picture,
    beta_axis,
    legend_below,
    look,
    panel,
    picture,
)


def against_beta(experiment: Experiment, study: Study, losses: Sequence[str], name: str) -> Picture:
    """Draws the mean over seeds of every series of some losses, with the bootstrap interval."""
    betas, score = experiment.betas, study.score
    series = [
        arms
        for (loss, tau), arms in series_of(study.arms).items()
        if loss in losses and tau != "best"
    ]
    title = f"{score.title}: {', '.join(losses)}"
    with panel(title if len(losses) == 1 else score.title) as (figure, axes):
        for number, arms in enumerate(series):
            shift = 0.09 * (number - (len(series) - 1) / 2)
            estimates = [study.estimates[arm.point] for arm in arms]
            means = np.array([found.mean for found in estimates])
            ends = np.array([found.interval for found in estimates]).T
            style = look(number)
            axes.errorbar(
                [betas.index(float(arm.point.beta)) + shift for arm in arms],
                means,
                np.maximum(np.abs(ends - means), 0),
                marker=style.marker,
                markersize=4.5,
                linewidth=1.3,
                elinewidth=0.9,
                capsize=2,
                label=arms[0].point.series,
                **style.line,
            )
        beta_axis(axes, betas)
        axes.set_ylabel(score.unit)
        legend_below(figure, axes)
        return picture(figure, name, f"Against beta, with 95 % intervals: {title}")


def sensitivities(study: Study) -> Picture:
    """Draws the variance across betas of every series, less noise, with its interval."""
    found = list(study.sensitivities.values())
    title = f"Variance across beta of {study.score.title}"
    frame = Frame(left=1.3, bottom=0.5)
    with panel(study.score.title, height=0.8 + 0.3 * len(found), frame=frame) as (figure, axes):
        for place, one in enumerate(found):
            low, high = one.interval
            axes.plot([low, high], [place, place], color="#333333", linewidth=1.4)
            axes.plot(one.variance, place, "o", color="#0072B2", markersize=6, zorder=3)
            axes.plot(one.observed, place, "|", color="#D55E00", markersize=11, zorder=3)
        axes.set_yticks(range(len(found)), [one.series for one in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 3), useMathText=True)
        axes.grid(axis="y", visible=False)
        # The label stands on the left, because the power of ten stands on the right.
        axes.set_xlabel(f"variance ({study.score.unit}, squared)", loc="left", fontsize=8)
        return picture(figure, f"sensitivity-{study.score.name}", title)
