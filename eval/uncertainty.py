"""What every report shares: the bootstrap's interval, and the correction of several p-values.

U items of a test (questions, prompts, validation pairs), D draws.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

DRAWS = 10_000
LEVEL = 0.95

Interval = tuple[float, float]
Key = TypeVar("Key", bound=Hashable)


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


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """p-values of a family of tests, corrected: at 5 %, one such family in 20 errs at most.

    >>> holm({"a": 0.01, "b": 0.5, "c": 0.02})
    {'a': 0.03, 'c': 0.04, 'b': 0.5}

    References:
        Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979).
    """
    corrected, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        corrected[name] = highest
    return corrected
