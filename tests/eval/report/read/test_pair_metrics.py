"""Metrics of pairs from stored log-probs, and the checkpoint that each half chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from synthetic_grid import experiment_cells, write_grid

from eval.experiment import read_experiment
from eval.report.read.pair_metrics import chosen_checkpoints, pair_values
from eval.report.read.scores import halves
from tddpo_jax.config.reading import resolve

CELLS = experiment_cells(loss=["dpo"], beta=[2.5], tau=[0.5], seed=[1])


def test_metrics_of_pairs_by_hand(tmp_path: Path) -> None:
    """DPO's loss is softplus(-beta (s_w - s_l)); at step 0 every pair is a tie."""
    cell = read_experiment(write_grid(tmp_path / "g", CELLS, pairs=30)).cells[-1]
    values = pair_values(cell)
    s_w, s_l = np.moveaxis(cell.logps.astype(np.float64) - cell.reference, -1, 0)
    np.testing.assert_allclose(values["loss"], np.log1p(np.exp(-2.5 * (s_w - s_l))), rtol=1e-4)
    np.testing.assert_allclose(values["kl"], 0.5 * (s_w**2 + s_l**2), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(values["log_ratio_margin"], s_w - s_l, atol=1e-5)
    np.testing.assert_array_equal(values["rewards/accuracies"][0], 0.5)
    np.testing.assert_array_equal(values["rewards/accuracies"][1:], (s_w > s_l)[1:])
    logged = [record["eval_rewards/accuracies"] for record in cell.validations]
    np.testing.assert_allclose(values["rewards/accuracies"].mean(axis=1), logged)


def test_each_half_chooses_its_own_checkpoint(tmp_path: Path) -> None:
    """The first half likes step 5 best, the second step 10; a diverged run has no choice."""
    write_grid(tmp_path / "g", CELLS, pairs=10)
    cell = read_experiment(tmp_path / "g").cells[0]
    second = halves(("pairs",) * 10)
    values = {"rewards/accuracies": np.full((5, 10), 0.5)}
    values["rewards/accuracies"][1, ~second] = 1
    values["rewards/accuracies"][2, second] = 1
    values["rewards/accuracies"][0] = 1  # step 0 is never chosen
    assert chosen_checkpoints(cell, values, second) == (1, 2)


def test_a_loss_that_needs_lengths_is_known_where_they_were_kept(tmp_path: Path) -> None:
    """IPO: (s_w / length_w - s_l / length_l - 1 / (2 beta))², with TRL's means over tokens."""
    write_grid(tmp_path / "g", [resolve({"loss": {"name": "ipo", "beta": 0.1}})], lambda _: 0.7)
    cell = read_experiment(tmp_path / "g").cells[0]
    s_w, s_l = np.moveaxis((cell.logps.astype(np.float64) - cell.reference) / cell.lengths, -1, 0)
    np.testing.assert_allclose(pair_values(cell)["loss"], (s_w - s_l - 5) ** 2, rtol=1e-4)
    (cell.folder / "evaluations" / "lengths.npy").unlink()
    assert np.isnan(pair_values(read_experiment(tmp_path / "g").cells[0])["loss"]).all()
