"""MT-Bench scores from judgments.

A model's score is the mean over its seeds of the mean over its rows (80 questions x 2 turns). S
seeds, Q questions.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float

from tddpo_jax.errors import UserError

from .judgments import Judgment

QUESTIONS = 80
TURNS = 2
# The categories of FastChat's question.jsonl: ten questions each, with ids from 81 on. Rows that do
# not name their category get it from their id.
CATEGORIES = (
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
)


@dataclasses.dataclass(frozen=True)
class Scores:
    """The ratings of one model.

    Attributes:
        seeds: the names of the answer files, one per seed.
        questions: the ids of the questions that have any judgment.
        categories: the category of each question.
        ratings: `[S, Q, 2]`, ratings from 1 to 10; NaN where there is no valid rating.
        expected: the number of rows of a complete score.
        invalid: the number of rows whose judgment has no valid rating.
    """

    model_id: str
    seeds: tuple[str, ...]
    questions: tuple[int, ...]
    categories: tuple[str, ...]
    ratings: Float[np.ndarray, "S Q 2"]
    expected: int
    invalid: int

    @property
    def valid(self) -> int:
        """The number of valid ratings."""
        return int(np.isfinite(self.ratings).sum())

    @property
    def complete(self) -> bool:
        """Whether no rating is missing."""
        return self.valid == self.expected


def scores_of(rows: Iterable[Judgment]) -> dict[str, Scores]:
    """The scores of each model, by its id, from the rows that count (`judgments.current`).

    Raises:
        UserError: two answer files have the same model and seed, or more questions were judged
            than the benchmark has.
    """
    models: dict[str, list[Judgment]] = defaultdict(list)
    for row in rows:
        models[row.model_id or row.model].append(row)
    return {model_id: _scores(model_id, group) for model_id, group in sorted(models.items())}


def _scores(model_id: str, rows: list[Judgment]) -> Scores:
    seeds = _seeds(model_id, rows)
    category = {row.question_id: category_of(row) for row in rows}
    questions = tuple(sorted(category))
    total = max((row.data["question_count"] for row in rows if row.data), default=QUESTIONS)
    if len(questions) > total:
        raise UserError(
            f"{model_id}: {len(questions)} questions were judged, but there are {total}"
        )
    ratings = np.full((len(seeds), len(questions), TURNS), np.nan)
    for row in rows:
        if row.rating is not None:
            place = seeds.index(row.model), questions.index(row.question_id), row.turn - 1
            ratings[place] = row.rating
    return Scores(
        model_id=model_id,
        seeds=seeds,
        questions=questions,
        categories=tuple(category[question] for question in questions),
        ratings=ratings,
        expected=len(seeds) * total * TURNS,
        invalid=sum(row.rating is None for row in rows),
    )


def _seeds(model_id: str, rows: list[Judgment]) -> tuple[str, ...]:
    seeds = dict.fromkeys((row.seed if row.seed is not None else -1, row.model) for row in rows)
    doubled = [seed for seed, files in Counter(seed for seed, _ in seeds).items() if files > 1]
    if doubled:
        files = sorted(model for seed, model in seeds if seed == doubled[0])
        raise UserError(f"{model_id}: {' and '.join(files)} have the same model and seed")
    return tuple(model for _, model in sorted(seeds))


def category_of(row: Judgment) -> str:
    """The category of a row's question; `other` if its id is unknown."""
    if row.category is not None:
        return row.category
    place = (row.question_id - 81) // 10
    return CATEGORIES[place] if 0 <= place < len(CATEGORIES) else "other"


def mean(ratings: Float[np.ndarray, "S Q n"]) -> float | None:
    """The mean over seeds of the mean over valid rows; None if a seed has no valid row.

    >>> mean(np.array([[[4.0, 6.0]], [[np.nan, 8.0]]]))
    6.5
    """
    means = weighted_means(ratings, np.ones((1, ratings.shape[1])))
    return None if np.isnan(means).any() else float(means.mean())


def sd_over_seeds(scores: Scores) -> float | None:
    """The sample standard deviation of the seeds' means; None for a single seed."""
    means = weighted_means(scores.ratings, np.ones((1, len(scores.questions))))[0]
    return None if len(means) < 2 or np.isnan(means).any() else float(means.std(ddof=1))


def weighted_means(
    ratings: Float[np.ndarray, "S Q n"], weights: Float[np.ndarray, "D Q"]
) -> Float[np.ndarray, "D S"]:
    """Each seed's mean over its valid rows, under D weightings of the questions.

    It is NaN for a seed without valid rows.
    """
    counts = weights @ np.isfinite(ratings).sum(axis=2).T
    totals = weights @ np.nansum(ratings, axis=2).T
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def fastchat_scores(rows: Iterable[Judgment]) -> dict[str, dict[str, Any]]:
    """The numbers of FastChat's `show_result.py`: plain means over rows, by the answer file's name.

    Rows of score -1 are dropped silently. All other scores count, and duplicates too.
    """
    models: dict[str, list[tuple[int, float]]] = defaultdict(list)
    dropped: Counter[str] = Counter()
    for row in rows:
        score = row.fastchat_score
        dropped[row.model] += score == -1
        if score != -1:
            models[row.model].append((row.turn, score))
    return {
        model: {
            "turn_1": _mean_of(score for turn, score in scored if turn == 1),
            "turn_2": _mean_of(score for turn, score in scored if turn == 2),
            "average": _mean_of(score for _, score in scored),
            "rows": len(scored),
            "dropped": dropped[model],
        }
        for model, scored in sorted(models.items())
    }


def _mean_of(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None
