"""The answers that runs sampled at their validations, as the page shows them side by side."""

from __future__ import annotations

from typing import NamedTuple

from tddpo_jax.runs.records import best_record
from tddpo_jax.runs.sampled_answers import read_answers

from ...experiment import Cell

LONGEST = 1500  # characters of a text that a report shows


class Sampled(NamedTuple):
    """A run's answers to the fixed prompts, by when they were sampled."""

    prompts: list[str]
    answers: dict[str, list[str]]


def sampled_answers(cell: Cell) -> Sampled | None:
    """The answers before training, of the best policy and of the last; None if there are none.

    Raises:
        UserError: a file is damaged.
    """
    found = {step: rows for step, rows in read_answers(cell.folder).items() if rows}
    if not found:
        return None
    assert cell.config is not None
    best = best_record(list(cell.records), cell.config.train.best_metric)
    moments = {"before training": 0, "best": best["step"] if best else 0, "last": max(found)}
    shown = {f"{name}, step {step}": step for name, step in moments.items() if step in found}
    return Sampled(
        [_short(row.prompt) for row in found[max(found)]],
        {name: [_short(row.answer) for row in found[step]] for name, step in shown.items()},
    )


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
