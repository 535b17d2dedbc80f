"""How sure the first screen is where scores show no spread, or only a wide one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_grid import experiment_cells, write_grid

from eval.report.analysis import analyse
from eval.report.answer import answer_of
from tddpo_jax.config.cells import cell_name

CELLS = experiment_cells(loss=["dpo"], beta=[0.05, 2.5], seed=[0, 1, 2])
SINGLE = "single comparison, without the correction, would find a true lead of"


def brought(folder: Path, scores: dict[str, object]) -> str:
    """A file of these numbers by run, as `--score` takes it."""
    (folder / "given.json").write_text(json.dumps({n: {"m": one} for n, one in scores.items()}))
    return f"{folder / 'given.json'}:m"


def test_one_number_of_one_run_proves_nothing(tmp_path: Path) -> None:
    run = write_grid(tmp_path / "g", CELLS[:1], pairs=20) / cell_name(CELLS[0])
    answer = answer_of(analyse(run, [brought(tmp_path, {run.name: 0.9, "base": 0.2})]))
    assert (answer.question, answer.lead) == ("Did it learn?", "Not surely")
    assert not any("95 %" in line for line in answer.lines)


@pytest.mark.parametrize("value", [0.5, 0.1 * 2.5 + 0.2])
def test_seeds_that_are_all_alike_are_not_told_apart(tmp_path: Path, value: float) -> None:
    """The error is 0, or what rounding leaves of it."""
    folder = write_grid(tmp_path / "g", CELLS, pairs=20)
    scores = {cell_name(c): [value if c.loss.beta > 1 else 0.1 / 3] * 3 for c in CELLS}
    found = analyse(folder, [brought(tmp_path, scores)])
    told = " ".join(answer_of(found).lines)
    assert np.isnan([rival.chance for rival in found.rivals]).all()
    assert "chance may explain its lead" in told
    assert "Underpowered" not in told
    assert "The lead over DPO, beta 0.05 is 0." in told
    assert "surely" not in told


@pytest.mark.parametrize(("matches", "is_weak"), [(0.01, True), (5.0, False)])
def test_underpowered_is_only_what_would_miss_the_margin(
    tmp_path: Path, matches: float, is_weak: bool
) -> None:
    folder = write_grid(tmp_path / "g", CELLS, pairs=20)
    scores = {
        cell_name(c): [c.loss.beta / 100 + 0.1 * c.seed**2 * (c.loss.beta > 1)] for c in CELLS
    }
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"name": "m", "matches": matches, "beats": 9, "cells": scores}))
    sure = answer_of(analyse(folder, [file])).sure
    (line,) = [line for line in sure if SINGLE in line]
    assert line.startswith("Underpowered: a" if is_weak else "A single")
