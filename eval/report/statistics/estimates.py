"""The mean of a score and the difference of two means, with intervals that cover seeds and items.

A score y[s, u] of seed s on item u is taken as a sum of independent random effects: of the seed, of
the item, and of both together. An analysis of variance estimates what each adds to the variance of
the mean. A part that comes out negative counts as 0. Where none does, the standard error is that of
a mixed model fitted by REML. Three seeds say little about the spread of seeds. Student's t with
Satterthwaite's degrees of freedom takes that into account, where a mixed model's normal interval
and a bootstrap of three seeds do not. B settings, S seeds, U items.

References:
    Searle, Casella and McCulloch, "Variance Components" (1992), chapter 4, on the crossed design.
    Satterthwaite, "An Approximate Distribution of Estimates of Variance Components" (1946).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit

from ...uncertainty import LEVEL, Interval
from .arms import Arm

POWER = 0.8


class Estimate(NamedTuple):
    """A mean, or a difference of means.

    Attributes:
        error: the standard error; NaN where a single seed and a single item have no spread.
        freedom: degrees of freedom of the error.
        seeds: the number of seeds; for a difference, of those that both sides have.
    """

    mean: float
    error: float
    freedom: float
    seeds: int

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval; None if nothing is known of the spread."""
        if not math.isfinite(self.error):
            return None
        half = float(stdtrit(self.freedom, (1 + LEVEL) / 2)) * self.error
        return self.mean - half, self.mean + half

    @property
    def has_spread(self) -> bool:
        """Whether several seeds show a spread that is not rounding alone."""
        return self.seeds > 1 and self.error > abs(self.mean) * 1e-9

    @property
    def detectable(self) -> float:
        """The true difference that a single test at 5 % finds in 8 of 10 repetitions.

        >>> round(Estimate(0.0, 1.0, math.inf, 3).detectable, 2)
        2.8
        """
        return float(sum(stdtrit(self.freedom, [(1 + LEVEL) / 2, POWER]))) * self.error

    def chance_above(self, value: float) -> float:
        """The p-value of "the truth is at most `value`", one-sided; NaN without a spread.

        >>> Estimate(0.0, 1.0, 2.0, 3).chance_above(0.0)
        0.5
        """
        if not self.error > 0:
            return math.nan
        return float(stdtr(self.freedom, (value - self.mean) / self.error))

    def turned(self, higher: bool) -> Estimate:
        """A difference as an advantage: with the other sign where lower is better."""
        return self if higher else self._replace(mean=-self.mean)


def spread_of_mean(
    values: Float[np.ndarray, "B S U"], strata: Sequence[str] = ()
) -> tuple[float, float]:
    """The variance of the mean over S seeds and U items, and its degrees of freedom.

    B settings are pooled. Of several, only what differs between them counts: effects that they have
    in common move all means alike. NaN if there is one seed and one item.

    Args:
        values: finite scores.
        strata: the stratum of each item; levels of strata are fixed and add nothing.
    """
    settings, seeds, items = values.shape
    free = max(settings - 1, 1)
    values = values - values.mean(axis=0) if settings > 1 else values
    whole = values.mean(axis=(1, 2), keepdims=True)
    of_seeds = values.mean(axis=2, keepdims=True) - whole
    of_items = values.mean(axis=1, keepdims=True) - whole
    rest = values - whole - of_seeds - of_items
    groups = sorted(set(strata)) if len(set(strata)) < items else []
    for name in groups:
        members = np.array(strata) == name
        of_items[..., members] -= of_items[..., members].mean(axis=-1, keepdims=True)
    seeds_free, items_free = seeds - 1, items - max(len(groups), 1)
    # Mean squares, as variances of the mean.
    by_seed = _over(np.sum(of_seeds**2) / seeds, free * seeds_free)
    by_item = _over(np.sum(of_items**2) / items, free * items_free)
    by_both = _over(np.sum(rest**2) / (seeds * items), free * seeds_free * items_free)
    if seeds == 1 or items == 1:
        variance, freedom = (by_seed, seeds_free) if items == 1 else (by_item, items_free)
        return variance, float(free * freedom)
    variance = max(by_seed - by_both, 0.0) + max(by_item - by_both, 0.0) + by_both
    uncertain = by_seed**2 / (free * seeds_free) + by_item**2 / (free * items_free)
    least = float(free * seeds_free)
    return variance, max(variance**2 / uncertain, least) if uncertain > 0 else least


def _over(total: float, free: int) -> float:
    return float(total) / free if free else math.nan


def estimate(values: Float[np.ndarray, "S U"], strata: Sequence[str]) -> Estimate | None:
    """The mean over the seeds and items that have a score; None if there are none."""
    known = np.isfinite(values)
    seeds = known.any(axis=1)
    # The items that all seeds with a score have.
    items = known[seeds].all(axis=0)
    if not seeds.any() or not items.any():
        return None
    counted = values[seeds][:, items]
    of_items = [name for name, there in zip(strata, items, strict=True) if there]
    variance, freedom = spread_of_mean(counted[None], of_items)
    return Estimate(float(counted.mean()), math.sqrt(variance), freedom, int(seeds.sum()))


def difference(arm: Arm, baseline: Arm, strata: Sequence[str]) -> Estimate | None:
    """Arm minus baseline, over the seeds and items that both have; None if they have none."""
    return estimate(arm.scoring - baseline.scoring, strata)
