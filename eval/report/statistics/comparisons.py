"""Comparisons of two settings against a margin, before and after a correction for all of them."""

from __future__ import annotations

from typing import Literal

from ...uncertainty import LEVEL
from .estimates import Estimate

Verdict = Literal["supported", "not supported", "underpowered", "undecided"]
Rule = Literal["matches", "within", "beats", "differs", "converges", "steadier"]


def lean(rule: Rule, advantage: Estimate, margin: float) -> tuple[Verdict, float]:
    """What an advantage speaks for, and the chance that it would by chance: a two-sided p-value.

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
    return verdict, min(2 * min(for_it, against), 1.0)


def decide(leaning: Verdict, corrected: float, advantage: Estimate, margin: float) -> Verdict:
    """The verdict after the correction.

    What is not decided is underpowered if a true difference as large as the margin would not be
    found either.
    """
    if corrected <= 1 - LEVEL:
        return leaning
    return "underpowered" if not advantage.detectable <= margin else "undecided"
