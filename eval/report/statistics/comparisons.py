"""Comparisons of two settings against a margin, and one correction for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from ...uncertainty import LEVEL
from .estimates import Estimate

Verdict = Literal["supported", "not supported", "underpowered", "undecided"]
Rule = Literal["matches", "within", "beats", "differs", "converges", "steadier"]


class Leaning(NamedTuple):
    """What an estimate speaks for, and how likely it would speak so by chance alone."""

    verdict: Verdict
    chance: float


def lean(rule: Rule, advantage: Estimate, margin: float) -> Leaning:
    """Holds an advantage against a margin; the chance is a two-sided p-value.

    `matches` asks for more than -margin, `beats` and `steadier` for more than +margin, `within` for
    between the two, and `differs` for another value than 0.
    """
    floor = -margin if rule in ("matches", "within") else margin
    above = advantage.chance_above(floor)
    for_it, against = above, 1 - above
    if rule == "within":
        ceiling = advantage.chance_above(margin)
        for_it, against = max(above, 1 - ceiling), min(1 - above, ceiling)
    if rule == "differs":
        for_it = against = min(above, 1 - above)
    verdict: Verdict = "supported" if for_it <= against else "not supported"
    return Leaning(verdict, min(2 * min(for_it, against), 1.0))


def holm(chances: Sequence[float]) -> list[float]:
    """Holm's correction: at most 5 % of all such families of comparisons then hold one error.

    Comparisons without a number (NaN) are not in the family.

    >>> [round(one, 3) for one in holm([0.01, 0.04, math.nan, 0.02])]
    [0.03, 0.04, nan, 0.04]

    References:
        Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979).
    """
    found = np.array(chances, np.float64)
    order = [place for place in np.argsort(found) if not math.isnan(found[place])]
    highest = 0.0
    for number, place in enumerate(order):
        highest = max(highest, min(1.0, float(found[place]) * (len(order) - number)))
        found[place] = highest
    return found.tolist()


def decide(leaning: Leaning, corrected: float, advantage: Estimate, margin: float) -> Verdict:
    """The verdict after the correction.

    What is not decided is underpowered if a true difference as large as the margin would not be
    found either.
    """
    if corrected <= 1 - LEVEL:
        return leaning.verdict
    return "underpowered" if not advantage.detectable <= margin else "undecided"
