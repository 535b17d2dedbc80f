"""The statistics of one score of an experiment, with or without its diverged cells."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ...experiment import Experiment, Point
from ..number_formats import Format
from ..read.scores import Score
from .across_beta import AcrossBeta, Series, across_beta, series_of
from .arms import Arm, arms_of
from .estimates import Estimate, estimate


@dataclasses.dataclass(frozen=True)
class Study:
    """The statistics of one score.

    Attributes:
        across: how each series fares over its betas.
        last: the mean of each setting's last policies, where it is known.
        show: how the score's numbers are written.
    """

    score: Score
    arms: Mapping[Point, Arm]
    estimates: Mapping[Point, Estimate]
    across: Mapping[Series, AcrossBeta]
    last: Mapping[Point, float]
    show: Format

    def is_better(self, one: float, other: float) -> bool:
        """Whether one value of the score is better than another."""
        return one > other if self.score.higher else one < other

    @property
    def ranked(self) -> list[Arm]:
        """The settings, the best first. The first flatters itself: the same items choose it."""
        settings = [arm for arm in self.arms.values() if arm.is_setting]
        return sorted(settings, key=lambda arm: arm.mean, reverse=self.score.higher)

    @property
    def best(self) -> Arm:
        """The best setting."""
        return self.ranked[0]

    @property
    def best_of_losses(self) -> dict[str, Arm]:
        """The best setting of each loss, the best loss first."""
        best: dict[str, Arm] = {}
        for arm in self.ranked:
            best.setdefault(arm.point.loss, arm)
        return best


def make_study(experiment: Experiment, score: Score, *, with_diverged: bool = True) -> Study:
    """Computes the statistics of a score."""
    arms = arms_of(experiment, score, with_diverged=with_diverged)
    series, strata = series_of(arms), score.strata
    across = {name: across_beta(group, strata, score.higher) for name, group in series.items()}
    last: dict[Point, list[float]] = {}
    for number, cell in enumerate(experiment.cells):
        if math.isfinite(value := score.of_last(number)):
            last.setdefault(cell.point, []).append(value)
    estimates = {point: estimate(arm.scoring, strata) for point, arm in arms.items()}
    return Study(
        score=score,
        arms=arms,
        estimates={point: found for point, found in estimates.items() if found},
        across={name: found for name, found in across.items() if found},
        last={point: float(np.mean(values)) for point, values in last.items()},
        show=Format(score.decimals),
    )
