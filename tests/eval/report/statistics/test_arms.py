"""What is compared in a grid with other axes: settings apart, and the best value of an axis."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_grid import write_grid

from eval.experiment import Point, read_experiment
from eval.report.analysis import analyse
from eval.report.answer import answer_of
from eval.report.pages.page import write_report
from eval.report.statistics.across_beta import series_of
from tddpo_jax.config.cells import expand
from tddpo_jax.config.reading import resolve
from tddpo_jax.config.schema import Config

GOOD, BAD = 1e-4, 1e-6


def accuracy(config: Config) -> float:
    return 0.8 if config.train.learning_rate == GOOD else 0.6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A grid of two losses, two betas, two learning rates and two seeds; a cell has not begun."""
    settings = {
        "loss": {"name": ["td_dpo", "dpo"], "beta": [0.05, 0.5]},
        "train": {"learning_rate": [BAD, GOOD]},
        "seed": [0, 1],
    }
    cells = [resolve(cell) for cell in expand(settings)]
    missing = [f"dpo-beta0.5-learning_rate{BAD}-seed1"]
    return write_grid(tmp_path_factory.mktemp("grids") / "grid", cells, accuracy, missing=missing)


def rate(value: float) -> tuple[tuple[str, float], ...]:
    return (("learning_rate", value),)


def test_cells_that_differ_in_the_rate_are_settings_of_their_own(folder):
    experiment = read_experiment(folder)
    assert len(experiment.points) == 8
    assert [cell.seed for cell in experiment.cells if cell.state == "missing"] == [1]
    for point in experiment.points:
        assert sum(cell.point == point for cell in experiment.cells) == 2
    assert Point("dpo", 0.5, None, rate(BAD)).text == "dpo, beta 0.5, learning rate 1e-06"


def test_a_loss_is_compared_at_the_rate_that_the_other_half_chose(folder):
    study = analyse(folder).studies["eval_rewards/accuracies"]
    for loss, tau in (("td_dpo", 1.0), ("dpo", None)):
        good, bad = (study.arms[Point(loss, 0.05, tau, rate(value))] for value in (GOOD, BAD))
        assert good.mean > 0.7 > bad.mean
        best = study.arms[Point(loss, 0.05, tau)]
        assert best.chosen == (good.point, good.point)
        np.testing.assert_array_equal(best.scoring, good.scoring)
    # One arm for each beta: a series never has two rates side by side.
    for arms in series_of(study.arms).values():
        assert [arm.point.beta for arm in arms] == [0.05, 0.5]


def test_the_report_names_the_rates(folder):
    found = analyse(folder)
    write_report(found, answer_of(found), "the command")
    text = (folder / "report.md").read_text()
    assert "learning rate 0.0001" in text
    assert "answer_learning_rate_0.0001.svg" in text


def test_the_headline_depends_on_the_rate_where_the_leader_does(tmp_path):
    """DPO leads at the lower rate, TD-DPO at the higher one."""

    def turns(config: Config) -> float:
        is_low = config.train.learning_rate == BAD
        return 0.8 if (config.loss.name == "dpo") == is_low else 0.6

    settings = {
        "loss": {"name": ["td_dpo", "dpo"]},
        "train": {"learning_rate": [BAD, GOOD]},
        "seed": [0, 1],
    }
    cells = [resolve(cell) for cell in expand(settings)]
    more = answer_of(analyse(write_grid(tmp_path / "g", cells, turns))).more
    told = "The answer depends on the learning rate. Leading are: "
    assert any(line.startswith(told) for line in more)
    assert any(
        "at learning rate 1e-06, DPO; at learning rate 0.0001, TD-DPO" in one for one in more
    )
