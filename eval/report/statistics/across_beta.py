"""How a loss fares across beta: its mean, its worst beta, and the variance of its means.

The variance stands beside the mean, because a policy that never moves has none. Noise alone makes
the means of several betas differ, so its part is subtracted. The betas of a grid are fixed, so the
mean squares of B means are noncentral, which gives the error of a variance. B betas, S seeds, U
items.

References:
    Searle, Casella and McCulloch, "Variance Components" (1992), chapter 4.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ...experiment import Point
from .arms import Arm
from .estimates import Estimate, estimate, spread_of_mean

# A loss and its tau; None for a loss without tau.
Series = tuple[str, float | Literal["best"] | None]


class AcrossBeta(NamedTuple):
    """A series over its betas, by the seeds that all of them have.

    Attributes:
        mean: the mean over betas.
        worst: the arm with the worst mean.
        variance: of the means over betas, less noise, at least 0; its mean is in the score's unit
            squared.
    """

    name: str
    betas: tuple[float, ...]
    mean: Estimate
    worst: Arm
    variance: Estimate


class SideBySide(NamedTuple):
    """Two series over the betas and seeds that both have.

    Attributes:
        over, under: how the first and the second series fare.
        means: the mean over betas of the first less that of the second.
    """

    over: AcrossBeta
    under: AcrossBeta
    means: Estimate

    def steadiness(self, share: float) -> Estimate:
        """This share of the second's variance less the first's, in the score's unit squared."""
        over, under = self.over.variance, self.under.variance
        return Estimate(
            share * under.mean - over.mean,
            math.hypot(over.error, share * under.error),
            min(over.freedom, under.freedom),
            over.seeds,
        )


def series_of(arms: Mapping[Point, Arm]) -> dict[Series, list[Arm]]:
    """The arms of each loss and tau, sorted by beta. `best` counts as a tau.

    If a grid has other axes, these are the arms at their best values.
    """
    found: dict[Series, list[Arm]] = {}
    for point in sorted(arms, key=lambda point: point.place):
        if point.beta != "best" and not point.others:
            found.setdefault((point.loss, point.tau), []).append(arms[point])
    return found


def across_beta(arms: Sequence[Arm], strata: Sequence[str], higher: bool) -> AcrossBeta | None:
    """A series over its betas; None if there are fewer than two betas, or no common seed."""
    seeds = _common_seeds(arms)
    if len(arms) < 2 or not seeds.any():
        return None
    values = np.stack([arm.scoring[seeds] for arm in arms])
    mean = estimate(values.mean(axis=0), strata)
    if mean is None:
        return None
    worst = (min if higher else max)(arms, key=lambda arm: arm.mean)
    betas = tuple(float(arm.point.beta) for arm in arms)
    return AcrossBeta(arms[0].point.series, betas, mean, worst, _variance(values, strata))


def _common_seeds(arms: Sequence[Arm]) -> Bool[np.ndarray, " S"]:
    return np.isfinite(np.stack([arm.per_seed for arm in arms])).all(axis=0)


def _variance(values: Float[np.ndarray, "B S U"], strata: Sequence[str]) -> Estimate:
    """The variance of the B means, less noise."""
    values = values[:, :, np.isfinite(values).all(axis=(0, 1))]
    free = len(values) - 1
    noise, freedom = spread_of_mean(values, strata)
    variance = max(float(values.mean(axis=(1, 2)).var(ddof=1)) - noise, 0.0)
    # The first part is the variance of a noncentral mean square, the second that of the noise.
    squared = (4 * noise * variance + 2 * noise**2) / free + 2 * noise**2 / max(freedom, 1)
    return Estimate(variance, math.sqrt(squared), freedom, values.shape[1])


def side_by_side(
    arms: Sequence[Arm], baseline: Sequence[Arm], strata: Sequence[str], higher: bool
) -> SideBySide | None:
    """Two series over their common betas and seeds; None if betas or seeds do not suffice."""
    common = {arm.point.beta for arm in arms} & {arm.point.beta for arm in baseline}
    sides = [[arm for arm in side if arm.point.beta in common] for side in (arms, baseline)]
    if len(common) < 2:
        return None
    seeds = _common_seeds([*sides[0], *sides[1]])
    sides = [[_of_seeds(arm, seeds) for arm in side] for side in sides]
    over, under = (across_beta(side, strata, higher) for side in sides)
    first, second = (np.stack([arm.scoring for arm in side]).mean(axis=0) for side in sides)
    means = estimate(first - second, strata)
    return SideBySide(over, under, means) if over and under and means else None


def _of_seeds(arm: Arm, seeds: Bool[np.ndarray, " S"]) -> Arm:
    """The arm as if the other seeds had no score."""
    return dataclasses.replace(arm, scoring=np.where(seeds[:, None], arm.scoring, np.nan))
