"""A score: one number for each cell and item.

An item is a validation pair, a prompt or a question. The items are split in two halves. What one
half chooses, the other half scores, so no item both chooses and scores. C cells, U items.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ..number_formats import plural


class Margins(NamedTuple):
    """Which differences count as equal, and which as better, in the unit of a score."""

    matches: float
    beats: float


# Those of MT-Bench are the experiment's own. The others are on a scale from 0 to 1.
MARGINS = {
    "mt_bench": Margins(0.1, 1.5),
    "quality": Margins(0.02, 0.05),
    "eval_rewards/accuracies": Margins(0.02, 0.02),
}


def halves(strata: Sequence[str], seed: int = 0) -> Bool[np.ndarray, " U"]:
    """Splits the items of every stratum in two at random. True marks the second half."""
    generator = np.random.default_rng(seed)
    names = np.asarray(strata)
    second = np.zeros(len(names), bool)
    for name in dict.fromkeys(strata):
        members = generator.permutation(np.flatnonzero(names == name))
        second[members[(len(members) + 1) // 2 :]] = True
    return second


@dataclasses.dataclass(frozen=True)
class Score:
    """A column of scores.

    Attributes:
        title, unit: text for people; the unit also labels axes.
        higher: whether more is better.
        margins: the margins of the claims; None if the score is only shown and tests no claim.
        decimals: digits after the point that are worth printing.
        strata: `U` names; items are drawn and split within a stratum.
        choosing: `[C, U]`, the numbers that choose: each item under the checkpoint that its own
            half chose.
        scoring: `[C, U]`, the numbers that score: each item under the checkpoint that the other
            half chose. NaN where a cell has no score.
        last: `[C, U]`, the numbers of the last policy; None if only one policy has a score.
        base: the number of the model before training; None if it is not known.
    """

    name: str
    title: str
    unit: str
    higher: bool
    margins: Margins | None
    decimals: int
    strata: tuple[str, ...]
    choosing: Float[np.ndarray, "C U"]
    scoring: Float[np.ndarray, "C U"]
    last: Float[np.ndarray, "C U"] | None = None
    base: float | None = None

    @functools.cached_property
    def second(self) -> Bool[np.ndarray, " U"]:
        """True for the items of the second half."""
        return halves(self.strata)

    def has(self, cell: int) -> bool:
        """Whether the cell of this number has a score."""
        return bool(np.isfinite(self.scoring[cell]).any())

    def of(self, cell: int) -> float:
        """A cell's score: its mean over items; NaN if it has none."""
        return float(np.nanmean(self.scoring[cell])) if self.has(cell) else float("nan")

    def of_last(self, cell: int) -> float:
        """The score of a cell's last policy; NaN if it is not known."""
        if self.last is None or not self.has(cell):
            return float("nan")
        return float(np.nanmean(self.last[cell]))


def note(names: Sequence[str], text: str) -> list[str]:
    """One line about some cells that names them; no line if there are no names.

    Args:
        names: the cells.
        text: the line, with `{}` for the number of cells.
    """
    if not names:
        return []
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return [f"{text.format(plural(len(names), 'cell'))}: {shown}"]
