"""Scores and their uncertainty, held against sums done by hand and slow loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from mt_bench_files import judgment

from eval.mt_bench.difference import difference, interval, sign_flip, stratified_error
from eval.mt_bench.judgments import Judgment, current
from eval.mt_bench.score import CATEGORIES, Scores, fastchat_scores, mean, scores_of, sd_over_seeds
from eval.uncertainty import DRAWS, holm, resampled


def record(questions: int) -> dict[str, str | int]:
    """What a judgment records about a benchmark of so many questions."""
    sums = dict.fromkeys(("questions", "prompts", "references"), "0" * 64)
    return {**sums, "reference": "gpt-4", "question_count": questions}


def row(model: str, question: int, turn: int, score: float, **ours: object) -> Judgment:
    return Judgment.model_validate(judgment(model, question, turn, score, **ours))


def scores(ratings: np.ndarray, categories: list[str], model_id: str = "m") -> Scores:
    return Scores(
        model_id=model_id,
        seeds=tuple(f"s{seed}" for seed in range(len(ratings))),
        questions=tuple(range(81, 81 + len(categories))),
        categories=tuple(categories),
        ratings=ratings,
        expected=ratings.size,
        invalid=0,
    )


def random_scores(seed: int, model_id: str = "m", seeds: int = 3) -> Scores:
    """80 questions whose level all their rows share, in eight categories of ten."""
    generator = np.random.default_rng(seed)
    level = generator.uniform(3, 8, size=(1, 80, 1))
    ratings = np.clip(np.round(level + generator.normal(size=(seeds, 80, 2))), 1, 10)
    return scores(ratings, [name for name in CATEGORIES for _ in range(10)], model_id)


# ---- which rows count ----------------------------------------------------------------------------


def test_only_the_current_request_counts_and_counts_once() -> None:
    rows = [
        row("m", 81, 1, 2, request_hash="old"),
        row("m", 81, 1, 8, request_hash="new"),
        row("m", 81, 1, 9, request_hash="new"),
        row("m", 81, 2, -1, request_hash="a", invalid="no rating"),
        row("m", 81, 2, 6, request_hash="a"),
        row("m", 82, 1, 3, request_hash="b"),
    ]
    assert [found.score for found in current(rows)] == [8, 6, 3]
    keys = {rows[0].slot: rows[0].key, rows[3].slot: (rows[3].slot, "single-v1", "never asked")}
    assert [found.score for found in current(rows, keys)] == [2]


@pytest.mark.parametrize(
    ("score", "text", "rating"),
    [
        (7, "Rating: [[7]]", 7.0),
        (7.5, "Rating: [[7.5]]", 7.5),
        (7, "a text that was shortened", 7.0),
        (0, "array[0]", None),
        (5, "array[5]", None),
        (11, "[[11]]", None),
        (5, "<think>e.g. [[5]]</think> [[9]]", 9.0),
        (5, "<think>e.g. [[5]]", None),
        (-1, "$ERROR$", None),
        (float("nan"), "", None),
    ],
)
def test_scores_in_other_peoples_files(score: float, text: str, rating: float | None) -> None:
    assert row("m", 81, 1, score, judgment=text).rating == rating


# ---- the score -----------------------------------------------------------------------------------


def test_a_score_is_the_mean_over_seeds_of_the_means_over_rows() -> None:
    """Seed 0: (1 + 2 + 3 + 6) / 4 = 3; seed 1: (4 + 4 + 4 + 8) / 4 = 5; mean 4, SD sqrt(2)."""
    ratings = np.array([[[1, 2], [3, 6]], [[4, 4], [4, 8]]], float)
    found = scores(ratings, ["writing", "math"])
    assert mean(found.ratings) == 4
    assert sd_over_seeds(found) == pytest.approx(math.sqrt(2))
    assert mean(found.ratings[..., :1]) == (2 + 4) / 2
    assert mean(found.ratings[..., 1:]) == (4 + 6) / 2
    assert mean(found.ratings[:, [1]]) == (4.5 + 6) / 2
    assert sd_over_seeds(scores(ratings[:1], ["writing", "math"])) is None


def test_a_missing_row_does_not_weigh() -> None:
    """Seed 0 has 1, 2 and 6: 3; seed 1 is whole: 5."""
    ratings = np.array([[[1, 2], [np.nan, 6]], [[4, 4], [4, 8]]])
    assert mean(ratings) == 4
    assert mean(np.full((2, 2, 2), np.nan)) is None


def test_rows_are_placed_by_what_they_say() -> None:
    rows = [
        row("x-seed1", 121, 2, 4, model_id="x", seed=1, category="coding"),
        row("x-seed0", 121, 2, 9, model_id="x", seed=0, category="coding"),
        row("x-seed0", 81, 1, 3, model_id="x", seed=0, data=record(2)),
        row("x-seed0", 121, 1, 0, model_id="x", seed=0, category="coding"),
        row("x", 81, 1, 5),
    ]
    found = scores_of(rows[:4])["x"]
    assert found.seeds == ("x-seed0", "x-seed1")
    assert found.questions == (81, 121)
    assert found.categories == ("writing", "coding")
    nan = np.nan
    expected = [[[3, nan], [nan, 9]], [[nan, nan], [nan, 4]]]
    np.testing.assert_array_equal(found.ratings, expected)
    assert (found.valid, found.invalid, found.expected) == (3, 1, 2 * 2 * 2)
    assert scores_of(rows[4:])["x"].expected == 160, "MT-Bench's own count where none is recorded"


def test_one_model_and_seed_from_two_files_is_refused() -> None:
    rows = [row("a", 81, 1, 5, model_id="m", seed=0), row("b", 81, 1, 6, model_id="m", seed=0)]
    with pytest.raises(ValueError, match="m: a and b have the same model and seed"):
        scores_of(rows)


def test_more_questions_than_there_are_is_refused() -> None:
    rows = [row("m", number, 1, 5, data=record(1)) for number in (81, 82)]
    with pytest.raises(ValueError, match="2 questions were judged, but there are 1"):
        scores_of(rows)


# ---- how sure ------------------------------------------------------------------------------------


def test_resampling_keeps_the_categories() -> None:
    names = ["a"] * 3 + ["b"] * 5
    weights = resampled(names, draws=2000)
    np.testing.assert_array_equal(weights[:, :3].sum(axis=1), 3)
    np.testing.assert_array_equal(weights[:, 3:].sum(axis=1), 5)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=5 * math.sqrt(1 / 2000))
    assert resampled(["a", "b"]).tolist() == [[1, 1]] * DRAWS, "one question each: nothing to draw"


def test_the_interval_is_that_of_a_loop_over_whole_questions() -> None:
    """The same resampling written out; both ends within Monte Carlo error, about 0.01 here."""
    found = random_scores(1)
    generator = np.random.default_rng(5)
    members = {name: np.flatnonzero(np.array(found.categories) == name) for name in CATEGORIES}
    draws = []
    for _ in range(4000):
        chosen = np.concatenate([generator.choice(places, 10) for places in members.values()])
        draws.append(found.ratings[:, chosen].mean(axis=(1, 2)).mean())
    assert interval(found) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.03)
    assert interval(found) == interval(found), "no chance between two reports"


def test_clustering_widens_the_interval() -> None:
    """Rows of a question move together, so a bootstrap of single rows would be far too sure."""
    found = random_scores(2)
    low, high = interval(found) or (0, 0)
    per_row = found.ratings.std() / math.sqrt(found.ratings.size)
    assert (high - low) / 2 > 1.5 * 1.96 * per_row


def test_the_standard_error_is_that_of_the_bootstrap() -> None:
    """Resampling has the variance with n in the denominator, 9/10 of the unbiased one here."""
    generator = np.random.default_rng(3)
    names = [name for name in CATEGORIES for _ in range(10)]
    deltas = generator.normal(size=80) + np.repeat(np.arange(8), 10)
    draws = resampled(names) @ deltas / 80
    assert draws.std() == pytest.approx(stratified_error(deltas, names) * math.sqrt(0.9), rel=0.03)
    assert stratified_error(np.array([1.0, 3.0]), ["a", "b"]) == 0
    assert stratified_error(np.array([1.0, 3.0]), ["a", "a"]) == pytest.approx(math.sqrt(2 * 2) / 2)


def test_sign_flips_against_all_patterns() -> None:
    deltas = np.array([0.5, -0.2, 0.9, 0.1, 0.4, 0.0, -0.1, 0.7])
    patterns = np.array(list(itertools.product([-1, 1], repeat=len(deltas))))
    exact = (np.abs(patterns @ deltas) >= abs(deltas.sum()) - 1e-9).mean()
    error = math.sqrt(exact * (1 - exact) / DRAWS)
    assert sign_flip(deltas) == pytest.approx(exact, abs=4 * error)
    assert sign_flip(np.zeros(8)) == 1
    assert sign_flip(np.ones(80)) == 1 / (DRAWS + 1), "never 0: the observed pattern counts"


def test_p_values_are_uniform_where_there_is_no_difference() -> None:
    """Of 200 null comparisons 10 are expected below 0.05; 2 and 20 are beyond 2.6 SD."""
    generator = np.random.default_rng(11)
    below = sum(sign_flip(generator.normal(size=80), draws=400) <= 0.05 for _ in range(200))
    assert 2 < below < 20


def test_a_difference_is_paired_by_question() -> None:
    """Question levels cancel: the interval of the difference is narrower than either score's."""
    base = random_scores(7, "base")
    better = scores(np.minimum(base.ratings + 1, 10), list(base.categories), "better")
    found = difference(better, base)
    assert found is not None
    assert found.mean == pytest.approx((mean(better.ratings) or 0) - (mean(base.ratings) or 0))
    assert found.interval[0] < found.mean < found.interval[1]
    low, high = interval(base) or (0, 0)
    assert found.interval[1] - found.interval[0] < (high - low) / 3
    assert found.p_value < 0.001
    assert found.questions == 80
    assert found.smallest_detectable == pytest.approx(2.8016 * found.standard_error, rel=1e-4)
    same = difference(base, base)
    assert same is not None
    assert (same.mean, same.interval, same.p_value) == (0, (0, 0), 1)


