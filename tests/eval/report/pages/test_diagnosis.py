"""Why settings score as they do: tables held against loops over the stored log-probs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from synthetic_grid import experiment_cells, write_grid

from eval.experiment import read_experiment
from eval.report.pages.diagnosis import diagnosis_table
from tddpo_jax.config.reading import resolve

CELLS = experiment_cells(loss=["td_dpo", "dpo"], beta=[0.5], tau=[2.0], seed=[0, 1])


def test_distances_and_weights_against_a_loop(tmp_path: Path) -> None:
    """A pair is at rest within 1 / (2 * 0.5) = 1 nat; its weight is sigmoid(-margin / 2)."""
    experiment = read_experiment(write_grid(tmp_path / "g", CELLS, lambda _: 0.7, pairs=31))
    table = diagnosis_table(experiment)
    assert table is not None
    first = experiment.cells[0]
    longer = first.lengths[:, 0] > first.lengths[:, 1]
    for row, name in zip(table.rows, ("td_dpo", "dpo"), strict=True):
        own = [cell for cell in experiment.cells if cell.point.loss == name]
        ratios = [pair for cell in own for pair in cell.logps[-1].astype(float) - cell.reference]
        right = [
            s_w > s_l for cell in own for s_w, s_l in (cell.logps[-1] - cell.reference)[longer]
        ]
        expected = [*np.mean(ratios, axis=0), np.sqrt(np.mean(np.square(ratios))), np.mean(right)]
        found = [float(str(entry).replace("−", "-")) for entry in row[1:5]]
        np.testing.assert_allclose(found, expected, atol=0.0051)
        within = np.mean([max(np.abs(pair)) <= 1 for pair in ratios])
        weights = 1 / (1 + np.exp((first.reference[:, 0] - first.reference[:, 1]) / 2))
        shares = [within, np.mean(weights < 0.05), np.mean(weights > 0.95)]
        written = ["1", *(f"{share:.3f}" for share in shares)]
        assert row[5:] == (written if name == "td_dpo" else ["–"] * 4)
    # Reference log-probs of the synthetic grid are -2 per token.
    assert "a correlation of −1.00 with" in table.caption


def test_what_has_no_bound_or_no_lengths_says_so(tmp_path: Path) -> None:
    cells = [resolve({"loss": {"kl": "full"}})]
    folder = write_grid(tmp_path / "g", cells, lambda _: 0.7, pairs=9)
    table = diagnosis_table(read_experiment(folder))
    assert table is not None
    assert table.rows[0][5:7] == ["–", "–"]
    (lengths,) = folder.glob("*/evaluations/lengths.npy")
    lengths.unlink()
    table = diagnosis_table(read_experiment(folder))
    assert table is not None
    assert table.rows[0][4] == "–"
    assert "correlation" not in table.caption
