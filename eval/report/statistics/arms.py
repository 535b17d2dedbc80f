"""What is compared: settings, and the best of several settings.

The best is chosen on one half of the items and scored on the other. S seeds, U items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ...experiment import Experiment, Point
from ..read.scores import Score


@dataclasses.dataclass(frozen=True)
class Arm:
    """The scores of one setting, or of the settings that the halves chose among several.

    Attributes:
        choosing, scoring: `[S, U]`, as in `Score`; a seed that has no score is NaN throughout.
        chosen: the settings that the first and the second half chose. If there was no choice, it is
            the setting itself, twice.
    """

    point: Point
    choosing: Float[np.ndarray, "S U"]
    scoring: Float[np.ndarray, "S U"]
    chosen: tuple[Point, Point]

    @property
    def per_seed(self) -> Float[np.ndarray, " S"]:
        """The mean over items of each seed; NaN for a seed without a score."""
        return means_over_items(self.scoring)

    @property
    def is_setting(self) -> bool:
        """False if the halves chose among several settings."""
        return self.chosen == (self.point, self.point)

    @property
    def mean(self) -> float:
        """The mean over the seeds that have a score."""
        return float(np.nanmean(self.per_seed))


def means_over_items(values: Float[np.ndarray, "*A S U"]) -> Float[np.ndarray, "*A S"]:
    """The mean of each seed over the items it has; NaN for a seed without items."""
    counts = np.isfinite(values).sum(axis=-1)
    totals = np.nansum(values, axis=-1)
    return np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)


def arms_of(experiment: Experiment, score: Score, *, with_diverged: bool) -> dict[Point, Arm]:
    """All arms that have a score.

    These are the settings, the best tau for each beta if the loss has a tau (`tau` is `best`), and
    the best setting of each loss (`beta` is `best`). If a grid has other axes, such as the learning
    rate, the best of their values counts for each beta and tau. So a loss is compared at its best
    rate, which the other half of the items chose.

    Args:
        experiment: the cells.
        score: their scores.
        with_diverged: whether diverged cells count.
    """
    settings = _settings(experiment, score, with_diverged)
    best = []
    for loss in dict.fromkeys(point.loss for point in settings):
        own = [arm for point, arm in settings.items() if point.loss == loss]
        for beta, tau in dict.fromkeys(arm.point[1:3] for arm in own if arm.point.others):
            candidates = [arm for arm in own if arm.point[1:3] == (beta, tau)]
            best.append(best_of(candidates, score, Point(loss, beta, tau)))
        if own[0].point.tau is None:
            best.append(best_of(own, score, Point(loss, "best", None)))
            continue
        for beta in dict.fromkeys(arm.point.beta for arm in own):
            candidates = [arm for arm in own if arm.point.beta == beta]
            best.append(best_of(candidates, score, Point(loss, beta, "best")))
        best.append(best_of(own, score, Point(loss, "best", "best")))
    return settings | {arm.point: arm for arm in best if arm is not None}


def _settings(experiment: Experiment, score: Score, with_diverged: bool) -> dict[Point, Arm]:
    seeds, items = experiment.seeds, len(score.strata)
    arms = {}
    for point in experiment.points:
        choosing = np.full((len(seeds), items), np.nan)
        scoring = choosing.copy()
        for number, cell in enumerate(experiment.cells):
            if cell.point == point and (with_diverged or cell.state != "diverged"):
                choosing[seeds.index(cell.seed)] = score.choosing[number]
                scoring[seeds.index(cell.seed)] = score.scoring[number]
        if np.isfinite(scoring).any():
            arms[point] = Arm(point, choosing, scoring, (point, point))
    return arms


def best_of(arms: Sequence[Arm], score: Score, point: Point) -> Arm | None:
    """The arm that each half of the items chooses, scored on the other half.

    None if a half has no items. The choice stays fixed afterwards: an interval describes the chosen
    settings, not the choosing.

    Args:
        arms: the arms to choose from.
        score: their score.
        point: the name of the result.
    """
    second = score.second
    if second.all() or not second.any():
        return None
    of_first = _best(arms, score, ~second)
    of_second = _best(arms, score, second)
    scoring = np.where(second, of_first.scoring, of_second.scoring)
    choosing = np.where(second, of_second.choosing, of_first.choosing)
    # A seed that only one of the two arms has would be scored on half of the items.
    lacking = ~(np.isfinite(of_first.per_seed) & np.isfinite(of_second.per_seed))
    if lacking.all():
        return None
    scoring[lacking] = np.nan
    return Arm(point, choosing, scoring, (of_first.point, of_second.point))


def _best(arms: Sequence[Arm], score: Score, half: np.ndarray) -> Arm:
    """The arm with the best mean over seeds on one half; the first one if several are equal."""
    means = [np.nanmean(means_over_items(arm.choosing[:, half])) for arm in arms]
    return arms[int(np.nanargmax(means) if score.higher else np.nanargmin(means))]
