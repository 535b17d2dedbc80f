"""Stop and go on: bit for bit what an uninterrupted run gives, and nothing that is not ours."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_runs
import yaml
from places import ROOT
from tiny_interruptions import (
    Killed,
    assert_same_run,
    before_save,
    contents,
    killed_run,
    on_line,
)

from tddpo_jax.config.reading import resolve
from tddpo_jax.runs.grid_directory import cell_directories, record_grid
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.runs.sampled_answers import read_answers
from tddpo_jax.training import checkpoints, loop
from tddpo_jax.training.checkpoints import Checkpoints, SaveClock, saved_steps
from tddpo_jax.training.step import Programs
from tddpo_jax.weights import locate

pytestmark = pytest.mark.usefixtures("one_device")

ANSWERING = {"train.sample_prompts": 3}


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """The directory of a run that nothing interrupted; it samples answers."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    tiny_runs.run_on_one_device(inputs, directory, ANSWERING)
    return directory


def test_a_damaged_state_is_named(finished, inputs, tmp_path, monkeypatch):
    """The newest of two, cut short; without it the run goes on from the other.

    The run samples no answers, unlike `finished`, and nothing else of it differs.
    """
    killed_run(inputs, tmp_path / "run", monkeypatch, before_save(8))
    newest = tmp_path / "run" / "checkpoints" / "6"
    largest = max(newest.rglob("*"), key=lambda file: file.stat().st_size * file.is_file())
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"checkpoints/6: cannot be read .*resumes from the prev"):
        tiny_runs.run(inputs, tmp_path / "run")
    gc.collect()
    shutil.rmtree(newest)
    (summary,) = tiny_runs.run(inputs, tmp_path / "run")
    assert (summary["state"], summary["steps"]) == ("finished", 8)
    metrics = [tiny_runs.untimed(tiny_runs.lines(run)) for run in (tmp_path / "run", finished)]
    assert metrics[0] == metrics[1]
    for name, weight in tiny_runs.weights(finished).items():
        np.testing.assert_array_equal(tiny_runs.weights(tmp_path / "run")[name], weight)
    assert read_answers(tmp_path / "run") == {}


def test_several_hosts_ask_each_other_at_every_tenth_step_only(monkeypatch):
    asked = []

    def agree(answer):
        asked.append(answer())
        return asked[-1]

    monkeypatch.setattr(checkpoints, "several", lambda: True)
    monkeypatch.setattr(checkpoints, "agree", agree)
    clock = SaveClock(1e-9)
    assert [step for step in range(1, 31) if clock.is_due(step)] == [10, 20, 30]
    assert asked == [True] * 3


# ---- where a run may end -------------------------------------------------------------------------


def _before_summary(patch):
    def dying(*_):
        raise Killed

    patch.setattr(loop, "summarise", dying)


BEFORE_ANY_CHECKPOINT = on_line(lambda _, line: line["step"] == 1 and "loss" in line)
IN_THE_SECOND_EPOCH = on_line(lambda _, line: line["step"] == 5 and "loss" in line)
ON_THE_SECOND_CELL = on_line(lambda path, line: "beta0.5" in path.name and line["step"] == 2)
PLACES = {
    "in the first validation": [on_line(lambda _, line: "eval_loss" in line)],
    "before any checkpoint, with a torn line": [BEFORE_ANY_CHECKPOINT],
    "in the second epoch, with a torn line": [IN_THE_SECOND_EPOCH],
    "after a validation and its export": [before_save(6)],
    "in the last validation, then before the summary": [
        on_line(lambda _, line: line["step"] == 8),
        _before_summary,
    ],
}


@pytest.mark.parametrize("place", PLACES)
def test_a_resumed_run_is_an_uninterrupted_one(place, finished, inputs, tmp_path, monkeypatch):
    for where in PLACES[place]:
        killed_run(inputs, tmp_path / "run", monkeypatch, where, ANSWERING)
    if "torn" in place:
        with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "epo')
    tiny_runs.run(inputs, tmp_path / "run", ANSWERING)
    assert_same_run(tmp_path / "run", finished)


def test_states_are_saved_between_validations(finished, inputs, tmp_path, monkeypatch):
    often = {**ANSWERING, "train.save_minutes": 1e-9}
    killed_run(inputs, tmp_path / "run", monkeypatch, BEFORE_ANY_CHECKPOINT, often)
    assert saved_steps(tmp_path / "run" / "checkpoints") == {1}
    tiny_runs.run(inputs, tmp_path / "run", ANSWERING)
    assert_same_run(tmp_path / "run", finished)


