"""Whether an answer says what the row's reference answer says, by the library math-verify.

The reference stands in the column `answer` (gsm8k) or `solution` (MATH). Where it is a whole
solution, its last result counts: what follows `####`, or stands in a box.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import math_verify

from tddpo_jax.errors import UserError

COLUMNS = ("answer", "solution")
FINAL = "####"  # of gsm8k: the result follows


def check_reference(row: Mapping[str, Any]) -> None:
    """Raises UserError if a row has no reference answer that math-verify understands."""
    column, text = _reference(row)
    if not _parsed(text):
        raise UserError(f"math-verify finds no result in the column {column!r}: {text[:60]!r}")


def is_right(answer: str, row: Mapping[str, Any]) -> float:
    """1 if an answer's result is that of the row's reference answer, else 0."""
    return float(math_verify.verify(_parsed(_reference(row)[1]), math_verify.parse(answer)))


def _reference(row: Mapping[str, Any]) -> tuple[str, str]:
    """The column with a row's reference answer, and its result or the text that holds it."""
    column = next((name for name in COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise UserError(f"the row has no column {' or '.join(map(repr, COLUMNS))}")
    return column, str(row[column]).rpartition(FINAL)[2].strip()


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> list[Any]:
    # Without a dollar sign, math-verify takes numbers alone.
    return math_verify.parse(text) or math_verify.parse(f"${text}$")
