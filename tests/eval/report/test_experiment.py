"""Reading run directories, metrics of pairs, checkpoints, and scores of other kinds."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from mt_bench_files import judgment, write_lines
from synthetic_grid import experiment_cells, steady, write_grid, write_quality

from eval.experiment import Point, read_experiment
from eval.quality.score_file import standing_of
from eval.report.read.pair_metrics import chosen_checkpoints, halves, pair_values
from eval.report.read.scores import find_scores
from eval.report.statistics.score_statistics import study_both_ways
from tddpo_jax.config.cells import cell_name
from tddpo_jax.config.schema import resolve

SMALL = experiment_cells(loss=["td_dpo", "dpo"], beta=[0.01, 2.5], tau=[0.5], seed=[0, 1])
NAMES = [cell_name(cell) for cell in SMALL]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cells") / "grid"
    return write_grid(
        folder,
        SMALL,
        pairs=30,
        diverged={NAMES[0]: 12, NAMES[1]: 3},
        unfinished=[NAMES[2]],
        missing=[NAMES[3]],
    )


# ---- Cells ---------------------------------------------------------------------------------------


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
        ("grid.json", '{"cells": ["nonsense"], "settings": {}}', "'nonsense' is no name of a cell"),
        ("grid.json", "{", "not JSON"),
        (f"{NAMES[4]}/config.yaml", "loss: {beta: -1}", f"{NAMES[4]}/config.yaml: loss.beta"),
        ("grid.json", '{"settings": {}}', "cells: Field required"),
        (
            f"{NAMES[4]}/config.yaml",
            "loss: {beta: 7}",
            f"{NAMES[4]}/config.yaml: is of td_dpo-beta7",
        ),
        (f"{NAMES[4]}/summary.json", "{", "not JSON"),
        ("grid.json", '{"cells": [], "settings": {}}', "cells: List should have at least 1 item"),
        (f"{NAMES[4]}/summary.json", "[]", "must hold a JSON object"),
        (f"{NAMES[4]}/summary.json", '{"state": "over", "steps": 3}', "state: Input should be"),
        (f"{NAMES[4]}/summary.json", "{}", "state: Field required"),
        (f"{NAMES[4]}/evaluations/lengths.npy", "PK", "cannot be read"),
        (f"{NAMES[4]}/metrics.jsonl", '{"step": 1.5, "loss": 1}', "a step and numbers by name"),
        (f"{NAMES[4]}/run.json", '{"model": {}}', r"model\.path: Field required"),
        (f"{NAMES[4]}/divergence.json", "{}", "step: Field required"),
        (f"{NAMES[4]}/metrics.jsonl", "{\n{}\n", "not JSON"),
        (f"{NAMES[4]}/metrics.jsonl", '{"step": 1, "loss": "low"}', "a step and numbers by name"),
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
    damages = [(np.zeros((9, 2)), "is not of the pairs"), (np.zeros(10), "two numbers")]
    damages += [(np.full((10, 2), "a"), "two numbers")]
    for values, message in damages:
        np.save(file, values)
        with pytest.raises(ValueError, match=rf"000005\.npy: .*{message}"):
            read_experiment(tmp_path / "g")


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no grid or run directory"):
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


# ---- Pairs ---------------------------------------------------------------------------------------


def test_metrics_of_pairs_by_hand(grid: Path) -> None:
    """DPO's loss is softplus(-beta (s_w - s_l)); at step 0 every pair is a tie."""
    cell = read_experiment(grid).cells[-1]
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
    write_grid(tmp_path / "g", SMALL[-1:], pairs=10)
    cell = read_experiment(tmp_path / "g").cells[0]
    second = halves(("pairs",) * 10, 0)
    values = {"rewards/accuracies": np.full((5, 10), 0.5)}
    values["rewards/accuracies"][1, ~second] = 1
    values["rewards/accuracies"][2, second] = 1
    values["rewards/accuracies"][0] = 1  # step 0 is never chosen
    assert chosen_checkpoints(cell, values, second) == (1, 2)