def test_a_finished_run_goes_on_for_more_epochs(inputs, tmp_path, monkeypatch):
    """And is killed on the way: it is what it would be had they been asked for at first."""
    constant = {"train.schedule": "constant", "train.warmup_ratio": 0.0}
    tiny_runs.run(inputs, tmp_path / "whole", constant)
    (summary,) = tiny_runs.run(inputs, tmp_path / "run", {**constant, "train.epochs": 1})
    assert (summary["state"], summary["steps"]) == ("finished", 4)
    killed_run(inputs, tmp_path / "run", monkeypatch, IN_THE_SECOND_EPOCH, constant)
    tiny_runs.run(inputs, tmp_path / "run", constant)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_every_validation_has_answers_as_texts(finished):
    """TensorBoard shows those to one prompt together."""
    answers = read_answers(finished)
    assert list(answers) == [0, 3, 4, 6, 8]
    shown = [(step, f"answers/row {a.row}/text_summary") for step in answers for a in answers[step]]
    found = tiny_runs.board_texts(finished)
    assert [(step, name) for step, name, _ in found] == shown
    for text, answer in zip(found, itertools.chain(*answers.values()), strict=True):
        for part in (answer.prompt, answer.answer):
            assert textwrap.indent(part, "    ") in text[2]


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_policy_that_is_being_replaced_is_never_lost(mode, inputs, tmp_path, monkeypatch):
    """Killed between the two renames of a later export, a run still has its best policy."""
    changes = {"train.mode": mode, "lora.rank": 2, "train.best_metric": "eval_loss"}
    tiny_runs.run(inputs, tmp_path / "whole", changes)
    best, found = tmp_path / "run" / "best", []
    rename = Path.rename

    def dying_rename(self, target):
        if Path(target) == best and not best.exists() and found:
            raise Killed
        rename(self, target)
        if Path(target) == best:
            found.append(contents(best))

    def between_renames(patch):
        patch.setattr(Path, "rename", dying_rename)

    killed_run(inputs, tmp_path / "run", monkeypatch, between_renames, changes)
    assert not best.exists()
    files = locate.resolve(str(tmp_path / "run"))
    assert contents(files.adapter or files.base) == found[0]
    config = resolve(tiny_runs.settings(inputs, tmp_path / "run", changes))
    directory = RunDirectory(tmp_path / "run", config)
    directory.create(json.loads((tmp_path / "run" / "run.json").read_text()))
    assert contents(best) == found[0]
    tiny_runs.run(inputs, tmp_path / "run", changes)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_resumed_run_holds_its_weights_once(inputs, tmp_path, monkeypatch):
    """When a state comes off the disk, neither loaded weights nor a fresh state lie beside it."""
    killed_run(inputs, tmp_path / "run", monkeypatch, IN_THE_SECOND_EPOCH)
    restore, restored = Checkpoints.restore, []

    def whole_embeddings():
        gc.collect()
        shape = tiny_runs.SHAPE["vocab_size"], tiny_runs.SHAPE["hidden_size"]
        return sum(array.shape == shape for array in jax.live_arrays())

    def counting(self, step, like):
        beside = whole_embeddings() - before
        state = restore(self, step, like)
        restored.append((beside, whole_embeddings() - before))
        return state

    before = whole_embeddings()
    monkeypatch.setattr(Checkpoints, "restore", counting)
    tiny_runs.run(inputs, tmp_path / "run")
    # Of the embedding and of the head: the weights and two moments.
    assert restored == [(0, 2 * 3)]


def test_gradients_are_summed_in_one_place(inputs, tmp_path, monkeypatch):
    """When a step's sums are made, those of the step before are gone."""
    program, made = Programs.of, []

    def watched(self, members):
        original = program(self, members)

        def zeros(state):
            assert all(array() is None for array in made), "the last sums are still there"
            sums = original.zeros(state)
            made.extend(weakref.ref(array) for array in jax.tree.leaves(sums.gradients))
            return sums

        def add_gradients(*arguments):
            sums = original.add_gradients(*arguments)
            made.extend(weakref.ref(array) for array in jax.tree.leaves(sums.gradients))
            return sums

        return dataclasses.replace(original, zeros=zeros, add_gradients=add_gradients)

    monkeypatch.setattr(Programs, "of", watched)
    tiny_runs.run(inputs, tmp_path / "run", {"train.max_steps": 3, "train.eval_every": None})
    assert len(made) > 3


