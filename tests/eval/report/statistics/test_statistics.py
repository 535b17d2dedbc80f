"""The report's statistics, held against slow loops and against worlds whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.experiment import Point
from eval.report.read.pair_metrics import halves
from eval.report.read.scores import Score
from eval.report.statistics.arms import Arm, best_of
from eval.report.statistics.intervals import difference, draws_of, estimate, means_of, resampling
from eval.report.statistics.sensitivity import Sensitivity, noise_of, ratio, sensitivity
from eval.uncertainty import resampled, t_interval

BETAS = (0.01, 0.05, 0.5, 2.5)


def arm(values: np.ndarray, beta: float = 0.05, loss: str = "dpo") -> Arm:
    point = Point(loss, beta, None)
    return Arm(point, values, values, (point, point))


def score_of(items: int, *, higher: bool = True) -> Score:
    strata = ("items",) * items
    return Score(
        name="s",
        title="s",
        unit="u",
        higher=higher,
        margins=None,
        decimals=2,
        strata=strata,
        second=halves(strata, 0),
        choosing=np.zeros((0, items)),
        scoring=np.zeros((0, items)),
    )


# ---- Resampling ----------------------------------------------------------------------------------


def test_means_of_draws_against_a_loop() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(3, 4, 7))
    values[0, 1] = np.nan
    values[1, 0, 2:5] = np.nan
    drawn = resampling(("items",) * 7, 4, draws=11)
    found = means_of(values, drawn)
    for d in range(11):
        for a in range(3):
            total, weight = 0.0, 0.0
            for s in range(4):
                known = np.isfinite(values[a, s])
                counts = drawn.items[d, known]
                if counts.sum():
                    mean = (counts * values[a, s, known]).sum() / counts.sum()
                    total += drawn.seeds[d, s] * mean
                    weight += drawn.seeds[d, s]
            expected = total / weight if weight else math.nan
            np.testing.assert_allclose(found[d, a], expected)


def test_items_are_drawn_within_their_strata() -> None:
    weights = resampled(("a", "b", "a", "b", "b"), draws=50)
    assert (weights[:, [0, 2]].sum(axis=1) == 2).all()
    assert (weights[:, [1, 3, 4]].sum(axis=1) == 3).all()


def test_a_draw_without_any_seed_of_an_arm_is_left_out() -> None:
    """Two seeds of three: a draw of the third alone says nothing about the arm."""
    values = np.array([[1.0, 1.0], [3.0, 3.0], [np.nan, np.nan]])
    drawn = resampling(("items",) * 2, 3)
    arms = {one.point: one for one in [arm(values)]}
    draws = draws_of(arms, drawn)
    found = estimate(arm(values), draws)
    share = np.isnan(draws[arm(values).point]).mean()
    assert share == pytest.approx(1 / 9, abs=0.025)  # a draw takes two seeds
    assert (found.mean, found.interval, found.seeds) == (2.0, (1.0, 3.0), 2)


def test_a_difference_is_over_the_seeds_that_both_have() -> None:
    ours = np.array([[2.0, 2.0], [4.0, 4.0], [np.nan, np.nan]])
    theirs = np.array([[np.nan, np.nan], [1.0, 1.0], [9.0, 9.0]])
    drawn = resampling(("items",) * 2, 3)
    found = difference(arm(ours), arm(theirs), drawn)
    assert found is not None
    assert (found.mean, found.seeds, found.over_seeds) == (3.0, 1, None)
    assert difference(arm(ours[:1]), arm(theirs[:1]), resampling(("items",) * 2, 1)) is None


def test_t_interval_by_hand() -> None:
    """Mean 2, standard error 1 / sqrt(3), and 4.303 standard errors at two degrees of freedom."""
    found = t_interval(np.array([1.0, 2.0, 3.0]))
    assert found == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    assert t_interval(np.array([1.0])) is None


# ---- Coverage ------------------------------------------------------------------------------------

WORLDS = {  # standard deviations: of seeds, of items, of both together
    "seeds alone": (0.05, 0.0, 0.0),
    "items alone": (0.0, 0.3, 0.05),
    "both": (0.02, 0.3, 0.2),
}


@pytest.mark.parametrize("world", WORLDS)
def test_coverage_of_the_span_with_three_seeds(world: str) -> None:
    """The true difference of two arms is 0; 500 experiments, standard error of coverage 1 %.

    Where seeds matter alone the bootstrap covers far less than 95 %, where items do Student's
    interval does; their span covers everywhere.
    """
    generator = np.random.default_rng(1)
    of_seeds, of_items, of_both = WORLDS[world]
    drawn = resampling(("items",) * 40, 3, draws=400)
    covered = np.zeros(3)
    for _ in range(500):
        values = (
            of_seeds * generator.normal(size=(3, 1))
            + of_items * generator.normal(size=(1, 40))
            + of_both * generator.normal(size=(3, 40))
        )
        found = difference(arm(values), arm(np.zeros((3, 40))), drawn)
        assert found is not None
        assert found.over_seeds is not None
        for number, (low, high) in enumerate((found.interval, found.over_seeds, found.span)):
            covered[number] += low <= 0 <= high
    bootstrap, student, span = covered / 500
    assert span > 0.93
    if world == "seeds alone":
        assert bootstrap < 0.85
    if world == "items alone":
        assert student < 0.6


def _series(
    generator: np.random.Generator,
    spread: float,
    loss: str,
    *,
    of_seeds: float = 0.01,
    seeds: int = 3,
    items: int = 60,
) -> list[Arm]:
    """Four betas whose true means have the standard deviation `spread`, and seeds `of_seeds`."""
    shape = np.array([-1.2, 0.3, 0.9, 0.0])
    means = spread * (shape - shape.mean()) / shape.std(ddof=1)
    easy = 0.3 * generator.normal(size=items)
    return [
        arm(
            mean
            + easy
            + of_seeds * generator.normal(size=(seeds, 1))
            + 0.12 * generator.normal(size=items)
            + 0.12 * generator.normal(size=(seeds, items)),
            beta,
            loss,
        )
        for beta, mean in zip(BETAS, means, strict=True)
    ]


@pytest.mark.parametrize("of_seeds", [0.01, 0.05, 0.1])
@pytest.mark.parametrize(
    ("spread", "baseline"), [(0.0, 0.08), (0.06, 0.08), (0.08, 0.08), (0.02, 0.08)]
)
def test_coverage_of_the_ratio_of_variances(
    spread: float, baseline: float, of_seeds: float
) -> None:
    """The true ratio is known: 150 experiments, standard error of coverage 2 %.

    Items alone give a mean a standard error of 0.017; seeds add 0.006, 0.03 or 0.06. With a spread
    of 0 the variance of means is always above 0, and so is every resampled one: only with the noise
    taken off does the interval reach the truth.
    """
    generator = np.random.default_rng(2)
    truth = (spread / baseline) ** 2
    drawn = resampling(("items",) * 60, 3, draws=250)
    covered, plain, values = 0, 0, []
    for _ in range(150):
        ours = _series(generator, spread, "a", of_seeds=of_seeds)
        theirs = _series(generator, baseline, "b", of_seeds=of_seeds)
        found = ratio(ours, theirs, drawn)
        assert found is not None
        covered += found.span[0] <= truth <= found.span[1]
        values.append(found.value)
        means = means_of(np.stack([one.scoring for one in ours]), drawn)
        plain += np.quantile(means.var(axis=1, ddof=1), 0.025) <= spread**2
    assert covered / 150 > 0.93
    if of_seeds == 0.01:
        assert np.median(values) == pytest.approx(truth, abs=0.12)
        if spread == 0:
            assert plain == 0


@pytest.mark.parametrize("of_seeds", [0.0, 0.01, 0.1])
def test_the_noise_is_estimated_without_bias(of_seeds: float) -> None:
    """A mean over 3 seeds and 60 items has the variance a²/3 + 0.12²/60 + 0.12²/180, with a that
    of seeds, beside what all betas share. A bootstrap of 3 seeds of 3 finds two thirds of a²/3.
    """
    generator = np.random.default_rng(5)
    truth = of_seeds**2 / 3 + 0.12**2 / 60 + 0.12**2 / 180
    worlds = (_series(generator, 0.05, "a", of_seeds=of_seeds) for _ in range(1000))
    found = [noise_of(np.stack([one.scoring for one in arms])) for arms in worlds]
    assert np.mean(found) == pytest.approx(truth, rel=0.07)  # three standard errors or more


def test_the_noise_of_one_item_or_one_seed_is_a_squared_standard_error() -> None:
    """With a single item the rest is the mean of S independent contrasts, with one seed of U."""
    values = np.random.default_rng(6).normal(size=(2, 5, 1))
    # Of two betas, half the squared difference is their variance.
    expected = (values[0] - values[1]).var(ddof=1) / 5 / 2
    assert noise_of(values) == pytest.approx(expected)
    assert noise_of(values.reshape(2, 1, 5)) == pytest.approx(expected)


def test_t_over_the_logarithms_of_the_ratios_of_seeds_by_hand() -> None:
    """Variances across two betas of 2, 2, 8 over 8, 2, 2: ratios of 1/4, 1 and 4.

    Their logarithms have the mean 0 and the standard error log(4) / sqrt(3).
    """
    steps = (np.array([2.0, 2.0, 4.0]), np.array([4.0, 2.0, 2.0]))
    ours, theirs = (
        [arm(np.zeros((3, 1)), 0.1, loss), arm(step[:, None], 0.2, loss)]
        for loss, step in zip("ab", steps, strict=True)
    )
    drawn = resampling(("items",), 3)
    found = ratio(ours, theirs, drawn)
    assert found is not None
    half = 4.302653 * math.log(4) / math.sqrt(3)
    assert found.over_seeds == pytest.approx((math.exp(-half), math.exp(half)))
    assert found.span[0] <= found.over_seeds[0]
    assert found.span[1] >= found.over_seeds[1]
    # Of a seed that does not vary at all the logarithm says nothing.
    flat = [ours[0], arm(np.zeros((3, 1)), 0.2, "a")]
    found = ratio(flat, theirs, drawn)
    assert found is not None
    assert found.over_seeds == (0.0, math.inf)


def test_a_seed_that_an_arm_lacks_counts_in_none() -> None:
    """Seed 2 lies 0.4 above the others and has no first beta: what is left is as without it."""
    generator = np.random.default_rng(4)
    drawn, smaller = resampling(("items",) * 60, 3), resampling(("items",) * 60, 2)
    ours, theirs = (_series(generator, spread, loss) for spread, loss in ((0.06, "a"), (0.08, "b")))

    def with_seeds(arms: list[Arm], lift: float, seeds: int) -> list[Arm]:
        lifted = [one.scoring[:seeds] + lift * (np.arange(seeds) == 2)[:, None] for one in arms]
        return [
            arm(v, float(one.point.beta), one.point.loss)
            for v, one in zip(lifted, arms, strict=True)
        ]

    whole, without = with_seeds(ours, 0.4, 3), with_seeds(ours, 0.0, 2)
    whole[0].scoring[2] = np.nan
    found, expected = sensitivity(whole, drawn), sensitivity(without, smaller)
    assert found is not None
    assert expected is not None
    assert (found.seeds, found.observed) == (2, pytest.approx(expected.observed))
    assert found.variance == pytest.approx(expected.variance)
    np.testing.assert_allclose(found.per_seed[:2], expected.per_seed)
    # The other series lacks nothing, and is over the same two seeds all the same.
    found_ratio = ratio(whole, theirs, drawn)
    expected_ratio = ratio(without, with_seeds(theirs, 0.0, 2), smaller)
    assert found_ratio is not None
    assert expected_ratio is not None
    assert (found_ratio.seeds, found_ratio.value) == (2, pytest.approx(expected_ratio.value))
    assert found_ratio.over_seeds == pytest.approx(expected_ratio.over_seeds)


def test_the_estimate_of_the_variance_is_right_on_average() -> None:
    generator = np.random.default_rng(3)
    drawn = resampling(("items",) * 60, 3, draws=200)
    corrected, observed = [], []
    for _ in range(150):
        arms = _series(generator, 0.05, "a")
        found = sensitivity(arms, drawn)
        assert found is not None
        corrected.append(found.variance)
        observed.append(found.observed)
    assert np.mean(corrected) == pytest.approx(0.0025, rel=0.12)
    assert np.mean(observed) > np.mean(corrected)


# ---- Invariants ----------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.floats(-5, 5), st.floats(0.1, 10))
def test_sensitivity_knows_no_origin_and_scales_as_a_square(
    seed: int, shift: float, scale: float
) -> None:
    generator = np.random.default_rng(seed)
    drawn = resampling(("items",) * 6, 2, draws=40)
    values = generator.normal(size=(4, 2, 6))

    def of(values: np.ndarray) -> Sensitivity:
        arms = [arm(one, beta) for one, beta in zip(values, BETAS, strict=True)]
        found = sensitivity(arms, drawn)
        assert found is not None
        return found

    before, after = of(values), of(shift + scale * values)
    for name in ("observed", "variance", "interval"):
        expected = scale**2 * np.array(getattr(before, name))
        np.testing.assert_allclose(getattr(after, name), expected, rtol=1e-6, atol=1e-8)


@given(st.integers(0, 10_000))
def test_a_difference_turned_round_has_the_other_sign(seed: int) -> None:
    generator = np.random.default_rng(seed)
    one, other = (arm(generator.normal(size=(3, 8))) for _ in range(2))
    drawn = resampling(("items",) * 8, 3, draws=60)
    forth, back = difference(one, other, drawn), difference(other, one, drawn)
    assert forth is not None
    assert back is not None
    np.testing.assert_allclose(forth.negative.span, back.span)
    assert forth.mean == pytest.approx(-back.mean)


@given(st.integers(0, 10_000), st.integers(2, 40))
def test_halves_are_halves_of_every_stratum(seed: int, items: int) -> None:
    strata = tuple("ab"[number % 2] for number in range(items))
    second = halves(strata, seed)
    for name in set(strata):
        members = second[np.array([one == name for one in strata])]
        assert abs(int(members.sum()) - int((~members).sum())) <= 1
    np.testing.assert_array_equal(second, halves(strata, seed))


# ---- Choosing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("higher", [True, False])
def test_what_is_chosen_on_one_half_is_scored_on_the_other(higher: bool) -> None:
    """Twelve arms that are all alike: the best mean flatters itself, the honest score does not."""
    generator = np.random.default_rng(4)
    score = score_of(40, higher=higher)
    flattered, honest = [], []
    for _ in range(300):
        arms = [arm(generator.normal(size=(3, 40)), beta) for beta in range(12)]
        means = [one.mean for one in arms]
        flattered.append(max(means) if higher else -min(means))
        found = best_of(arms, score, Point("dpo", "best", None))
        assert found is not None
        honest.append(found.mean if higher else -found.mean)
    assert np.mean(flattered) > 0.1
    assert abs(np.mean(honest)) < 0.03


def test_the_halves_may_choose_differently_and_each_is_told() -> None:
    score = score_of(6)
    good_on_first = np.where(score.second, 0.0, 1.0)[None]
    good_on_second = np.where(score.second, 1.0, 0.0)[None]
    arms = [arm(good_on_first, 0.1), arm(good_on_second, 0.2)]
    found = best_of(arms, score, Point("dpo", "best", None))
    assert found is not None
    assert [point.beta for point in found.chosen] == [0.1, 0.2]
    assert found.mean == 0.0


def test_one_item_cannot_be_chosen_and_scored_apart() -> None:
    assert best_of([arm(np.ones((2, 1)))], score_of(1), Point("dpo", "best", None)) is None
