"""The report's statistics, held against a mixed model and against worlds whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interval_coverage import WORLDS, coverage, estimates, normal_coverage, world

from eval.experiment import Point
from eval.report.read.scores import Score, halves
from eval.report.statistics.across_beta import across_beta, side_by_side
from eval.report.statistics.arms import Arm, best_of
from eval.report.statistics.comparisons import decide, lean
from eval.report.statistics.estimates import Estimate, difference, estimate, spread_of_mean
from eval.uncertainty import holm

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
        choosing=np.zeros((0, items)),
        scoring=np.zeros((0, items)),
    )


# ---- The mean ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
def test_coverage_of_the_interval(name: str) -> None:
    """The truth is 0; 800 experiments, standard error of coverage 0.8 %."""
    for seeds in (2, 3, 5):
        found = estimates(name, seeds, 800)
        assert coverage(found) > (0.90 if seeds == 2 else 0.925)
        if name == "only seeds" and seeds < 5:
            assert normal_coverage(found) < 0.85


def test_the_standard_error_is_that_of_a_mixed_model() -> None:
    """statsmodels' REML, with crossed random effects of seeds and items in one group."""
    pandas = pytest.importorskip("pandas")
    models = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    generator = np.random.default_rng(2)
    for _ in range(3):
        values = 0.4 * generator.normal(size=(5, 1)) + world(generator, "both", 5, 12)
        seed, item = np.indices(values.shape).reshape(2, -1)
        table = pandas.DataFrame({"y": values.ravel(), "seed": seed, "item": item, "all": 1})
        parts = {"seed": "0 + C(seed)", "item": "0 + C(item)"}
        model = models.MixedLM.from_formula("y ~ 1", table, groups="all", vc_formula=parts)
        fitted = model.fit(reml=True)
        found = estimate(values, ("i",) * 12)
        assert found is not None
        assert found.mean == pytest.approx(fitted.params["Intercept"], abs=1e-6)
        assert found.error == pytest.approx(fitted.bse["Intercept"], rel=0.01)


def test_levels_of_strata_add_no_spread() -> None:
    values = np.random.default_rng(3).normal(size=(3, 12))
    strata = ("a", "b", "c") * 4
    levels = np.array([5.0, -2.0, 9.0] * 4)
    assert spread_of_mean((values + levels)[None], strata) == pytest.approx(
        spread_of_mean(values[None], strata)
    )


def test_a_difference_is_over_the_seeds_that_both_have() -> None:
    ours = np.array([[2.0, 2.0], [4.0, 4.0], [np.nan, np.nan]])
    theirs = np.array([[np.nan, np.nan], [1.0, 1.0], [9.0, 9.0]])
    found = difference(arm(ours), arm(theirs), ("i", "i"))
    assert found is not None
    assert (found.mean, found.seeds) == (3.0, 1)
    assert difference(arm(ours[:1]), arm(theirs[:1]), ("i", "i")) is None
    alone = estimate(np.ones((1, 1)), ("i",))
    assert alone is not None
    assert alone.interval is None


# ---- Comparisons ---------------------------------------------------------------------------------


def test_rules_hold_an_advantage_against_a_margin() -> None:
    """Below, across and above each bound of 0.1, at 2 standard errors of 0.05 with many seeds."""
    lower, higher = "not supported", "supported"
    expected = {
        "matches": [lower, "underpowered", higher, higher, higher],
        "within": [lower, "underpowered", higher, "underpowered", lower],
        "beats": [lower, lower, lower, "underpowered", higher],
    }
    for rule, verdicts in expected.items():
        found = []
        for mean in (-0.35, -0.1, 0.0, 0.1, 0.35):
            advantage = Estimate(mean, 0.049, math.inf, 3)
            leaning, chance = lean(rule, advantage, 0.1)  # type: ignore[arg-type]
            found.append(decide(leaning, chance, advantage, 0.1))
        assert found == verdicts, rule
    advantage = Estimate(0.1, 0.01, math.inf, 3)
    leaning, chance = lean("within", advantage, 0.1)
    assert decide(leaning, chance, advantage, 0.1) == "undecided"


def test_one_family_in_twenty_holds_an_error() -> None:
    generator = np.random.default_rng(4)
    families = generator.uniform(size=(4000, 8)).tolist()
    lowest = [min(holm(dict(enumerate(family))).values()) for family in families]
    assert np.mean(np.array(lowest) <= 0.05) == pytest.approx(0.05, abs=0.012)