def test_adapters_and_their_dropout_resume_too(inputs, tmp_path, monkeypatch):
    changes = {"train.mode": "lora", "lora.rank": 2, "lora.dropout": 0.3, "loss.name": "dpo"}
    tiny_runs.run(inputs, tmp_path / "whole", changes)
    killed_run(inputs, tmp_path / "run", monkeypatch, IN_THE_SECOND_EPOCH, changes)
    tiny_runs.run(inputs, tmp_path / "run", changes)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_grid_goes_on_where_it_ended(inputs, tmp_path, monkeypatch):
    changes = {"loss.beta": [0.05, 0.5], "train.max_steps": 4}
    tiny_runs.run(inputs, tmp_path / "whole", changes)
    killed_run(inputs, tmp_path / "grid", monkeypatch, ON_THE_SECOND_CELL, changes)
    first, second = (f"td_dpo-beta{beta}-tau1.0-seed0" for beta in (0.05, 0.5))
    before = tiny_runs.times(tmp_path / "grid" / first)
    tiny_runs.run(inputs, tmp_path / "grid", changes)
    assert tiny_runs.times(tmp_path / "grid" / first) == before
    for cell in (first, second):
        assert_same_run(tmp_path / "grid" / cell, tmp_path / "whole" / cell)


def test_a_grid_of_which_one_loss_is_left_keeps_its_programs(inputs, tmp_path, monkeypatch):
    """A program for that loss alone would give other last digits."""
    changes = {"loss.name": ["td_dpo", "dpo"], "loss.beta": [0.05, 0.5], "train.max_steps": 4}
    tiny_runs.run(inputs, tmp_path / "whole", changes)
    cell = "dpo-beta0.05-seed0"
    within = on_line(lambda path, line: path.name == cell and line["step"] == 3)
    killed_run(inputs, tmp_path / "grid", monkeypatch, within, changes)
    tiny_runs.run(inputs, tmp_path / "grid", changes)
    for name in (cell, "dpo-beta0.5-seed0"):
        assert_same_run(tmp_path / "grid" / name, tmp_path / "whole" / name)


def test_a_part_of_a_grid_has_the_programs_of_the_whole(inputs, tmp_path):
    """A command with some cells of a recorded grid computes what the whole command does."""
    short = {"loss.beta": [0.05, 0.5], "train.max_steps": 4}
    changes = {**short, "loss.name": ["td_dpo", "dpo"]}
    tiny_runs.run(inputs, tmp_path / "whole", changes)
    record_grid(cell_directories(tiny_runs.settings(inputs, tmp_path / "grid", changes)))
    tiny_runs.run(inputs, tmp_path / "grid", {**short, "loss.name": "dpo"})
    for beta in (0.05, 0.5):
        name = f"dpo-beta{beta}-seed0"
        assert_same_run(tmp_path / "grid" / name, tmp_path / "whole" / name)


