"""Grids: their cells and directories, and what their cells share instead of making it again."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tiny_runs

from tddpo_jax.config.reading import read_yaml, resolve
from tddpo_jax.experiments.grid import run_experiment
from tddpo_jax.runs.grid_directory import cell_directories
from tddpo_jax.runs.run_directory import LOCK_FILE, RunDirectory
from tddpo_jax.system.console import Screen
from tddpo_jax.training import prepare
from tddpo_jax.training.loop import train

SHORT = {"train.max_steps": 2, "train.eval_every": None}

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def compiled():
    """How often each function has been compiled, by name; `clear` to start anew."""
    with tiny_runs.compilations() as counts:
        yield counts


@pytest.fixture
def reference_passes(monkeypatch):
    """The number of pairs of every reference pass."""
    passes = []
    log_probs = prepare.log_probs

    def counting(*arguments):
        passes.append(len(arguments[1]))
        return log_probs(*arguments)

    monkeypatch.setattr(prepare, "log_probs", counting)
    return passes


PROGRAM = ("start", "zeros", "add_gradients", "update", "log_probs_of_one", "summary")


def test_a_grid_of_losses_scalars_and_seeds_compiles_once(inputs, tmp_path, compiled, monkeypatch):
    """32 cells of one step: td_dpo with two betas and two taus, dpo and discopop without tau, and
    each with two rates and two weight decays."""
    monkeypatch.setenv("TDDPO_CACHE", str(tmp_path / "cache"))
    after_cells = []

    def counting(*arguments):
        train(*arguments)
        after_cells.append(sum(compiled.values()))

    monkeypatch.setattr("tddpo_jax.experiments.grid.train", counting)
    changes = {
        "loss.name": ["td_dpo", "dpo", "discopop"],
        "loss.beta": [0.05, 0.5],
        "loss.tau": [0.5, 1.0],
        "train.learning_rate": [1e-3, 2e-3],
        "train.weight_decay": [0.0, 0.1],
        "train.max_steps": 1,
        "train.eval_every": None,
    }
    summaries = tiny_runs.run(inputs, tmp_path / "grid", changes)
    assert [summary["state"] for summary in summaries] == ["finished"] * 32
    assert {name: compiled[name] for name in PROGRAM} == dict.fromkeys(PROGRAM, 1)
    assert after_cells == after_cells[:1] * 32


def test_other_numbers_compile_nothing_and_leave_the_reference(
    inputs, tmp_path, compiled, reference_passes, monkeypatch
):
    monkeypatch.setenv("TDDPO_CACHE", str(tmp_path / "cache"))
    changed = {
        "first": {},
        "beta": {"loss.beta": 2.5},
        "tau": {"loss.tau": 0.5},
        "learning rate": {"train.learning_rate": 3e-4},
        "weight decay": {"train.weight_decay": 10.0},
        "seed": {"seed": 7},
    }
    configs = {
        name: resolve(tiny_runs.settings(inputs, tmp_path / name, {**SHORT, **change}))
        for name, change in changed.items()
    }
    screen = Screen(quiet=True)
    prepared = prepare.prepare([configs["first"]], screen)
    assert reference_passes == [18, 7]
    for name, config in configs.items():
        train(prepared, [config], [RunDirectory(tmp_path / name, config)], screen)
        if name == "first":
            assert compiled["add_gradients"] == 1
            compiled.clear()
    assert not compiled
    assert reference_passes == [18, 7]
    # The numbers were heard all the same.
    last = {name: tiny_runs.training_lines(tmp_path / name)[-1]["loss"] for name in changed}
    assert len(set(last.values())) == len(changed)


def test_a_later_run_of_the_same_data_finds_the_reference(
    inputs, tmp_path, reference_passes, monkeypatch
):
    monkeypatch.setenv("TDDPO_CACHE", str(tmp_path / "cache"))
    tiny_runs.run(inputs, tmp_path / "first", {**SHORT, "loss.name": "dpo"})
    assert reference_passes == [18, 7]
    tiny_runs.run(inputs, tmp_path / "second", {**SHORT, "loss.beta": 0.5, "seed": 3})
    assert reference_passes == [18, 7]
    # One token of one prompt is another data set.
    other = tmp_path / "other.jsonl"
    first, *rest = inputs.train.read_text().splitlines()
    row = json.loads(first)
    tiny_runs.write_rows(other, [{**row, "prompt_ids": [7, *row["prompt_ids"][1:]]}])
    other.write_text(other.read_text() + "\n".join(rest))
    tiny_runs.run(inputs, tmp_path / "third", {**SHORT, "data.path": str(other)})
    assert reference_passes == [18, 7, 18, 7]


def test_a_damaged_reference_is_made_again(inputs, tmp_path, reference_passes, monkeypatch):
    monkeypatch.setenv("TDDPO_CACHE", str(tmp_path / "cache"))
    tiny_runs.run(inputs, tmp_path / "first", SHORT)
    files = list((tmp_path / "cache" / "reference").iterdir())
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:40])
    with pytest.warns(UserWarning, match="is damaged"):
        tiny_runs.run(inputs, tmp_path / "second", SHORT)
    assert reference_passes == [18, 7, 18, 7]
    first, second = (tiny_runs.weights(tmp_path / name) for name in ("first", "second"))
    for name, weight in first.items():
        np.testing.assert_array_equal(weight, second[name])


# ---- cells and directories -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(inputs, tmp_path_factory):
    """The directory of a finished grid of three losses, two taus and two seeds."""
    directory = tmp_path_factory.mktemp("runs") / "grid"
    tiny_runs.run_on_one_device(inputs, directory, AXES)
    return directory


AXES = {
    **SHORT,
    "loss.name": ["td_dpo", "dpo", "discopop"],
    "loss.tau": [0.5, 1.0],
    "seed": [0, 1],
}
CELLS = [
    "td_dpo-beta0.05-tau0.5-seed0",
    "td_dpo-beta0.05-tau0.5-seed1",
    "td_dpo-beta0.05-tau1.0-seed0",
    "td_dpo-beta0.05-tau1.0-seed1",
    "dpo-beta0.05-seed0",
    "dpo-beta0.05-seed1",
    "discopop-beta0.05-seed0",
    "discopop-beta0.05-seed1",
]


def test_a_grid_holds_one_run_directory_per_cell(grid):
    """A loss without tau has one cell, not one per tau."""
    assert {path.name for path in grid.iterdir()} == {"grid.json", LOCK_FILE, *CELLS}
    assert json.loads((grid / "grid.json").read_text())["cells"] == CELLS
    for cell in CELLS:
        assert json.loads((grid / cell / "summary.json").read_text())["state"] == "finished"


def test_a_cell_is_the_same_run_as_alone(grid, inputs, tmp_path):
    """A cell trained after five others by a program of three losses: the same to rounding."""
    tiny_runs.run(inputs, tmp_path / "run", {**SHORT, "loss.name": "dpo", "seed": 1})
    cell = grid / "dpo-beta0.05-seed1"
    found, expected = (
        tiny_runs.untimed(tiny_runs.lines(path)) for path in (tmp_path / "run", cell)
    )
    for line, same in zip(found, expected, strict=True):
        assert line == pytest.approx(same, rel=1e-5, abs=3e-5)
    for name, weight in tiny_runs.weights(tmp_path / "run").items():
        other = tiny_runs.weights(cell)[name]
        assert np.max(np.abs(other - weight)) <= 1e-5 * np.max(np.abs(weight)), name


@pytest.mark.parametrize("name", ["dpo", "discopop"])
def test_policy_and_reference_are_one_model_at_first(name, grid):
    """At margin 0 DPO's loss is log 2 and DiscoPOP's (log 2 + 1) / 2."""
    expected = {"dpo": math.log(2), "discopop": (math.log(2) + 1) / 2}[name]
    validation, step = tiny_runs.lines(grid / f"{name}-beta0.05-seed0")[:2]
    for line, prefix in ((validation, "eval_"), (step, "")):
        assert line[f"{prefix}loss"] == pytest.approx(expected, rel=1e-5)
        assert line[f"{prefix}rewards/accuracies"] == 0.5
        assert line[f"{prefix}kl"] == pytest.approx(0, abs=1e-8)


def test_a_seed_moves_the_order_and_nothing_else(grid):
    """Another seed starts at the same policy with other pairs, and validates on the same ones."""
    zero, one = (tiny_runs.lines(grid / f"dpo-beta0.05-seed{seed}") for seed in (0, 1))
    assert zero[0] == one[0]  # the validation at step 0
    assert zero[1]["logps/chosen"] != one[1]["logps/chosen"]


def test_a_loss_without_tau_says_that_it_ignores_the_axis(inputs, tmp_path, capsys):
    changes = {**SHORT, "loss.name": ["dpo"], "loss.tau": [0.5, 1.0, 2.0]}
    run_experiment(tiny_runs.settings(inputs, tmp_path / "run", changes), Screen())
    assert "dpo has no tau: it has one cell, not 3, per beta and seed" in capsys.readouterr().out
    assert (tmp_path / "run" / "summary.json").exists()  # and one cell is a run, not a grid


def test_a_grid_says_once_that_it_compiles(inputs, tmp_path, capsys):
    changes = {**SHORT, "loss.name": "dpo", "loss.beta": [0.05, 0.1]}
    run_experiment(tiny_runs.settings(inputs, tmp_path / "run", changes), Screen())
    said = capsys.readouterr().out.splitlines()
    assert said.count("compiling the forward pass") == 1
    assert said.count("compiling the training step") == 1
    assert said.index("compiling the training step") < said.index(
        next(line for line in said if line.startswith("training "))
    )


def test_a_loss_without_beta_has_one_cell_per_seed(tmp_path):
    losses = {"name": ["sft", "dpo"], "beta": [0.1, 0.2]}
    cells = cell_directories({"loss": losses, "seed": [0, 1], "output": str(tmp_path / "grid")})
    names = [cell.config.loss.name for cell in cells]
    assert (names.count("sft"), names.count("dpo")) == (2, 4)


def test_a_finished_grid_is_left_alone(grid, inputs):
    before = tiny_runs.times(grid)
    summaries = tiny_runs.run(inputs, grid, AXES)
    assert [summary["state"] for summary in summaries] == ["finished"] * len(CELLS)
    assert tiny_runs.times(grid) == before


def test_a_grid_of_other_settings_is_refused_and_untouched(grid, inputs):
    before = tiny_runs.times(grid)
    changes = {**SHORT, "loss.beta": [0.2, 0.3], "train.learning_rate": 0.5}
    with pytest.raises(ValueError, match=r"rate\.td_dpo is 0\.001, asked for 0\.5"):
        tiny_runs.run(inputs, grid, changes)
    with pytest.raises(ValueError, match="holds a grid, not a run"):
        tiny_runs.run(inputs, grid, SHORT)
    assert tiny_runs.times(grid) == before


def test_a_grid_grows_by_cells(inputs, tmp_path):
    tiny_runs.run(inputs, tmp_path / "grid", {**SHORT, "seed": [0, 1]})
    before = tiny_runs.times(tmp_path / "grid" / "td_dpo-beta0.05-tau1.0-seed1")
    tiny_runs.run(inputs, tmp_path / "grid", {**SHORT, "seed": [1, 2]})
    assert tiny_runs.times(tmp_path / "grid" / "td_dpo-beta0.05-tau1.0-seed1") == before
    cells = json.loads((tmp_path / "grid" / "grid.json").read_text())["cells"]
    assert cells == [f"td_dpo-beta0.05-tau1.0-seed{seed}" for seed in (0, 1, 2)]


def test_a_grid_grows_by_losses(inputs, tmp_path):
    """Each with a rate of its own; that of a loss it already holds stays."""
    output = tmp_path / "grid"
    tiny_runs.run(inputs, output, {**SHORT, "loss.name": "dpo", "seed": [0, 1]})
    both = {**SHORT, "loss.name": ["dpo", "td_dpo"], "seed": [0, 1]}
    rates = {"dpo": 1e-3, "td_dpo": 2e-3}
    tiny_runs.run(inputs, output, {**both, "train.learning_rate": rates})
    grid = json.loads((output / "grid.json").read_text())
    assert grid["settings"]["train"]["learning_rate"] == rates
    assert len(grid["cells"]) == 4
    with pytest.raises(ValueError, match=r"train\.learning_rate\.dpo is 0\.001, asked for 0\.002"):
        tiny_runs.run(inputs, output, {**both, "train.learning_rate": 2e-3})


def test_losses_with_learning_rates_of_their_own(inputs, tmp_path):
    rates = {"td_dpo": 1e-3, "dpo": 2e-3}
    changes = {**SHORT, "loss.name": ["td_dpo", "dpo"], "train.learning_rate": rates}
    tiny_runs.run(inputs, tmp_path / "grid", changes)
    for loss, rate in rates.items():
        (file,) = (tmp_path / "grid").glob(f"{loss}-*/config.yaml")
        assert read_yaml(file)["train"]["learning_rate"] == rate
    before = tiny_runs.times(tmp_path / "grid")
    with pytest.raises(ValueError, match=r"train\.learning_rate\.dpo is 0\.002, asked for 0\.1"):
        tiny_runs.run(
            inputs, tmp_path / "grid", {**changes, "train.learning_rate": rates | {"dpo": 0.1}}
        )
    assert tiny_runs.times(tmp_path / "grid") == before


def test_a_grid_over_learning_rates_keeps_its_axis(inputs, tmp_path):
    """Its names hold the rates; it grows by rates, and a part of it may be given again."""
    output, base = tmp_path / "grid", {**SHORT, "loss.name": "dpo"}
    tiny_runs.run(inputs, output, {**base, "train.learning_rate": [1e-3, 2e-3]})
    recorded = json.loads((output / "grid.json").read_text())
    assert recorded["axes"] == ["train.learning_rate"]
    assert "learning_rate" not in recorded["settings"]["train"]
    names = [f"dpo-beta0.05-learning_rate{rate}-seed0" for rate in (0.001, 0.002)]
    assert recorded["cells"] == names
    before = tiny_runs.times(output / names[1])
    tiny_runs.run(inputs, output, {**base, "train.learning_rate": 2e-3, "seed": [0, 1]})
    assert tiny_runs.times(output / names[1]) == before
    cells = json.loads((output / "grid.json").read_text())["cells"]
    assert cells == [*names, "dpo-beta0.05-learning_rate0.002-seed1"]
    with pytest.raises(ValueError, match=r"holds a grid with one value of train\.weight_decay"):
        tiny_runs.run(
            inputs, output, {**base, "train.weight_decay": [0, 1], "train.learning_rate": 2e-3}
        )


def test_the_same_number_in_two_words_is_one_cell(inputs, tmp_path):
    changes = {**SHORT, "loss.beta": ["0.1", "0.10", "1e-1"]}
    assert len(tiny_runs.run(inputs, tmp_path / "run", changes)) == 1


# ---- divergence ----------------------------------------------------------------------------------


def test_a_diverged_cell_does_not_stop_the_others(inputs, tmp_path):
    """A margin of some nats over 1e-38 is beyond float32, and so is the loss of such a pair."""
    changes = {**SHORT, "loss.tau": [1e-38, 1.0]}
    diverged, finished = tiny_runs.run(inputs, tmp_path / "grid", changes)
    assert (diverged["state"], finished["state"]) == ("diverged", "finished")
    assert (diverged["divergence"]["step"], diverged["divergence"]["metrics"]) == (0, {})
    assert finished["steps"] == 2
