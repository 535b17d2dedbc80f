"""How much a score changes with beta: its variance across the betas, and ratios of two of them.

Noise alone makes the means of several betas differ, so their variance is too large by what noise
adds, and the variance of resampled means by as much again. Resampling shows how much that is:
it is taken off once from the estimate and twice from the draws. Without this, the interval of a
loss that does not depend on beta at all would never reach 0 (measured in the tests). D draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from eval.report.arms import Arm
from eval.report.cells import Point
from eval.report.intervals import Draws
from eval.uncertainty import LEVEL, Interval

Series = tuple[str, float | str | None]  # a loss and its tau, if it has one


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The variance of a score across betas, in its unit squared.

    Attributes:
        series: one arm per beta.
        seeds: the fewest that a beta has.
        observed: variance of the means over seeds, n - 1 in the denominator.
        variance: the same less what noise adds, at least 0.
        interval: 95 %, of `variance`.
        draws: `[D]`, of `variance`; NaN where a draw has no seed of some beta.
    """

    series: str
    betas: tuple[float, ...]
    seeds: int
    observed: float
    variance: float
    interval: Interval
    draws: Float[np.ndarray, " D"]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One sensitivity over another, over the betas that both losses have; 95 % interval.

    `value` is NaN where the baseline varies by no more than noise.
    """

    series: str
    baseline: str
    betas: tuple[float, ...]
    seeds: int
    value: float
    interval: Interval


def series_of(arms: Mapping[Point, Arm]) -> dict[Series, list[Arm]]:
    """The arms of each loss and tau, `best` among the taus, by beta."""
    found: dict[Series, list[Arm]] = {}
    for point in sorted(arms, key=lambda point: point.place):
        if point.beta != "best":
            found.setdefault((point.loss, point.tau), []).append(arms[point])
    return found


def sensitivity(arms: Sequence[Arm], draws: Draws) -> Sensitivity | None:
    """Of a series; None if it has fewer than two betas."""
    if len(arms) < 2:
        return None
    means = np.array([arm.mean for arm in arms])
    drawn = np.stack([draws[arm.point] for arm in arms], axis=1)
    noise = float(np.nanmean((drawn - means).var(axis=1, ddof=1)))
    observed = float(means.var(ddof=1))
    variances = np.maximum(drawn.var(axis=1, ddof=1) - 2 * noise, 0.0)
    known = variances[np.isfinite(variances)]
    return Sensitivity(
        series=arms[0].point.series,
        betas=tuple(float(arm.point.beta) for arm in arms),
        seeds=min(arm.seeds for arm in arms),
        observed=observed,
        variance=max(observed - noise, 0.0),
        interval=_between(known, known),
        draws=variances,
    )


def ratio(arms: Sequence[Arm], baseline: Sequence[Arm], draws: Draws) -> Ratio | None:
    """Of two series over their common betas; None if these are fewer than two."""
    betas = {arm.point.beta for arm in arms} & {arm.point.beta for arm in baseline}
    over, under = (
        sensitivity([arm for arm in side if arm.point.beta in betas], draws)
        for side in (arms, baseline)
    )
    if over is None or under is None:
        return None
    known = np.isfinite(over.draws) & np.isfinite(under.draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = over.draws[known] / under.draws[known]
    # 0 / 0 could be anything: it counts as low for the lower end and as high for the upper.
    low, high = (np.where(np.isnan(ratios), anything, ratios) for anything in (0.0, np.inf))
    return Ratio(
        series=over.series,
        baseline=under.series,
        betas=over.betas,
        seeds=min(over.seeds, under.seeds),
        value=over.variance / under.variance if under.variance > 0 else float("nan"),
        interval=_between(low, high),
    )


def _between(low: Float[np.ndarray, " D"], high: Float[np.ndarray, " D"]) -> Interval:
    """Percentiles that are draws themselves, for there may be infinities among them."""
    lower = np.quantile(low, (1 - LEVEL) / 2, method="nearest")
    upper = np.quantile(high, (1 + LEVEL) / 2, method="nearest")
    return float(lower), float(upper)
