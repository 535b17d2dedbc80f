"""Intervals that every report shares: the bootstrap's and Student's.

U items of a test (questions, prompts, validation pairs), S training seeds, D draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

DRAWS = 10_000
LEVEL = 0.95

Interval = tuple[float, float]


def resampled(
    strata: Sequence[str], *, draws: int = DRAWS, seed: int = 0
) -> Float[np.ndarray, "D U"]:
    """Draws items with replacement within their strata, so that each stratum keeps its size.

    Args:
        strata: the stratum of each item.
        draws: number of draws.
        seed: seed of the random numbers.

    Returns:
        `[D, U]`, how often each draw holds each item.
    """
    generator = np.random.default_rng(seed)
    names = np.asarray(strata)
    weights = np.empty((draws, len(names)))
    for name in dict.fromkeys(strata):
        members = np.flatnonzero(names == name)
        share = np.full(len(members), 1 / len(members))
        weights[:, members] = generator.multinomial(len(members), share, size=draws)
    return weights


def quantiles(draws: Float[np.ndarray, " D"]) -> Interval:
    """The 95 % percentile interval of draws. Draws that are NaN are left out."""
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def t_interval(values: Float[np.ndarray, " S"]) -> Interval | None:
    """Student's 95 % interval of a mean of independent values; None for fewer than two values.

    >>> low, high = t_interval(np.array([1.0, 2.0, 3.0]))
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    if len(values) < 2:
        return None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * error
    mean = float(np.mean(values))
    return mean - half, mean + half
