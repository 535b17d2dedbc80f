"""Reading run directories: states, what belongs together, damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic_grid import NAMES, SMALL, write_grid, write_small_grid

from eval.experiment import Point, read_experiment


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_grid(tmp_path_factory.mktemp("cells") / "grid")


def test_states_points_and_order(grid: Path) -> None:
    experiment = read_experiment(grid)
    assert [cell.name for cell in experiment.cells] == NAMES
    states = ["diverged", "diverged", "unfinished", "missing", *["finished"] * 4]
    assert [cell.state for cell in experiment.cells] == states
    assert experiment.points == (
        Point("td_dpo", 0.01, 0.5),
        Point("td_dpo", 2.5, 0.5),
        Point("dpo", 0.01, None),
        Point("dpo", 2.5, None),
    )
    assert experiment.cells[0].steps == (0, 5, 10)
    assert experiment.cells[2].steps == ()
    assert experiment.cells[4].logps.shape == (5, 30, 2)


def test_a_single_run_and_a_folder_of_runs(grid: Path, tmp_path: Path) -> None:
    run = read_experiment(grid / NAMES[5])
    assert (run.is_grid, [cell.name for cell in run.cells]) == (False, [NAMES[5]])
    for name in NAMES[4:6]:
        (tmp_path / name).symlink_to(grid / name)
    found = read_experiment(tmp_path)
    assert (found.is_grid, [cell.name for cell in found.cells]) == (True, NAMES[4:6])


def test_a_validation_that_is_not_finite_or_was_forgotten_is_left_out(tmp_path: Path) -> None:
    """A resumed run rewinds its metrics; log-probs of a validation beyond them are stale."""
    write_grid(tmp_path / "g", SMALL[-1:], pairs=10)
    run = tmp_path / "g" / NAMES[-1]
    values = np.load(run / "evaluations" / "000010.npy")
    values[3, 1] = -np.inf
    np.save(run / "evaluations" / "000010.npy", values)
    np.save(run / "evaluations" / "000017.npy", values)
    assert read_experiment(run).cells[0].steps == (0, 5, 15, 20)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "grid.json",
            '{"cells": ["nonsense"], "settings": {}}',
            "'nonsense' is not the name of a cell",
        ),
        ("grid.json", "{", "not JSON"),
        (f"{NAMES[4]}/config.yaml", "loss: {beta: -1}", f"{NAMES[4]}/config.yaml: loss.beta"),
        ("grid.json", '{"settings": {}}', "cells: Field required"),
        (
            f"{NAMES[4]}/config.yaml",
            "loss: {beta: 7}",
            f"{NAMES[4]}/config.yaml: belongs to td_dpo-beta7",
        ),
        (f"{NAMES[4]}/summary.json", "{", "not JSON"),
        ("grid.json", '{"cells": [], "settings": {}}', "cells: List should have at least 1 item"),
        (f"{NAMES[4]}/summary.json", "[]", "must hold a JSON object"),
        (f"{NAMES[4]}/summary.json", '{"state": "over", "steps": 3}', "state: Input should be"),
        (f"{NAMES[4]}/summary.json", "{}", "state: Field required"),
        (f"{NAMES[4]}/evaluations/lengths.npy", "PK", "cannot be read"),
        (f"{NAMES[4]}/metrics.jsonl", '{"step": 1.5, "loss": 1}', "a step and named numbers"),
        (f"{NAMES[4]}/run.json", '{"model": {}}', r"model\.path: Field required"),
        (f"{NAMES[4]}/divergence.json", "{}", "step: Field required"),
        (f"{NAMES[4]}/metrics.jsonl", "{\n{}\n", "not JSON"),
        (f"{NAMES[4]}/metrics.jsonl", '{"step": 1, "loss": "low"}', "a step and named numbers"),
        (f"{NAMES[4]}/evaluations/000005.npy", "", "cannot be read"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    write_grid(tmp_path / "g", SMALL[4:6], pairs=10)
    (tmp_path / "g" / name).write_text(text)
    with pytest.raises(ValueError, match=message) as told:
        read_experiment(tmp_path / "g")
    assert name in str(told.value)


def test_log_probs_of_other_pairs_are_named(tmp_path: Path) -> None:
    write_grid(tmp_path / "g", SMALL[4:6], pairs=10)
    file = tmp_path / "g" / NAMES[4] / "evaluations" / "000005.npy"
    each = "one number for each response"
    damages = [(np.zeros((9, 2)), "does not have the rows"), (np.zeros(10), each)]
    damages += [(np.full((10, 2), "a"), each)]
    for values, message in damages:
        np.save(file, values)
        with pytest.raises(ValueError, match=rf"000005\.npy: .*{message}"):
            read_experiment(tmp_path / "g")


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a grid or run directory"):
        read_experiment(tmp_path)


def test_cells_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_grid(tmp_path / "a", SMALL[4:5], pairs=10)
    write_grid(tmp_path / "b", SMALL[5:6], pairs=11)
    (tmp_path / "both").mkdir()
    for file in (tmp_path / "a" / NAMES[4], tmp_path / "b" / NAMES[5]):
        (tmp_path / "both" / file.name).symlink_to(file)
    with pytest.raises(ValueError, match="validation pairs or reference are not those of"):
        read_experiment(tmp_path / "both")
    (tmp_path / "both" / NAMES[5]).unlink()
    (tmp_path / "both" / "copy").symlink_to(tmp_path / "a" / NAMES[4])
    with pytest.raises(ValueError, match=r"are both dpo, beta 0\.01"):
        read_experiment(tmp_path / "both")