def test_the_smallest_detectable_difference_is_found_four_times_in_five() -> None:
    """Simulated: normal differences with that mean; a z test at 5 % finds 80 % of them."""
    generator = np.random.default_rng(13)
    error = 0.25
    effect = 2.8016 * error
    found = np.abs(generator.normal(effect, error, size=20_000)) > 1.96 * error
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_pairs_use_the_turns_that_both_have() -> None:
    """Question 1: turn 1 alone is shared, 5 - 3 = 2. Question 2: (4 - 3 + 8 - 9) / 2 = 0."""
    nan = np.nan
    one = scores(np.array([[[5, 6], [4, 8], [1, 1]]], float), ["a", "a", "a"], "one")
    two = scores(np.array([[[3, nan], [3, 9], [nan, nan]]]), ["a", "a", "a"], "two")
    found = difference(one, two)
    assert found is not None
    assert (found.mean, found.questions) == (1, 2)
    empty = scores(np.full((1, 3, 2), nan), ["a", "a", "a"])
    assert difference(one, empty) is None
    assert interval(empty) is None


def test_holm() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1, never falling."""
    found = holm({"d": 0.5, "a": 0.01, "c": 0.03, "b": 0.02})
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.5})
    assert holm({}) == {}


# ---- FastChat ------------------------------------------------------------------------------------


def test_fastchats_numbers_from_its_own_rows() -> None:
    """-1 dropped, duplicates and out-of-range scores averaged in, turns not weighed alike.

    a: turn 1: (8 + 4 + 0) / 3 = 4; turn 2: 10; all four rows: 22 / 4 = 5.5.
    """
    rows = [
        row("a", 81, 1, 8),
        row("a", 81, 1, 4),
        row("a", 82, 1, 0),
        row("a", 81, 2, 10),
        row("a", 82, 2, -1),
        row("b", 81, 1, -1),
    ]
    assert fastchat_scores(rows) == {
        "a": {"turn_1": 4.0, "turn_2": 10.0, "average": 5.5, "rows": 4, "dropped": 1}
    }


def test_fastchats_parser_on_our_invalid_rows() -> None:
    """It would have read 5 out of the first and 7 out of the second; ours counts neither."""
    rows = [
        row("a", 81, 1, -1, invalid="no rating", judgment="Rating: [5]"),
        row("a", 82, 1, -1, invalid="stopped by length", judgment="[[7]] since"),
        row("a", 83, 1, -1, invalid="no rating", judgment="none"),
    ]
    assert fastchat_scores(rows)["a"]["average"] == 6
    assert fastchat_scores(rows)["a"]["dropped"] == 1
    assert scores_of(rows)["a"].valid == 0
