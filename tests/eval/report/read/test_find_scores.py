"""Finding scores: of validation pairs, of answers, of the user's own."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from mt_bench_files import judgment, write_lines
from synthetic_grid import NAMES, SMALL, steady, write_grid, write_quality, write_small_grid

from eval.experiment import read_experiment
from eval.quality.quality_file import standing_of
from eval.report.read.find_scores import find_scores
from eval.report.read.pair_metrics import pair_values
from tddpo_jax.config.cells import cell_name
from tddpo_jax.config.reading import resolve


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_grid(tmp_path_factory.mktemp("cells") / "grid")


def test_scores_are_of_the_checkpoint_that_the_other_half_chose(grid: Path) -> None:
    experiment = read_experiment(grid)
    found = find_scores(experiment, [], None)
    score = next(score for score in found.scores if score.name == "eval_rewards/accuracies")
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
    found = find_scores(experiment, [], None)
    score = next(score for score in found.scores if score.name == "eval_rewards/accuracies")
    assert found.checkpoints[NAMES[0]] == (10, 10)
    assert found.checkpoints[NAMES[1]] == (0, 0)
    assert score.of(1) == 0.5
    assert math.isnan(score.of(2))
    assert math.isnan(score.of(3))


def test_a_loss_that_needs_the_whole_vocabulary_is_the_recorded_mean(tmp_path: Path) -> None:
    cell = resolve({"loss": {"kl": "full"}})
    write_grid(tmp_path / "g", [cell], lambda _: 0.7, pairs=10)
    found = find_scores(read_experiment(tmp_path / "g"), [], None)
    loss = next(score for score in found.scores if score.name == "eval_loss")
    step = found.checkpoints[cell_name(cell)][0]
    assert loss.of(0) == pytest.approx(0.7 - 0.3 * step / 20)


def test_a_checkpoint_that_no_half_can_choose_is_the_last_and_told(tmp_path: Path) -> None:
    """Exact KLs are not stored; DPO's loss is known of every pair."""
    losses = ({"name": "td_dpo", "kl": "full"}, {"name": "dpo", "beta": 0.1})
    cells = [resolve({"train": {"best_metric": "eval_loss"}, "loss": loss}) for loss in losses]
    write_grid(tmp_path / "g", cells, lambda _: 0.3, pairs=10)
    found = find_scores(read_experiment(tmp_path / "g"), [], None)
    full, dpo = map(cell_name, cells)
    assert found.checkpoints[full] == (20, 20)
    assert found.checkpoints[dpo] != (20, 20)
    (note,) = found.notes
    assert "1 cell chose checkpoints by a metric that is not known for single pairs" in note
    assert note.endswith(f": {full}")


@pytest.mark.parametrize("metric", ["eval_kl", "eval_logps/chosen"])
def test_single_responses_may_have_chosen_by_another_metric_than_the_loss(
    tmp_path: Path, metric: str
) -> None:
    """Of single responses the loss alone is known of every row."""
    cell = resolve({"loss": {"name": "sft"}, "train": {"best_metric": metric}})
    write_grid(tmp_path / "g", [cell], lambda _: 0.3, pairs=10)
    for file in (tmp_path / "g").glob("*/evaluations/*.npy"):
        np.save(file, np.load(file)[:, :1])
    found = find_scores(read_experiment(tmp_path / "g"), [], None)
    assert found.checkpoints[cell_name(cell)] == (20, 20)
    assert "1 cell chose checkpoints by a metric that is not known" in found.notes[0]


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
    found = find_scores(experiment, [], None)
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
    quality, arena = find_scores(experiment, [file], None).scores[:2]
    assert (quality.name, arena.name) == ("quality", "arena")
    assert quality.of(3) > 0.6 > 0.5 > quality.of(0)
    assert (arena.of(0), arena.of(1), arena.higher) == (0.5, 0.0, False)