def test_scores_are_of_the_checkpoint_that_the_other_half_chose(grid: Path) -> None:
    experiment = read_experiment(grid)
    found = find_scores(experiment, [], None, 0)
    score = next(score for score in found.scores if score.name == "accuracy")
    cell = experiment.cells[-1]
    values = pair_values(cell)["rewards/accuracies"]
    chosen = found.checkpoints[cell.name]
    of_first, of_second = (cell.steps.index(step) for step in chosen)
    for item in range(30):
        own, other = (of_second, of_first) if score.second[item] else (of_first, of_second)
        assert score.choosing[-1, item] == values[own, item]
        assert score.scoring[-1, item] == values[other, item]


def test_a_diverged_cell_counts_with_its_last_finite_validation(grid: Path) -> None:
    experiment = read_experiment(grid)
    found = find_scores(experiment, [], None, 0)
    score = next(score for score in found.scores if score.name == "accuracy")
    assert found.checkpoints[NAMES[0]] == (10, 10)
    assert found.checkpoints[NAMES[1]] == (0, 0)
    assert score.of(1) == 0.5
    assert math.isnan(score.of(2))
    assert math.isnan(score.of(3))


def test_a_loss_that_needs_the_whole_vocabulary_is_the_recorded_mean(tmp_path: Path) -> None:
    cell = resolve({"loss": {"kl": "full"}})
    write_grid(tmp_path / "g", [cell], lambda _: 0.7, pairs=10)
    found = find_scores(read_experiment(tmp_path / "g"), [], None, 0)
    loss = next(score for score in found.scores if score.name == "loss")
    step = found.checkpoints[cell_name(cell)].first
    assert loss.of(0) == pytest.approx(0.7 - 0.3 * step / 20)


def test_a_loss_that_needs_lengths_is_known_where_they_were_kept(tmp_path: Path) -> None:
    """IPO: (s_w / length_w - s_l / length_l - 1 / (2 beta))², with TRL's means over tokens."""
    write_grid(tmp_path / "g", [resolve({"loss": {"name": "ipo", "beta": 0.1}})], lambda _: 0.7)
    cell = read_experiment(tmp_path / "g").cells[0]
    s_w, s_l = np.moveaxis((cell.logps.astype(np.float64) - cell.reference) / cell.lengths, -1, 0)
    np.testing.assert_allclose(pair_values(cell)["loss"], (s_w - s_l - 5) ** 2, rtol=1e-4)
    (cell.folder / "evaluations" / "lengths.npy").unlink()
    assert np.isnan(pair_values(read_experiment(tmp_path / "g").cells[0])["loss"]).all()


def test_a_checkpoint_that_no_half_can_choose_is_the_last_and_told(tmp_path: Path) -> None:
    """Exact KLs are not stored; DPO's loss is known of every pair."""
    losses = ({"name": "td_dpo", "kl": "full"}, {"name": "dpo", "beta": 0.1})
    cells = [resolve({"train": {"best_metric": "eval_loss"}, "loss": loss}) for loss in losses]
    write_grid(tmp_path / "g", cells, lambda _: 0.3, pairs=10)
    found = find_scores(read_experiment(tmp_path / "g"), [], None, 0)
    full, dpo = map(cell_name, cells)
    assert found.checkpoints[full] == (20, 20)
    assert found.checkpoints[dpo] != (20, 20)
    (note,) = found.notes
    assert "the metric of 1 cell by which checkpoints are chosen is not known pair by pair" in note
    assert note.endswith(f": {full}")


# ---- Scores of answers ---------------------------------------------------------------------------