# ---- Across beta ---------------------------------------------------------------------------------


def _series(
    generator: np.random.Generator, spread: float, loss: str, *, of_seeds: float, seeds: int = 3
) -> list[Arm]:
    """Four betas whose true means have the standard deviation `spread`, and seeds `of_seeds`."""
    shape = np.array([-1.2, 0.3, 0.9, 0.0])
    means = spread * (shape - shape.mean()) / shape.std(ddof=1)
    easy = 0.3 * generator.normal(size=60)
    return [
        arm(
            mean
            + easy
            + of_seeds * generator.normal(size=(seeds, 1))
            + 0.12 * generator.normal(size=60)
            + 0.12 * generator.normal(size=(seeds, 60)),
            beta,
            loss,
        )
        for beta, mean in zip(BETAS, means, strict=True)
    ]


@pytest.mark.parametrize("of_seeds", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.06, 0.08])
def test_coverage_of_the_lead_in_variance(spread: float, of_seeds: float) -> None:
    """The baseline's spread is 0.08; 300 experiments, standard error of coverage 1.3 %."""
    generator = np.random.default_rng(2)
    truth, strata, covered = 0.75 * 0.08**2 - spread**2, ("i",) * 60, 0
    for _ in range(300):
        sides = [_series(generator, one, "a", of_seeds=of_seeds) for one in (spread, 0.08)]
        found = side_by_side(*sides, strata, True)
        assert found is not None
        low, high = found.steadiness(0.75).interval or (math.nan, math.nan)
        covered += low <= truth <= high
    assert covered / 300 > 0.92


def test_the_variance_is_right_on_average_and_stands_beside_the_mean() -> None:
    generator = np.random.default_rng(3)
    variances = []
    for _ in range(200):
        found = across_beta(_series(generator, 0.05, "a", of_seeds=0.01), ("i",) * 60, True)
        assert found is not None
        variances.append(found.variance.mean)
        assert found.worst.point.beta == 0.01
        assert abs(found.mean.mean) < 0.2
    assert np.mean(variances) == pytest.approx(0.0025, rel=0.1)


def test_series_side_by_side_are_of_the_betas_and_seeds_that_both_have() -> None:
    """The first lacks the last beta, and the second lacks seed 2 at one of the others."""
    generator = np.random.default_rng(5)
    over = _series(generator, 0.06, "a", of_seeds=0.05)[:3]
    under = _series(generator, 0.03, "b", of_seeds=0.05)
    under[1].scoring[2] = np.nan
    found = side_by_side(over, under, ("i",) * 60, True)
    assert found is not None
    assert found.over.betas == found.under.betas == BETAS[:3]
    assert (found.over.mean.seeds, found.under.mean.seeds, found.means.seeds) == (2, 2, 2)
    assert found.means.mean == pytest.approx(found.over.mean.mean - found.under.mean.mean)
    assert side_by_side(over, under[2:], ("i",) * 60, True) is None


def test_a_seed_that_an_arm_lacks_counts_in_none() -> None:
    """Seed 2 lies 0.4 above the others and has no first beta: what is left is as without it."""
    generator = np.random.default_rng(4)
    arms = _series(generator, 0.06, "a", of_seeds=0.01)
    lifted = [arm(one.scoring + 0.4 * np.array([[0], [0], [1]]), one.point.beta) for one in arms]
    lifted[0].scoring[2] = np.nan
    fewer = [arm(one.scoring[:2], one.point.beta) for one in arms]
    found, expected = (across_beta(one, ("i",) * 60, True) for one in (lifted, fewer))
    assert found is not None
    assert expected is not None
    assert found.variance == pytest.approx(expected.variance)
    assert found.mean == pytest.approx(expected.mean)


# ---- Choosing ------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(2, 40))
def test_halves_are_halves_of_every_stratum(seed: int, items: int) -> None:
    strata = tuple("ab"[number % 2] for number in range(items))
    second = halves(strata, seed)
    for name in set(strata):
        members = second[np.array([one == name for one in strata])]
        assert abs(int(members.sum()) - int((~members).sum())) <= 1
    np.testing.assert_array_equal(second, halves(strata, seed))


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
