"""Warnings about a policy that is worse than before, or far from its reference."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_runs

from tddpo_jax.experiments.grid import run_experiment
from tddpo_jax.system.console import Screen
from tddpo_jax.training.result_warnings import largest_kl, result_warnings

FIRST = {"eval_loss": 0.7, "eval_kl": 0.0}
# Half the sum of squares of a pair is 0.5 * (9 + 16) = 12.5 and 0.5 * (1 + 0) = 0.5.
LENGTHS = np.array([[3, 4], [1, 0]], np.float32)


def test_the_bound_of_the_kl_is_that_of_one_nat_per_token():
    assert largest_kl(LENGTHS) == (12.5 + 0.5) / 2


@pytest.mark.parametrize(
    ("loss", "kl", "said"),
    [
        (0.6, 6.5, []),
        (0.7, 0.0, []),
        (0.71, 6.5, ["higher eval_loss than the policy before training (0.71 > 0.7)"]),
        (0.6, 6.6, ["eval_kl of 6.6; above 6.5 (log-ratios of 1 nat per token)"]),
        (0.8, 9.0, ["0.8 > 0.7", "eval_kl of 9"]),
    ],
)
def test_a_line_for_each_thing_that_is_wrong(loss, kl, said):
    lines = result_warnings(FIRST, {"eval_loss": loss, "eval_kl": kl}, LENGTHS)
    assert len(lines) == len(said)
    assert all(text in line for text, line in zip(said, lines, strict=True))


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(("rate", "count"), [(1e-3, 0), (3.0, 2)])
def test_a_run_says_at_its_end_what_its_summary_keeps(rate, count, inputs, tmp_path, capsys):
    changes = {"train.learning_rate": rate, "train.max_steps": 2, "train.eval_every": None}
    (summary,) = run_experiment(tiny_runs.settings(inputs, tmp_path / "run", changes), Screen())
    assert len(summary["warnings"]) == count
    printed = capsys.readouterr().out.replace("\n", " ")
    assert printed.count("warning: run: best/ has") == count