def test_mt_bench_is_read_from_complete_cells(grid: Path, tmp_path: Path) -> None:
    rows = [
        judgment(name, 81 + question, turn, 5 + turn + (name == NAMES[5]))
        for name in NAMES[4:6]
        for question in range(80)
        for turn in (1, 2)
    ]
    rows += [judgment(NAMES[6], 81, 1, 9), judgment("base", 81, 1, 3)]
    (tmp_path / "g").mkdir()
    for name in NAMES[4:]:
        (tmp_path / "g" / name).symlink_to(grid / name)
    write_lines(tmp_path / "g" / "mt_bench" / "model_judgment" / "j_single.jsonl", rows)
    experiment = read_experiment(tmp_path / "g")
    found = find_scores(experiment, [], None, 0)
    score = found.scores[0]
    assert (score.name, len(score.strata), score.margins and score.margins.beats) == (
        *("mt_bench", 80),
        1.5,
    )
    assert [score.of(number) for number in range(2)] == [6.5, 7.5]
    assert math.isnan(score.of(2))
    assert any("MT-Bench: 2 cells" in note and NAMES[6] in note for note in found.notes)


def test_quality_and_scores_of_the_users_own(tmp_path: Path) -> None:
    write_grid(tmp_path / "g", SMALL[4:], steady, pairs=10)
    write_quality(tmp_path / "g", lambda name: 0.7 if "beta2.5" in name else 0.4, prompts=12)
    experiment = read_experiment(tmp_path / "g")
    file = tmp_path / "arena.json"
    mine = {"name": "arena", "matches": 0.1, "beats": 0.2, "higher_is_better": False}
    file.write_text(json.dumps({**mine, "cells": {NAMES[4]: [1, 0], NAMES[5]: [0, 0]}}))
    quality, arena = find_scores(experiment, [file], None, 0).scores[:2]
    assert (quality.name, arena.name) == ("quality", "arena")
    assert quality.of(3) > 0.6 > 0.5 > quality.of(0)
    assert (arena.of(0), arena.of(1), arena.higher) == (0.5, 0.0, False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "a"}, "matches: Field required"),
        ({"name": "accuracy", "cells": {NAMES[4]: 1}}, "name: another score is called 'accuracy'"),
        ({"name": "beta", "cells": {NAMES[4]: 1}}, "name: another score is called 'beta'"),
        ({"name": "a/b", "cells": {}}, "name: String should match"),
        ({"name": "answer quality", "cells": {NAMES[4]: 1}}, "name: another score is called"),
        ({"unit": "$", "cells": {}}, "unit: String should match"),
        ({"matches": -1, "cells": {}}, "matches: Input should be greater"),
        (
            {"higher_is_better": "false", "cells": {}},
            "higher_is_better: Input should be a valid bo",
        ),
        ({"cells": {NAMES[4]: math.nan}}, "cells.*finite"),
        ({"cells": {NAMES[4]: []}}, "cells.*at least 1 item"),
        ({"cells": {}}, "cells: Dictionary should have at least 1 item"),
        ({"cells": {"other": 1}}, "cells: 'other' is no cell of"),
        ({"cells": {NAMES[4]: [1, 2], NAMES[5]: [1]}}, "cells: must hold the same number"),
        ({"cells": {NAMES[4]: "high"}}, "cells.*should be a valid number"),
    ],
)
def test_a_wrong_file_of_scores_is_named(
    grid: Path, tmp_path: Path, content: dict, message: str
) -> None:
    file = tmp_path / "mine.json"
    whole = {"name": "a", "matches": 1, "beats": 1} if "cells" in content else {}
    file.write_text(json.dumps({**whole, **content}))
    with pytest.raises(ValueError, match=f"mine.json: {message}"):
        find_scores(read_experiment(grid), [file], None, 0)


def test_two_scores_of_one_name_are_refused(grid: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"name": "a", "matches": 1, "beats": 1, "cells": {NAMES[4]: 1}}))
    with pytest.raises(ValueError, match="another score is called 'a'"):
        find_scores(read_experiment(grid), [file, file], None, 0)


