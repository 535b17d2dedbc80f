"""Rows of a question and its answer, as data sets for supervised training write them.

The question becomes a message of the user, and the answer one of the assistant. What the question
is about may stand in a column of its own. It follows the question, with an empty line between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tddpo_jax.data.messages import UnusableRow

# The columns that may hold the answer to a question, by the column that holds the question.
PAIRS = {
    "instruction": ("output", "response"),  # alpaca-cleaned, databricks-dolly-15k
    "question": ("answer", "response"),  # gsm8k
    "problem": ("solution",),  # MATH
}
ANSWERS = {answer for answers in PAIRS.values() for answer in answers}
# Columns of what a question is about: alpaca-cleaned, databricks-dolly-15k.
ABOUT = ("input", "context")


class Columns(NamedTuple):
    """The columns of a question and its answer."""

    question: str
    answer: str


def question_and_answer(row: Mapping[str, Any]) -> Columns | None:
    """The columns in which a row holds a question and its answer; None if it has no such pair."""
    return next(iter(_all_pairs(row)), None)


def question_text(row: Mapping[str, Any], column: str) -> str:
    """The question in a column, and behind it what it is about; "" if nothing is asked.

    Raises:
        UnusableRow: a column holds something else than text.
    """
    question, *about = (_text(row, name) for name in (column, *ABOUT))
    return "\n\n".join(filter(str.strip, (question, *about))) if question.strip() else ""


def check_one_pair(row: Mapping[str, Any]) -> None:
    """Refuses a row that holds two questions or two answers: half of it would be lost.

    Raises:
        UnusableRow: the row has columns of two pairs.
    """
    for one, other in zip(_all_pairs(row), _all_pairs(row)[1:], strict=False):
        raise UnusableRow(
            f"has {one.question!r} and {one.answer!r}, and {other.question!r} and "
            f"{other.answer!r}: name the columns with data.columns"
        )


def _all_pairs(row: Mapping[str, Any]) -> list[Columns]:
    """The pairs of columns that a row has; empty ones count only if all are empty."""
    found = [
        Columns(question, answer)
        for question, answers in PAIRS.items()
        for answer in answers
        if question in row and answer in row
    ]
    filled = [pair for pair in found if all(row[column] is not None for column in pair)]
    return filled or found[:1]


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise UnusableRow(f"{column!r} must be a text")
    return value or ""
