"""The uncertainty of a score, and of the difference between two models.

The ratings of one question, in both turns and under all seeds, rise and fall together. Therefore
whole questions are resampled or flipped. Questions are drawn within their categories, because the
benchmark has ten of each by design. S seeds, Q questions, D draws.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ..uncertainty import DRAWS, LEVEL, quantiles, resampled
from .score import Scores, mean, weighted_means

POWER = 0.8


def interval(scores: Scores) -> tuple[float, float] | None:
    """The bootstrap percentile interval of the score, over questions within their categories.

    None if a seed has no valid rating.
    """
    if mean(scores.ratings) is None:
        return None
    weights = resampled(scores.categories)
    return quantiles(weighted_means(scores.ratings, weights).mean(axis=1))


@dataclasses.dataclass(frozen=True)
class Difference:
    """A model against a baseline, question by question.

    Attributes:
        mean: the model's score minus the baseline's, over the questions that both have.
        interval: 95 %, bootstrap over questions within their categories.
        standard_error: the standard error of `mean`, from the spread of the differences within
            their categories.
        p_value: two-sided, of a sign-flip test. If the models were alike, each question's
            difference could as well have the other sign.
        smallest_detectable: the true difference that a comparison with this standard error would
            find in four of five cases, at the 5 % level.
        questions: the number of questions that both have.
    """

    baseline: str
    mean: float
    interval: tuple[float, float]
    standard_error: float
    p_value: float
    smallest_detectable: float
    questions: int


def difference(scores: Scores, baseline: Scores) -> Difference | None:
    """Compares two models question by question.

    None if there is no question that both have a rating of in the same turn.
    """
    shared = sorted(set(scores.questions) & set(baseline.questions))
    pairs = _per_turn(scores, shared) - _per_turn(baseline, shared)
    kept = np.isfinite(pairs).any(axis=1)
    if not kept.any():
        return None
    deltas = np.array([row[np.isfinite(row)].mean() for row in pairs[kept]])
    category = dict(zip(scores.questions, scores.categories, strict=True))
    categories = [category[q] for q, keep in zip(shared, kept, strict=True) if keep]
    error = stratified_error(deltas, categories)
    draws = resampled(categories) @ deltas / len(deltas)
    normal = statistics.NormalDist()
    return Difference(
        baseline=baseline.model_id,
        mean=float(deltas.mean()),
        interval=quantiles(draws),
        standard_error=error,
        p_value=sign_flip(deltas),
        smallest_detectable=(normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)) * error,
        questions=len(deltas),
    )


def _per_turn(scores: Scores, questions: Sequence[int]) -> Float[np.ndarray, "Q 2"]:
    """The mean over the seeds that have a rating; NaN if none has one."""
    places = [scores.questions.index(question) for question in questions]
    ratings = scores.ratings[:, places]
    counts = np.isfinite(ratings).sum(axis=0)
    totals = np.nansum(ratings, axis=0)
    return np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=counts > 0)


def stratified_error(deltas: Float[np.ndarray, " Q"], categories: Sequence[str]) -> float:
    """The standard error of a mean over questions, drawn within categories of fixed size."""
    names = np.asarray(categories)
    total = 0.0
    for name in dict.fromkeys(categories):
        group = deltas[names == name]
        total += len(group) * (group.var(ddof=1) if len(group) > 1 else 0.0)
    return math.sqrt(total) / len(deltas)


def sign_flip(deltas: Float[np.ndarray, " Q"], *, draws: int = DRAWS, seed: int = 0) -> float:
    """The share of random sign patterns, with the observed one, whose mean is as far from 0."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, len(deltas)))
    observed = abs(deltas.sum())
    extreme = np.abs(signs @ deltas) >= observed - 1e-9
    return (1 + int(extreme.sum())) / (1 + draws)