def test_a_finished_cell_without_its_evaluations_is_told(tmp_path: Path) -> None:
    write_grid(tmp_path / "g", SMALL[4:], pairs=10)
    shutil.rmtree(tmp_path / "g" / NAMES[4] / "evaluations")
    notes = find_scores(read_experiment(tmp_path / "g"), [], None, 0).notes
    assert f"validation reward accuracy: 1 cell over and without one: {NAMES[4]}" in notes


def test_quality_of_other_prompts_is_refused_and_damage_is_named(tmp_path: Path) -> None:
    write_grid(tmp_path / "g", SMALL[4:], pairs=10)
    write_quality(tmp_path / "g", lambda _: 0.5)
    file = tmp_path / "g" / NAMES[5] / "quality.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"asked": {"prompts": 40, "seed": 1}}))
    experiment = read_experiment(tmp_path / "g")
    with pytest.raises(ValueError, match=f"{NAMES[5]}/quality.json: was asked other prompts"):
        find_scores(experiment, [], None, 0)
    for text, message in (("{}", "scores: Field required"), ("{", "not JSON")):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"{NAMES[5]}/quality.json: {message}"):
            find_scores(experiment, [], None, 0)


def test_quality_of_an_earlier_best_is_left_out_and_told(tmp_path: Path) -> None:
    write_grid(tmp_path / "g", SMALL[4:], pairs=10)
    write_quality(tmp_path / "g", lambda _: 0.5)
    file = tmp_path / "g" / NAMES[5] / "quality.json"
    found = json.loads(file.read_text())
    for old in ({**found, "step": found["step"] - 5}, {"scores": found["scores"]}):
        file.write_text(json.dumps(old))
        scores = find_scores(read_experiment(tmp_path / "g"), [], None, 0)
        assert [scores.scores[0].has(number) for number in range(4)] == [True, False, True, True]
        assert any("1 cell measured by another policy" in note for note in scores.notes)


def test_a_cell_that_diverged_before_any_best_counts_with_its_base(tmp_path: Path) -> None:
    write_grid(tmp_path / "g", SMALL[4:6], pairs=10, diverged={NAMES[4]: 3, NAMES[5]: 12})
    write_quality(tmp_path / "g", lambda name: 0.9 if name == NAMES[4] else 0.2)
    rows = [
        judgment(name, 81 + question, turn, rating)
        for name, rating in (("embedded", 3), (NAMES[5], 7), ("other", 9))
        for question in range(80)
        for turn in (1, 2)
    ]
    write_lines(tmp_path / "g" / "mt_bench" / "model_judgment" / "j_single.jsonl", rows)
    experiment = read_experiment(tmp_path / "g")
    assert [standing_of(cell) for cell in experiment.cells] == [("base", 0), ("best", 5)]
    found = find_scores(experiment, [], None, 0)
    mt_bench, quality = found.scores[:2]
    assert [mt_bench.of(number) for number in range(2)] == [3, 7]
    assert quality.of(0) > 0.6 > quality.of(1)
    for title in ("MT-Bench", "answer quality"):
        assert any(note.startswith(f"{title}: 1 cell that diverged before") for note in found.notes)
    # Without the base in the campaign there is nothing to count with.
    write_lines(tmp_path / "g" / "mt_bench" / "model_judgment" / "j_single.jsonl", rows[160:])
    found = find_scores(experiment, [], None, 0)
    assert math.isnan(found.scores[0].of(0))
    assert f"MT-Bench: 1 cell over and without one: {NAMES[4]}" in found.notes


def test_a_study_is_made_without_the_diverged_where_they_have_no_score(tmp_path: Path) -> None:
    write_grid(tmp_path / "g", SMALL[4:], pairs=10, diverged={NAMES[4]: 3})
    write_quality(tmp_path / "g", lambda _: 0.5)
    (tmp_path / "g" / NAMES[4] / "quality.json").unlink()
    experiment = read_experiment(tmp_path / "g")
    quality = find_scores(experiment, [], None, 0).scores[0]
    assert not quality.has(0)
    assert study_both_ways(experiment, quality)[1] is not None
