"""Intervals of the mean of an arm and of the difference of two arms.

Items and seeds are resampled together. Every arm gets the same draws, so differences are paired. A
draw takes S - 1 of S seeds, because the variance of means of S seeds drawn with replacement is too
small by the factor (S - 1) / S, a third for three seeds. The spread of three seeds still has
heavier tails than a bootstrap knows: where only the seeds matter, its 95 % interval covers about
80 %. Student's interval over seeds covers the seeds and knows nothing of the items. Both are
printed, and a verdict rests on the span of the two. D draws, A arms, S seeds, U items.

References:
    Rao and Wu, "Resampling Inference with Complex Survey Data" (1988), on drawing one fewer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from ...experiment import Point
from ...uncertainty import Interval, quantiles, resampled, t_interval
from .arms import Arm, means_over_items

DRAWS = 2000

Draws = Mapping[Point, Float[np.ndarray, " D"]]


@dataclasses.dataclass(frozen=True)
class Resampling:
    """D draws of items and seeds: how often a draw holds each of them."""

    items: Float[np.ndarray, "D U"]
    seeds: Float[np.ndarray, "D S"]


def resampling(strata: Sequence[str], seeds: int, *, draws: int = DRAWS) -> Resampling:
    """Draws all items within their strata, and one seed fewer than there are, with replacement."""
    generator = np.random.default_rng(1)
    of_seeds = generator.multinomial(max(seeds - 1, 1), np.full(seeds, 1 / seeds), size=draws)
    return Resampling(resampled(strata, draws=draws), of_seeds.astype(np.float64))


def means_of(values: Float[np.ndarray, "A S U"], drawn: Resampling) -> Float[np.ndarray, "D A"]:
    """The mean over seeds of the mean over items of each arm, in every draw.

    Values that are NaN are left out. The result is NaN for a draw that holds no seed of an arm.
    """
    arms, seeds, items = values.shape
    flat = values.reshape(arms * seeds, items)
    present = np.isfinite(flat)
    counts = drawn.items @ present.T.astype(np.float64)
    totals = drawn.items @ np.where(present, flat, 0.0).T
    per_seed = np.divide(totals, counts, out=np.zeros_like(totals), where=counts > 0)
    weights = drawn.seeds[:, None, :] * (counts > 0).reshape(-1, arms, seeds)
    weighted = (weights * per_seed.reshape(-1, arms, seeds)).sum(axis=2)
    norms = weights.sum(axis=2)
    return np.divide(weighted, norms, out=np.full_like(weighted, np.nan), where=norms > 0)


def draws_of(arms: Mapping[Point, Arm], drawn: Resampling) -> dict[Point, np.ndarray]:
    """The resampled means of every arm."""
    if not arms:
        return {}
    means = means_of(np.stack([arm.scoring for arm in arms.values()]), drawn)
    return dict(zip(arms, means.T, strict=True))


def span(interval: Interval, over_seeds: Interval | None) -> Interval:
    """The interval from the lower of both lower ends to the higher of both upper ends."""
    low, high = over_seeds or interval
    return min(interval[0], low), max(interval[1], high)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds, or the difference of two means.

    Attributes:
        interval: 95 %, items and seeds resampled together.
        over_seeds: 95 %, Student's t over the seeds; None for a single seed.
        seeds: the number of seeds; for a difference, of those that both arms have.
    """

    mean: float
    interval: Interval
    over_seeds: Interval | None
    seeds: int

    @property
    def span(self) -> Interval:
        """The interval that a verdict rests on."""
        return span(self.interval, self.over_seeds)

    @property
    def negative(self) -> Estimate:
        """The estimate of the opposite difference."""
        over_seeds = self.over_seeds and (-self.over_seeds[1], -self.over_seeds[0])
        return Estimate(-self.mean, (-self.interval[1], -self.interval[0]), over_seeds, self.seeds)


def estimate(arm: Arm, draws: Draws) -> Estimate:
    """The mean over seeds of one arm."""
    return _estimate(arm.per_seed, draws[arm.point])


def difference(arm: Arm, baseline: Arm, drawn: Resampling) -> Estimate | None:
    """Arm minus baseline, over the seeds and items that both have; None if they have none."""
    paired = arm.scoring - baseline.scoring
    per_seed = means_over_items(paired)
    if not np.isfinite(per_seed).any():
        return None
    return _estimate(per_seed, means_of(paired[None], drawn)[:, 0])


def _estimate(per_seed: Float[np.ndarray, " S"], draws: Float[np.ndarray, " D"]) -> Estimate:
    known = per_seed[np.isfinite(per_seed)]
    return Estimate(float(known.mean()), quantiles(draws), t_interval(known), len(known))
