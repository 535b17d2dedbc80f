"""The statistics of one score of an experiment, with or without its diverged cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ...experiment import Experiment, Point
from ..number_formats import Format
from ..read.scores import Score
from .arms import Arm, arms_of
from .intervals import Estimate, Resampling, draws_of, estimate, resampling
from .sensitivity import (
    Ratio,
    Sensitivity,
    Series,
    ratio,
    sensitivity,
    series_of,
)


@dataclasses.dataclass(frozen=True)
class Study:
    """The statistics of one score.

    Attributes:
        ratios: the sensitivity of a loss with tau over that of a loss without tau.
        show: how the score's numbers are written.
    """

    score: Score
    resampling: Resampling
    arms: Mapping[Point, Arm]
    estimates: Mapping[Point, Estimate]
    sensitivities: Mapping[Series, Sensitivity]
    ratios: Mapping[tuple[Series, Series], Ratio]
    show: Format


def make_study(
    experiment: Experiment, score: Score, drawn: Resampling, *, with_diverged: bool
) -> Study:
    """Computes the statistics of a score. `drawn` holds draws of its items and of the seeds."""
    arms = arms_of(experiment, score, with_diverged=with_diverged)
    draws = draws_of(arms, drawn)
    series = series_of(arms)
    found = {name: sensitivity(group, drawn) for name, group in series.items()}
    ratios = {pair: ratio(series[pair[0]], series[pair[1]], drawn) for pair in _pairs(series)}
    return Study(
        score=score,
        resampling=drawn,
        arms=arms,
        estimates={point: estimate(arm, draws) for point, arm in arms.items()},
        sensitivities={name: value for name, value in found.items() if value is not None},
        ratios={pair: value for pair, value in ratios.items() if value is not None},
        show=Format(score.decimals),
    )


def _pairs(series: Mapping[Series, list[Arm]]) -> list[tuple[Series, Series]]:
    """Pairs every series of a loss with tau with every series of a loss without."""
    with_tau = [name for name in series if name[1] is not None]
    without = [name for name in series if name[1] is None]
    return [(over, under) for over in with_tau for under in without]


def study_both_ways(
    experiment: Experiment, score: Score, drawn: Resampling | None = None
) -> tuple[Study, Study | None]:
    """The study with the diverged cells, and the study without them; None if no cell diverged."""
    drawn = drawn or resampling(score.strata, len(experiment.seeds))
    whole = make_study(experiment, score, drawn, with_diverged=True)
    if not experiment.count("diverged"):
        return whole, None
    return whole, make_study(experiment, score, drawn, with_diverged=False)