def test_a_killed_process_resumes(inputs, tmp_path):
    """Two processes of the same command, one of them killed by SIGKILL on its way."""
    environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}

    def start(output):
        settings = tiny_runs.settings(inputs, tmp_path / output, {"train.epochs": 6})
        (tmp_path / f"{output}.yaml").write_text(yaml.safe_dump(settings))
        return subprocess.Popen(
            [sys.executable, "run.py", "--config", str(tmp_path / f"{output}.yaml")],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    metrics = tmp_path / "run" / "metrics.jsonl"
    with start("run") as killed:
        while killed.poll() is None and not _has_lines(metrics, 9):
            time.sleep(0.002)
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    with start("run") as resumed, start("whole") as whole:
        output, _ = resumed.communicate(timeout=300)
        whole.communicate(timeout=300)
    assert "resuming after step" in output
    assert (whole.returncode, resumed.returncode) == (0, 0)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def _has_lines(file, count):
    return file.exists() and file.read_text().count("\n") >= count


# ---- what is left alone --------------------------------------------------------------------------


def test_a_finished_run_is_left_alone(finished, inputs):
    before = tiny_runs.times(finished)
    (summary,) = tiny_runs.run(inputs, finished)
    assert summary == json.loads((finished / "summary.json").read_text())
    assert tiny_runs.times(finished) == before


def test_another_configuration_is_refused_and_named(finished, inputs):
    before = tiny_runs.times(finished)
    changes = {"loss.beta": 0.7, "train.epochs": 5}
    with pytest.raises(ValueError, match="another configuration") as error:
        tiny_runs.run(inputs, finished, changes)
    assert "loss.beta is 0.05, asked for 0.7" in str(error.value)
    assert "train.epochs is 2, asked for 5" in str(error.value)
    assert tiny_runs.times(finished) == before


def test_an_unfinished_run_of_another_configuration_is_refused(inputs, tmp_path, monkeypatch):
    killed_run(inputs, tmp_path / "run", monkeypatch, BEFORE_ANY_CHECKPOINT)
    before = tiny_runs.times(tmp_path / "run")
    with pytest.raises(ValueError, match=r"seed is 0, asked for 1"):
        tiny_runs.run(inputs, tmp_path / "run", {"seed": 1})
    assert tiny_runs.times(tmp_path / "run") == before


@pytest.mark.parametrize("beta", [0.1, [0.1, 0.2]], ids=["run", "grid"])
def test_a_directory_that_holds_no_run_is_refused_and_untouched(beta, inputs, tmp_path):
    (tmp_path / "precious").write_text("mine")
    before = tiny_runs.times(tmp_path)
    with pytest.raises(ValueError, match=r"output: .* exists and does not hold a "):
        tiny_runs.run(inputs, tmp_path, {"loss.beta": beta})
    assert tiny_runs.times(tmp_path) == before


def test_data_that_changed_since_is_refused(inputs, tmp_path, monkeypatch):
    train = tmp_path / "train.jsonl"
    train.write_text(inputs.train.read_text())
    changes = {"data.path": str(train)}
    killed_run(inputs, tmp_path / "run", monkeypatch, BEFORE_ANY_CHECKPOINT, changes)
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    rows[3]["prompt_ids"][0] = 7
    tiny_runs.write_rows(train, rows)
    before = tiny_runs.times(tmp_path / "run")
    with pytest.raises(ValueError, match=r"data\.path: .*train\.jsonl has changed since"):
        tiny_runs.run(inputs, tmp_path / "run", changes)
    # Its lock says who held it last; the run itself is as it was.
    after = tiny_runs.times(tmp_path / "run")
    assert {**after, "claim.lock": 0} == {**before, "claim.lock": 0}


def test_a_run_knows_its_files_by_their_contents(finished, inputs, tmp_path):
    """Copies under other names are the same run; with one id changed they are another."""
    model = shutil.copytree(inputs.model, tmp_path / "model")
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "validation")}
    for name, file in files.items():
        shutil.copyfile(getattr(inputs, name), file)
    before = tiny_runs.times(finished)
    renamed = {
        "model.path": str(model),
        "data.path": str(files["train"]),
        "data.validation": str(files["validation"]),
    }
    (summary,) = tiny_runs.run(inputs, finished, renamed)
    assert summary == json.loads((finished / "summary.json").read_text())
    rows = [json.loads(line) for line in files["validation"].read_text().splitlines()]
    rows[3]["prompt_ids"][0] = 7
    tiny_runs.write_rows(files["validation"], rows)
    with pytest.raises(ValueError, match=r"data\.path: .* differs from .*, with which .* began"):
        tiny_runs.run(inputs, finished, renamed)
    assert tiny_runs.times(finished) == before
    with pytest.raises(ValueError, match=r"data\.validation is .*, asked for 0\.25"):
        tiny_runs.run(inputs, finished, {"data.validation": 0.25})


def test_an_adapter_that_changed_since_is_refused(inputs, tmp_path, monkeypatch):
    """The base is the same: the run goes on from an adapter that it did not begin with."""
    lora = {"train.mode": "lora", "lora.rank": 2, "train.max_steps": 1, "train.eval_every": None}
    for name, seed in (("adapter", 0), ("other", 1)):
        tiny_runs.run(inputs, tmp_path / name, {**lora, "seed": seed})
    changes = {"model.path": str(tmp_path / "adapter")}
    killed_run(inputs, tmp_path / "run", monkeypatch, BEFORE_ANY_CHECKPOINT, changes)
    shutil.rmtree(tmp_path / "adapter" / "best")
    shutil.copytree(tmp_path / "other" / "best", tmp_path / "adapter" / "best")
    with pytest.raises(ValueError, match=r"model\.path: .*adapter has changed since"):
        tiny_runs.run(inputs, tmp_path / "run", changes)


@pytest.mark.parametrize("content", ["a: [", "just a text", ""])
def test_a_damaged_configuration_is_told(content, tmp_path):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"config .*config\.yaml"):
        RunDirectory(tmp_path, resolve({}))


def test_an_empty_directory_may_be_used(tmp_path):
    directory = RunDirectory(tmp_path, resolve({}))
    assert directory.summary is None
    assert not list(tmp_path.iterdir())


def test_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"output: .* is not a writable directory"):
            RunDirectory(path, resolve({}))


def test_the_same_settings_in_other_words_are_the_same(tmp_path):
    """A setting that is given its default, and a number that is written as text."""
    stored = resolve({"train": {"learning_rate": "2e-4"}})
    text = yaml.safe_dump(stored.model_dump(mode="json", exclude={"output"}))
    (tmp_path / "config.yaml").write_text(text)
    same = {"train": {"learning_rate": 0.0002, "epochs": 3}, "output": str(tmp_path)}
    assert RunDirectory(tmp_path, resolve(same)).summary is None
