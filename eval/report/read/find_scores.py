"""Finds every score of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tddpo_jax.errors import UserError

from ...experiment import Experiment
from .answer_scores import MT_BENCH, QUALITY, mt_bench_scores, quality_scores
from .brought_scores import read_brought_scores
from .scores import Score, note
from .validation_scores import VALIDATION, validation_scores

# Columns of `results.csv`, before and after those of the scores.
CELL_COLUMNS = (
    *("cell", "state", "loss", "beta", "tau", "seed", "learning_rate", "diverged_at_step"),
    *("checkpoint_of_first_half", "checkpoint_of_second_half"),
)
TRAINING_COLUMNS = ("largest_grad_norm", "pairs_per_second")
# Names that a score of the user's own cannot have.
TAKEN = {
    *(*MT_BENCH, *QUALITY),
    *(text for name, title, *_ in VALIDATION for text in (name, title)),
    *CELL_COLUMNS,
    *TRAINING_COLUMNS,
}


class Found(NamedTuple):
    """All scores of an experiment, the most telling first, and notes about them."""

    scores: list[Score]
    checkpoints: dict[str, tuple[int, int]]  # by cell: the steps that the halves of the pairs chose
    notes: list[str]


def find_scores(
    experiment: Experiment, files: Sequence[str | Path], judge_model: str | None
) -> Found:
    """Finds every score: first those of answers, then those of validation pairs.

    Args:
        experiment: the cells.
        files: further scores, see `brought_scores`.
        judge_model: the judge whose MT-Bench ratings count; needed if there are several judges.

    Raises:
        UserError: a file of scores is damaged or does not fit the cells.
    """
    rated, of_rated = mt_bench_scores(experiment, judge_model)
    measured, of_measured = quality_scores(experiment)
    given = _given(experiment, files)
    pairs, checkpoints, of_pairs = validation_scores(experiment)
    outside = [*rated, *measured, *given]
    # A cell lacks either all scores of validation pairs or none: one note tells of all.
    lacking = _lacking(experiment, [*outside, *pairs[:1]])
    notes = [*of_rated, *of_measured, *lacking, *of_pairs]
    return Found([*outside, *pairs], checkpoints, notes)


def _given(experiment: Experiment, files: Sequence[str | Path]) -> list[Score]:
    scores: dict[str, Score] = {}
    for file in files:
        for score in read_brought_scores(experiment, str(file)):
            if score.name in TAKEN or score.name in scores:
                raise UserError(f"{file}: name: another score is called {score.name!r}")
            scores[score.name] = score
    return list(scores.values())


def _lacking(experiment: Experiment, scores: Sequence[Score]) -> list[str]:
    """Notes on the cells that ended and lack a score that others have."""
    ended = [(number, cell.name) for number, cell in enumerate(experiment.cells) if cell.ended]
    lines = []
    for score in scores:
        names = [name for number, name in ended if not score.has(number)]
        lines += note(names, f"{score.title}: {{}} ended without a score")
    return lines
