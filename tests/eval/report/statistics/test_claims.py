"""The four claims on grids whose truth is known, and on grids that lack something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_grid import Accuracy, experiment_cells, steady, write_grid

from eval.report.analysis import Analysis, analyse
from eval.report.statistics.claims import NO_SPREAD, ONE_SEED
from tddpo_jax.config.cells import cell_name
from tddpo_jax.config.schema import Config


def report_on(folder: Path, cells: list[Config], accuracy: Accuracy = steady, **more) -> Analysis:
    return analyse(write_grid(folder / "grid", cells, accuracy, pairs=400, **more))


def verdicts(analysis: Analysis) -> dict[int, str]:
    return {claim.number: claim.verdict for claim in analysis.claims}


def test_a_world_where_all_is_as_expected(tmp_path: Path) -> None:
    """TD-DPO gets 0.80 at every beta, DPO at its best too; elsewhere the others get less."""

    def expected(config: Config) -> float:
        if config.loss.name == "td_dpo":
            return 0.80
        worst = 0.62 if config.loss.name == "dpo" else 0.60
        best = 0.80 if config.loss.name == "dpo" else 0.70
        return {0.01: worst, 0.05: best, 0.5: 0.70, 2.5: worst}[config.loss.beta]

    found = report_on(tmp_path, experiment_cells(), expected, spread=0.003, shared=0.9995)
    assert verdicts(found) == {1: "supported", 2: "supported", 3: "supported", 4: "supported"}
    # 19 other settings, 1 + 2 + 2 comparisons of arms, two ratios, each with its means.
    assert found.compared == 19 + 5 + 4


def test_a_world_where_nothing_is_as_expected(tmp_path: Path) -> None:
    """TD-DPO depends on beta, DPO and DiscoPOP do not, and it diverges at 2.5."""

    def opposite(config: Config) -> float:
        if config.loss.name == "td_dpo":
            return {0.01: 0.6, 0.05: 0.7, 0.5: 0.65, 2.5: 0.6}[config.loss.beta]
        return 0.79

    name = "td_dpo-beta2.5-tau2.0-seed1"
    more = {"spread": 0.001, "shared": 0.999, "diverged": {name: 12}}
    found = report_on(tmp_path, experiment_cells(), opposite, **more)
    assert set(verdicts(found).values()) == {"not supported"}
    assert found.claims[1].parts[0].numbers == "1 of 3 seeds diverged: seed 1 at step 12"
    assert any(name in note for note in found.notes)
    assert any(note.startswith("Without the diverged runs") for note in found.notes)


def test_a_claim_is_shown_where_all_its_settings_have_a_score(tmp_path: Path) -> None:
    """The fourth needs DiscoPOP as well, and the first DPO at its best beta and at beta 0.05."""
    cells = experiment_cells(loss=["td_dpo", "dpo"], beta=[0.01, 0.05], tau=[0.5])
    (first,) = report_on(tmp_path / "whole", cells).claims
    assert [part.numbers.count("(dpo, beta 0.05)") for part in first.parts] == [0, 1]
    gone = [cell_name(cell) for cell in cells if cell.loss.name == "dpo" and cell.loss.beta == 0.05]
    assert report_on(tmp_path / "gone", cells, missing=gone).claims == []
    assert report_on(tmp_path / "other", experiment_cells(loss=["dpo", "ipo"])).claims == []


def test_unfinished_cells_do_not_prove_convergence(tmp_path: Path) -> None:
    cells = experiment_cells(loss=["td_dpo", "discopop"], beta=[0.05, 2.5], tau=[2.0])
    found = report_on(tmp_path, cells, unfinished=["td_dpo-beta2.5-tau2.0-seed1"])
    part = found.claims[0].parts[0]
    assert part.verdict == "undecided"
    assert part.numbers == "0 of 2 seeds diverged, 1 not finished yet"


@pytest.mark.parametrize("axes", [{"seed": [0]}, {"beta": [0.05]}, {"tau": [1.0]}])
def test_small_grids_are_reported_on(tmp_path: Path, axes: dict) -> None:
    found = report_on(tmp_path, experiment_cells(**axes))
    if "seed" in axes:
        compared = [part for claim in found.claims for part in claim.parts]
        undecided = [part for part in compared if part.rule != "converges"]
        assert {part.verdict for part in undecided} == {"underpowered"}
        assert all(part.numbers.endswith(ONE_SEED) for part in undecided)
        assert any("one seed" in note for note in found.notes)


@pytest.mark.parametrize("higher", [True, False])
def test_an_advantage_has_the_sign_of_better(tmp_path: Path, higher: bool) -> None:
    """TD-DPO's score is lower than DPO's by 0.31 to 0.35, which is worse or better."""
    cells = experiment_cells(loss=["td_dpo", "dpo"], beta=[0.01, 0.05], tau=[0.5])
    folder = write_grid(tmp_path / "grid", cells, pairs=20)
    scores = {
        cell_name(c): [0.2 + 0.01 * c.seed + 0.02 * item for item in range(3)]
        if c.loss.name == "td_dpo"
        else [0.54 - 0.003 * item * c.seed for item in range(3)]
        for c in cells
    }
    about = {"name": "mine", "higher_is_better": higher, "matches": 0.1, "beats": 0.2}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({**about, "cells": scores}))
    sign = -1 if higher else 1
    for part in analyse(folder, [file]).claims[0].parts:
        assert part.advantage is not None
        low, high = part.advantage.interval or (0, 0)
        assert low <= part.advantage.mean <= high
        assert min(sign * low, sign * high) > 0.2
        assert part.verdict == ("not supported" if higher else "supported")


def test_items_and_seeds_that_are_all_alike_decide_nothing(tmp_path: Path) -> None:
    cells = experiment_cells(loss=["td_dpo", "dpo"], beta=[0.01, 0.05], tau=[0.5])
    folder = write_grid(tmp_path / "grid", cells, pairs=20)
    scores = {cell_name(cell): [cell.loss.beta * 0.1 + 0.2] * 3 for cell in cells}
    about = {"name": "errors", "matches": 0.1, "beats": 0.2}
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({**about, "cells": scores}))
    part = analyse(folder, [file]).claims[0].parts[0]
    assert (part.verdict, part.numbers.endswith(NO_SPREAD)) == ("undecided", True)