def test_a_reward_of_answers_has_its_own_scale_and_tests_no_claim(tmp_path: Path) -> None:
    write_grid(tmp_path / "g", SMALL[4:6], pairs=10)
    write_quality(tmp_path / "g", lambda _: 0.5)
    for reward, unit in (("embedded", "rule's score, 0 to 1"), ("praise abc", "reward")):
        for file in (tmp_path / "g").glob("*/quality.json"):
            found = json.loads(file.read_text())
            found["asked"]["reward"] = reward
            file.write_text(json.dumps(found))
        score = find_scores(read_experiment(tmp_path / "g"), [], None).scores[0]
        assert (score.unit, score.margins is None) == (unit, reward != "embedded")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "a"}, "matches: Field required"),
        ({"name": "reward accuracy", "cells": {NAMES[4]: 1}}, "name: another score is called"),
        ({"name": "beta", "cells": {NAMES[4]: 1}}, "name: another score is called 'beta'"),
        ({"name": "a/b", "cells": {}}, "name: String should match"),
        ({"name": "answer quality", "cells": {NAMES[4]: 1}}, "name: another score is called"),
        ({"matches": -1, "cells": {}}, "matches: Input should be greater"),
        (
            {"higher_is_better": "false", "cells": {}},
            "higher_is_better: Input should be a valid bo",
        ),
        ({"cells": {NAMES[4]: math.nan}}, "cells.*finite"),
        ({"cells": {NAMES[4]: []}}, "cells.*at least 1 item"),
        ({"cells": {}}, "cells: Dictionary should have at least 1 item"),
        ({"cells": {"other": 1}}, "cells: 'other' is not a cell of"),
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
        find_scores(read_experiment(grid), [file], None)


def test_two_scores_of_one_name_are_refused(grid: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"name": "a", "matches": 1, "beats": 1, "cells": {NAMES[4]: 1}}))
    with pytest.raises(ValueError, match="another score is called 'a'"):
        find_scores(read_experiment(grid), [file, file], None)


def test_a_finished_cell_without_its_evaluations_is_told(tmp_path: Path) -> None:
    write_grid(tmp_path / "g", SMALL[4:], pairs=10)
    shutil.rmtree(tmp_path / "g" / NAMES[4] / "evaluations")
    notes = find_scores(read_experiment(tmp_path / "g"), [], None).notes
    assert f"reward accuracy: 1 cell ended without a score: {NAMES[4]}" in notes


def test_quality_of_other_prompts_is_refused_and_damage_is_named(tmp_path: Path) -> None:
    write_grid(tmp_path / "g", SMALL[4:], pairs=10)
    write_quality(tmp_path / "g", lambda _: 0.5)
    file = tmp_path / "g" / NAMES[5] / "quality.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"asked": {"prompts": 40, "seed": 1}}))
    experiment = read_experiment(tmp_path / "g")
    with pytest.raises(ValueError, match=f"{NAMES[5]}/quality.json: was asked other prompts"):
        find_scores(experiment, [], None)
    for text, message in (('{"scores": 1}', "scores: Input should be"), ("{", "not JSON")):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"{NAMES[5]}/quality.json: {message}"):
            find_scores(experiment, [], None)


def test_quality_of_an_earlier_best_is_left_out_and_told(tmp_path: Path) -> None:
    write_grid(tmp_path / "g", SMALL[4:], pairs=10)
    write_quality(tmp_path / "g", lambda _: 0.5)
    file = tmp_path / "g" / NAMES[5] / "quality.json"
    found = json.loads(file.read_text())
    for old in ({**found, "step": found["step"] - 5}, {"scores": found["scores"]}):
        file.write_text(json.dumps(old))
        scores = find_scores(read_experiment(tmp_path / "g"), [], None)
        assert [scores.scores[0].has(number) for number in range(4)] == [True, False, True, True]
        assert any("1 cell measured with another policy" in note for note in scores.notes)


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
    found = find_scores(experiment, [], None)
    mt_bench, quality = found.scores[:2]
    assert [mt_bench.of(number) for number in range(2)] == [3, 7]
    assert quality.of(0) > 0.6 > quality.of(1)
    for title in ("MT-Bench", "answer quality"):
        assert any(note.startswith(f"{title}: 1 cell diverged before") for note in found.notes)
    # Without the base in the campaign there is nothing to count with.
    write_lines(tmp_path / "g" / "mt_bench" / "model_judgment" / "j_single.jsonl", rows[160:])
    found = find_scores(experiment, [], None)
    assert math.isnan(found.scores[0].of(0))
    assert f"MT-Bench: 1 cell ended without a score: {NAMES[4]}" in found.notes
