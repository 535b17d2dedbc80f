"""Why settings score as they do: tables held against loops over the stored log-probs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from synthetic_grid import experiment_cells, write_grid

from eval.experiment import read_experiment
from eval.report.pages.diagnosis import diagnosis_tables, length_bins
from tddpo_jax.config.reading import resolve

CELLS = experiment_cells(loss=["td_dpo", "dpo"], beta=[0.5], tau=[2.0], seed=[0, 1])


def test_bins_are_cut_at_equal_lengths_and_at_the_median_of_the_others() -> None:
    """The median of 1, 1, 2, 5 and 7 is 2."""
    longer = np.array([5, -1, 0, -7, 0, 1, 2])
    assert [longer[one].tolist() for one in length_bins(longer)] == [
        [-7],
        [-1],
        [0, 0],
        [1, 2],
        [5],
    ]
    assert [one.tolist() for one in length_bins(np.array([0, 0]))] == [[True, True]]


def test_distances_and_lengths_against_a_loop(tmp_path: Path) -> None:
    """Rewards are s for td_dpo, at rest within 1 / (2 * 0.5) = 1 nat, and s / 2 for dpo."""
    experiment = read_experiment(write_grid(tmp_path / "g", CELLS, lambda _: 0.7, pairs=31))
    distances, by_length = diagnosis_tables(experiment)
    first = experiment.cells[0]
    for row, name in zip(distances.rows, ("td_dpo", "dpo"), strict=True):
        ratios = [
            pair
            for cell in experiment.cells
            if cell.point.loss == name
            for pair in cell.logps[-1].astype(float) - cell.reference
        ]
        s_w, s_l = np.mean(ratios, axis=0)
        scale = 1.0 if name == "td_dpo" else 0.5
        expected = [s_w, s_l, np.sqrt(np.mean(np.square(ratios))), scale * s_w, scale * s_l]
        found = [float(str(entry).replace("−", "-")) for entry in row[1:6]]
        np.testing.assert_allclose(found, expected, atol=0.0051)
        within = np.mean([max(np.abs(pair)) <= 1 for pair in ratios])
        assert row[6:8] == (["1", f"{within:.3f}"] if name == "td_dpo" else ["–", "–"])
        weights = 1 / (1 + np.exp(np.diff(-first.reference, axis=1)[:, 0] / 2.0))
        shares = [f"{np.mean(weights < 0.05):.3f}", f"{np.mean(weights > 0.95):.3f}"]
        assert row[8:] == (shares if name == "td_dpo" else ["–", "–"])
    longer = first.lengths[:, 0] - first.lengths[:, 1]
    before = first.reference[:, 0] - first.reference[:, 1]
    last = longer > np.median(np.abs(longer[longer != 0]))
    assert by_length.head[-1].endswith(f"to +{longer.max():.0f} tokens ({last.sum()} pairs)")
    assert float(str(by_length.rows[0][-1]).replace("−", "-")) == np.round(before[last].mean(), 2)
    accuracy = np.mean(
        [
            pair[0] > pair[1]
            for cell in experiment.cells[:2]
            for pair in (cell.logps[-1] - cell.reference)[last]
        ]
    )
    assert str(by_length.rows[1][-1]).startswith(f"{accuracy:.3f} (")


def test_what_has_no_bound_or_no_lengths_says_so(tmp_path: Path) -> None:
    cells = [resolve({"loss": {"kl": "full"}})]
    folder = write_grid(tmp_path / "g", cells, lambda _: 0.7, pairs=9)
    (distances, _) = diagnosis_tables(read_experiment(folder))
    assert distances.rows[0][6:8] == ["–", "–"]
    (lengths,) = folder.glob("*/evaluations/lengths.npy")
    lengths.unlink()
    assert len(diagnosis_tables(read_experiment(folder))) == 1
