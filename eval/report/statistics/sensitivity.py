"""How much a score changes with beta: its variance across the betas, and ratios of two of them.

Noise alone makes the means of several betas differ, so their variance is too large by what noise
adds, which an analysis of variance over seeds and items estimates; resampling adds noise of its
own, which the draws show. The first is taken off the estimate, both off the draws. Without this,
the interval of a loss that does not depend on beta at all would never reach 0 (measured in the
tests). B betas, S seeds, U items, D draws.

A bootstrap over three seeds covers less than it says, so Student's interval over seeds stands
beside that of a ratio, of its logarithm in each seed. No noise is taken off there: it draws a ratio
towards that of the noises, and it can only widen the span of the two.

References:
    Searle, Casella and McCulloch, "Variance Components" (1992), chapter 4, on the crossed design.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from eval.experiment import Point
from eval.report.statistics.arms import Arm, means_over_items
from eval.report.statistics.intervals import Resampling, means_of, span
from eval.uncertainty import LEVEL, Interval, t_interval

Series = tuple[str, float | Literal["best"] | None]  # a loss and its tau, if it has one


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The variance of a score across betas, in its unit squared.

    Attributes:
        series: one arm per beta.
        seeds: how many all betas have; these alone count, or a seed's own level would pass for
            beta's.
        observed: variance of the means over seeds, n - 1 in the denominator.
        variance: the same less what noise adds, at least 0.
        interval: 95 %, of `variance`.
        per_seed: `[S]`, the variance of each seed's own means; NaN for seeds that do not count.
        draws: `[D]`, of `variance`; NaN where a draw has none of the seeds.
    """

    series: str
    betas: tuple[float, ...]
    seeds: int
    observed: float
    variance: float
    interval: Interval
    per_seed: Float[np.ndarray, " S"]
    draws: Float[np.ndarray, " D"]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One sensitivity over another, over the betas that both losses have.

    Attributes:
        seeds: how many have all these betas in both losses.
        value: NaN where the baseline varies by no more than noise.
        interval: 95 %, items and seeds resampled together.
        over_seeds: 95 %, Student's t over the logarithms of the seeds' own ratios, whose noise is
            not taken off; None for a single seed.
    """

    series: str
    baseline: str
    betas: tuple[float, ...]
    seeds: int
    value: float
    interval: Interval
    over_seeds: Interval | None

    @property
    def span(self) -> Interval:
        """What a verdict rests on."""
        return span(self.interval, self.over_seeds)


def series_of(arms: Mapping[Point, Arm]) -> dict[Series, list[Arm]]:
    """The arms of each loss and tau, `best` among the taus, by beta."""
    found: dict[Series, list[Arm]] = {}
    for point in sorted(arms, key=lambda point: point.place):
        if point.beta != "best":
            found.setdefault((point.loss, point.tau), []).append(arms[point])
    return found


def common_seeds(arms: Sequence[Arm]) -> Bool[np.ndarray, " S"]:
    """Which seeds have a score in all arms."""
    return np.isfinite(np.stack([arm.per_seed for arm in arms])).all(axis=0)


def sensitivity(
    arms: Sequence[Arm], drawn: Resampling, seeds: Bool[np.ndarray, " S"] | None = None
) -> Sensitivity | None:
    """Of a series, over the given seeds, by default all that its arms have in common.

    None if there are fewer than two betas, or no such seed.
    """
    counted = common_seeds(arms) if seeds is None else seeds
    if len(arms) < 2 or not counted.any():
        return None
    values = np.stack([np.where(counted[:, None], arm.scoring, np.nan) for arm in arms])
    per_seed = means_over_items(values)
    means = np.nanmean(per_seed, axis=1)
    drawn_means = means_of(values, drawn)
    noise = noise_of(values[:, counted])
    of_drawing = float(np.nanmean((drawn_means - means).var(axis=1, ddof=1)))
    observed = float(means.var(ddof=1))
    variances = np.maximum(drawn_means.var(axis=1, ddof=1) - of_drawing - noise, 0.0)
    known = variances[np.isfinite(variances)]
    return Sensitivity(
        series=arms[0].point.series,
        betas=tuple(float(arm.point.beta) for arm in arms),
        seeds=int(counted.sum()),
        observed=observed,
        variance=max(observed - noise, 0.0),
        interval=_between(known, known),
        per_seed=per_seed.var(axis=0, ddof=1),
        draws=variances,
    )


def noise_of(values: Float[np.ndarray, "B S U"]) -> float:
    """What noise adds to the variance of the B means.

    A score is taken for the sum of what beta, a seed, an item and both together do to it. The
    variance of its mean is then (MS_seeds + MS_items - MS_rest) / (S U), without bias, and what all
    betas have in common moves no variance across them.
    """
    values = values[:, :, np.isfinite(values).all(axis=(0, 1))]
    values = values - values.mean(axis=0)
    betas, seeds, items = values.shape
    whole = values.mean(axis=(1, 2), keepdims=True)
    of_seeds = values.mean(axis=2, keepdims=True) - whole
    of_items = values.mean(axis=1, keepdims=True) - whole
    rest = values - whole - of_seeds - of_items
    # A single seed or item has no spread, and its sums of squares are 0.
    seeds_free, items_free = max(seeds - 1, 1), max(items - 1, 1)
    mean_squares = (
        items * np.sum(of_seeds**2) / seeds_free
        + seeds * np.sum(of_items**2) / items_free
        - np.sum(rest**2) / (seeds_free * items_free)
    )
    return max(float(mean_squares) / (seeds * items * (betas - 1)), 0.0)


def ratio(arms: Sequence[Arm], baseline: Sequence[Arm], drawn: Resampling) -> Ratio | None:
    """Of two series over their common betas; None if these, or their seeds, do not suffice."""
    betas = {arm.point.beta for arm in arms} & {arm.point.beta for arm in baseline}
    sides = [[arm for arm in side if arm.point.beta in betas] for side in (arms, baseline)]
    if not betas:
        return None
    seeds = common_seeds([*sides[0], *sides[1]])
    over, under = (sensitivity(side, drawn, seeds) for side in sides)
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
        seeds=over.seeds,
        value=over.variance / under.variance if under.variance > 0 else float("nan"),
        interval=_between(low, high),
        over_seeds=_over_seeds(over.per_seed, under.per_seed),
    )


def _over_seeds(over: Float[np.ndarray, " S"], under: Float[np.ndarray, " S"]) -> Interval | None:
    known = np.isfinite(over) & np.isfinite(under)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithms = np.log(over[known]) - np.log(under[known])
    if not np.isfinite(logarithms).all():  # a seed in which a loss does not vary at all
        return (0.0, float("inf")) if len(logarithms) > 1 else None
    found = t_interval(logarithms)
    return found and (float(np.exp(found[0])), float(np.exp(found[1])))


def _between(low: Float[np.ndarray, " D"], high: Float[np.ndarray, " D"]) -> Interval:
    """Percentiles that are draws themselves, for there may be infinities among them."""
    lower = np.quantile(low, (1 - LEVEL) / 2, method="nearest")
    upper = np.quantile(high, (1 + LEVEL) / 2, method="nearest")
    return float(lower), float(upper)
