"""How much a score changes with beta: its variance across the betas, and ratios of two variances.

Noise alone makes the means of several betas differ, so their variance is too large. An analysis of
variance over seeds and items estimates what noise adds. Resampling adds noise of its own, which the
draws show. The first part is subtracted from the estimate, and both parts from the draws. Without
this, the interval of a loss that does not depend on beta at all would never reach 0 (the tests
measure it). B betas, S seeds, U items, D draws.

A bootstrap over three seeds covers less than it says. Student's interval over the logarithms of the
seeds' own ratios therefore stands beside the interval of a ratio. No noise is subtracted there: it
draws a ratio towards the ratio of the noises, and it can only widen the span of the two.

References:
    Searle, Casella and McCulloch, "Variance Components" (1992), chapter 4, on the crossed design.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from ...experiment import Point
from ...uncertainty import LEVEL, Interval, t_interval
from .arms import Arm, means_over_items
from .intervals import Resampling, means_of, span

Series = tuple[
    str, float | Literal["best"] | None
]  # a loss and its tau; None for a loss without tau


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The variance of a score across betas, in its unit squared.

    Attributes:
        series: the name of the arms, one arm per beta.
        seeds: the number of seeds that all betas have. Only these count, because the level of a
            seed that one beta lacks would look like an effect of beta.
        observed: the variance of the means over seeds, with n - 1 in the denominator.
        variance: `observed` less what noise adds, at least 0.
        interval: 95 %, of `variance`.
        per_seed: `[S]`, the variance of each seed's own means; NaN for seeds that do not count.
        draws: `[D]`, `variance` in each draw; NaN for a draw that holds none of the seeds.
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
    """The ratio of two sensitivities, over the betas that both losses have.

    Attributes:
        seeds: the number of seeds that have all these betas in both losses.
        value: the ratio; NaN if the baseline varies by no more than noise.
        interval: 95 %, items and seeds resampled together.
        over_seeds: 95 %, Student's t over the logarithms of the seeds' own ratios, from which no
            noise is subtracted; None for a single seed.
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
        """The interval that a verdict rests on."""
        return span(self.interval, self.over_seeds)


def series_of(arms: Mapping[Point, Arm]) -> dict[Series, list[Arm]]:
    """The arms of each loss and tau, sorted by beta. `best` counts as a tau.

    If a grid has other axes, these are the arms at their best values.
    """
    found: dict[Series, list[Arm]] = {}
    for point in sorted(arms, key=lambda point: point.place):
        if point.beta != "best" and not point.others:
            found.setdefault((point.loss, point.tau), []).append(arms[point])
    return found


def common_seeds(arms: Sequence[Arm]) -> Bool[np.ndarray, " S"]:
    """Which seeds have a score in all arms."""
    return np.isfinite(np.stack([arm.per_seed for arm in arms])).all(axis=0)


def sensitivity(
    arms: Sequence[Arm], drawn: Resampling, seeds: Bool[np.ndarray, " S"] | None = None
) -> Sensitivity | None:
    """The sensitivity of a series.

    Args:
        arms: the series, one arm per beta.
        drawn: draws of items and seeds.
        seeds: the seeds that count; by default all that the arms have in common.

    Returns:
        None if there are fewer than two betas, or if no seed counts.
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

    The model of a score is a sum: an effect of beta, of the seed, of the item, and of both
    together. Then (MS_seeds + MS_items - MS_rest) / (S U) is an unbiased estimate of the variance
    of its mean. Effects that all betas have in common change no variance across betas.
    """
    values = values[:, :, np.isfinite(values).all(axis=(0, 1))]
    values = values - values.mean(axis=0)
    betas, seeds, items = values.shape
    whole = values.mean(axis=(1, 2), keepdims=True)
    of_seeds = values.mean(axis=2, keepdims=True) - whole
    of_items = values.mean(axis=1, keepdims=True) - whole
    rest = values - whole - of_seeds - of_items
    # A single seed or item has no spread: its sums of squares are 0.
    seeds_free, items_free = max(seeds - 1, 1), max(items - 1, 1)
    mean_squares = (
        items * np.sum(of_seeds**2) / seeds_free
        + seeds * np.sum(of_items**2) / items_free
        - np.sum(rest**2) / (seeds_free * items_free)
    )
    return max(float(mean_squares) / (seeds * items * (betas - 1)), 0.0)


def ratio(arms: Sequence[Arm], baseline: Sequence[Arm], drawn: Resampling) -> Ratio | None:
    """The ratio of two series over their common betas; None if betas or seeds do not suffice."""
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
    # 0 / 0 could be anything. It counts as 0 for the lower end and as infinity for the upper end.
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
    if not np.isfinite(logarithms).all():  # in some seed a loss does not vary at all
        return (0.0, float("inf")) if len(logarithms) > 1 else None
    found = t_interval(logarithms)
    return found and (float(np.exp(found[0])), float(np.exp(found[1])))


def _between(low: Float[np.ndarray, " D"], high: Float[np.ndarray, " D"]) -> Interval:
    """Percentiles that are draws themselves: some draws may be infinite, so none are averaged."""
    lower = np.quantile(low, (1 - LEVEL) / 2, method="nearest")
    upper = np.quantile(high, (1 + LEVEL) / 2, method="nearest")
    return float(lower), float(upper)
