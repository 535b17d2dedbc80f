"""The verdict on grids whose truth is known, and on grids that lack something."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic_grid import Accuracy, experiment_cells, steady, write_grid

from eval.report.analysis import Analysis, analyse
from eval.report.statistics.verdicts import (
    LARGEST_RATIO,
    NO_SPREAD,
    RULES,
    Claim,
    judge,
    judge_ratio,
)
from tddpo_jax.config.cells import cell_name
from tddpo_jax.config.schema import Config

TAUS = [0.5, 1.0, 2.0]


def report_on(folder: Path, cells: list[Config], accuracy: Accuracy = steady, **more) -> Analysis:
    return analyse(write_grid(folder / "grid", cells, accuracy, pairs=400, **more))


def verdicts(analysis: Analysis) -> dict[int, str]:
    return {claim.number: claim.verdict for claim in analysis.tested[0].claims}


def test_rules_hold_an_interval_against_a_margin() -> None:
    """Below, across and above each bound."""
    expected = {
        "matches": ["not supported", "undecided", "supported", "supported", "supported"],
        "within": ["not supported", "undecided", "supported", "undecided", "not supported"],
        "beats": ["not supported", "not supported", "not supported", "undecided", "supported"],
    }
    intervals = [(-0.5, -0.2), (-0.2, 0.0), (-0.05, 0.05), (0.0, 0.2), (0.2, 0.5)]
    for rule, verdict in expected.items():
        assert [judge(rule, interval, 0.1) for interval in intervals] == verdict  # type: ignore[arg-type]
    assert [judge_ratio((low, low + 0.2)) for low in (0.1, 0.6, 0.8)] == [
        *("supported", "undecided"),
        "not supported",
    ]
    assert set(RULES) == {"matches", "within", "beats", "converges", "steadier"}
    assert 0.6 < LARGEST_RATIO < 1


def test_a_world_where_all_is_as_expected(tmp_path: Path) -> None:
    """TD-DPO gets 0.80 at every beta, DPO 0.795 at its best; elsewhere the others get less."""

    def expected(config: Config) -> float:
        if config.loss.name == "td_dpo":
            return 0.80
        worst = 0.62 if config.loss.name == "dpo" else 0.60
        best = 0.795 if config.loss.name == "dpo" else 0.74
        return {0.01: worst, 0.05: best, 0.5: 0.70, 2.5: worst}[config.loss.beta]

    found = report_on(tmp_path, experiment_cells(), expected, spread=0.003, shared=0.995)
    assert verdicts(found) == {1: "supported", 2: "supported", 3: "supported", 4: "supported"}
    assert found.tested[0].without is None
    assert found.headlines[0].startswith("Does tau make training robust to beta? Yes, by")


def test_a_world_where_nothing_is_as_expected(tmp_path: Path) -> None:
    """TD-DPO depends on beta, DPO and DiscoPOP do not, and it diverges at 2.5."""

    def opposite(config: Config) -> float:
        if config.loss.name == "td_dpo":
            return {0.01: 0.6, 0.05: 0.7, 0.5: 0.65, 2.5: 0.6}[config.loss.beta]
        return 0.79

    name = "td_dpo-beta2.5-tau2.0-seed1"
    found = report_on(tmp_path, experiment_cells(), opposite, spread=0.005, diverged={name: 12})
    assert set(verdicts(found).values()) == {"not supported"}
    assert "No (without the diverged cells: not supported), by" in found.headlines[0]
    part = found.tested[0].claims[1].parts[0]
    assert part.numbers == "1 of 3 seeds diverged: seed 1 at step 12"
    assert found.tested[0].without is not None
    assert any(name in note for note in found.notes)


def test_diverged_cells_count_and_are_left_out_beside(tmp_path: Path) -> None:
    """DiscoPOP diverges at 2.5 before its first validation: accuracy 0.5, and no cell without."""
    names = [f"discopop-beta2.5-seed{seed}" for seed in range(3)]
    cells = experiment_cells(beta=[0.05, 2.5], tau=[2.0])
    found = report_on(tmp_path, cells, diverged=dict.fromkeys(names, 2)).tested[0]
    assert found.without is not None
    whole, without = found.claims[1].parts[1], found.without[1].parts[1]
    assert (whole.verdict, without.verdict) == ("supported", "undecided")
    assert "against 0.500" in whole.numbers
    assert without.numbers == "discopop, beta 2.5 has no score"


def test_missing_cells_leave_a_claim_undecided(tmp_path: Path) -> None:
    cells = experiment_cells(loss=["td_dpo", "dpo"], beta=[0.01, 0.05], tau=[0.5])
    gone = [cell_name(cell) for cell in cells if cell.loss.name == "dpo" and cell.loss.beta == 0.05]
    found = report_on(tmp_path, cells, missing=gone)
    parts = [part for claim in found.tested[0].claims for part in claim.parts]
    assert parts[0].numbers == "dpo, beta 0.05 has no score"
    assert parts[2].numbers == "this grid has no such cell"
    assert parts[3].numbers == "discopop is not in this grid"
    assert parts[-2].numbers == "a variance needs two betas, and the two have fewer in common"
    assert parts[-1].numbers == "discopop is not in this grid"
    assert parts[1].numbers.count("(dpo, beta 0.01)") == 1
    assert {claim.verdict for claim in found.tested[0].claims[1:]} == {"undecided"}


def test_unfinished_cells_do_not_prove_convergence(tmp_path: Path) -> None:
    cells = experiment_cells(loss=["td_dpo"], beta=[2.5], tau=[2.0])
    found = report_on(tmp_path, cells, unfinished=["td_dpo-beta2.5-tau2.0-seed1"])
    part = found.tested[0].claims[1].parts[0]
    assert part.verdict == "undecided"
    assert part.numbers == "0 of 2 seeds diverged, 1 not finished yet"


@pytest.mark.parametrize(
    "axes", [{"seed": [0]}, {"beta": [0.05]}, {"loss": ["dpo", "ipo"]}, {"tau": [1.0]}]
)
def test_small_grids_are_reported_on(tmp_path: Path, axes: dict) -> None:
    found = report_on(tmp_path, experiment_cells(**axes))
    assert len(found.tested[0].claims) == 4
    if "seed" in axes:
        compared = [part for claim in found.tested[0].claims for part in claim.parts]
        undecided = [part for part in compared if part.rule != "converges"]
        assert {part.verdict for part in undecided} == {"undecided"}
        assert any("one seed" in note for note in found.notes)


def test_a_score_where_lower_is_better_turns_the_difference_round(tmp_path: Path) -> None:
    cells = experiment_cells(loss=["td_dpo", "dpo"], beta=[0.01, 0.05], tau=[0.5])
    folder = write_grid(tmp_path / "grid", cells, pairs=20)
    # Of items that are all alike no verdict would be given.
    values = {
        cell_name(c): [0.1 if c.loss.name == "td_dpo" else 0.9] * 7
        + [0.09 if c.loss.name == "td_dpo" else 0.9]
        for c in cells
    }
    file = tmp_path / "errors.json"
    about = {"name": "errors", "higher_is_better": False, "matches": 0.1, "beats": 0.2}
    file.write_text(json.dumps({**about, "cells": values}))
    found = analyse(folder, [file]).tested[0]
    assert found.study.score.name == "errors"
    assert found.claims[0].verdict == "supported"
    assert ": advantage 0.801, 95 % [" in found.claims[0].parts[0].numbers


@pytest.mark.parametrize("higher", [True, False])
def test_an_advantage_and_its_interval_have_one_sign(tmp_path: Path, higher: bool) -> None:
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
    for part in analyse(folder, [file]).tested[0].claims[0].parts:
        assert part.advantage is not None
        written = part.numbers.replace("−", "-")
        pattern = r"advantage (\S+), 95 % \[(\S+), (\S+)\], t over 3 seeds \[(.+)\]"
        found = re.search(pattern, written)
        assert found is not None, written
        advantage, low, high = map(float, found.groups()[:3])
        assert low <= advantage <= high
        assert min(sign * low, sign * high) > 0.2
        low, high = map(float, found[4].split(", "))
        assert low <= advantage <= high
        assert part.verdict == ("not supported" if higher else "supported")


def one_score(folder: Path, value: Callable[[Config], float | list[float]], **axes) -> list[Claim]:
    """The claims on a grid, by a score of its own."""
    cells = experiment_cells(**axes)
    write_grid(folder / "grid", cells, pairs=20)
    about = {"name": "errors", "matches": 0.1, "beats": 0.2}
    scores = {cell_name(cell): value(cell) for cell in cells}
    (folder / "mine.json").write_text(json.dumps({**about, "cells": scores}))
    return analyse(folder / "grid", [folder / "mine.json"]).tested[0].claims


def test_one_number_per_cell_says_what_it_cannot_tell(tmp_path: Path) -> None:
    """DPO at its best beta, and the best tau, are chosen on other items than they are scored on."""
    axes = {"loss": ["td_dpo", "dpo"], "beta": [0.01, 0.05], "tau": [0.5]}
    found = one_score(tmp_path, lambda cell: cell.seed / 10 + cell.loss.beta, **axes)
    first, last = found[0].parts[1], found[3].parts[0]
    assert first.numbers == "dpo, best beta: one number per cell cannot both choose it and score it"
    assert "best tau: one number per cell cannot both" in last.numbers
    assert found[0].parts[0].advantage is not None


def test_items_and_seeds_that_are_all_alike_decide_nothing(tmp_path: Path) -> None:
    axes = {"loss": ["td_dpo", "dpo"], "beta": [0.01, 0.05], "tau": [0.5]}
    claims = one_score(tmp_path, lambda cell: [cell.loss.beta * 0.1 + 0.2] * 3, **axes)
    for part in (claims[0].parts[0], claims[3].parts[0]):
        assert (part.verdict, part.numbers.endswith(NO_SPREAD)) == ("undecided", True)


def test_losses_are_compared_by_answers_where_there_are_scores_of_them(tmp_path: Path) -> None:
    cells = experiment_cells(loss=["td_dpo", "dpo"], beta=[0.01, 0.05], tau=[0.5], seed=[0, 1])
    found = report_on(tmp_path, cells)
    assert "must not choose between losses" in found.notes[0]
    assert "no score of answers here yet" in found.notes[0]
