"""The cells of a seed in one program: each as if it were alone, whatever becomes of the others."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json

import jax
import numpy as np
import pytest
import tiny_runs
from synthetic_grid import facts
from tiny_interruptions import Killed, assert_same_run, before_save, killed_run, on_line

from tddpo_jax.config.cells import populations
from tddpo_jax.config.reading import resolve
from tddpo_jax.experiments import grid
from tddpo_jax.experiments.grid import run_experiment
from tddpo_jax.runs.grid_directory import cell_directories, record_grid
from tddpo_jax.scoring.data_sets import log_probs
from tddpo_jax.system.console import Screen
from tddpo_jax.training import step_log
from tddpo_jax.training.checkpoints import saved_steps
from tddpo_jax.training.prepare import prepare
from tddpo_jax.training.state import stacked
from tddpo_jax.training.step import Programs

# Losses, scalars and rates under which rounding stays rounding. Under so large an epsilon Adam's
# step is as good as linear in the gradient: 1e-7 in an element of 1e-2 is not made 1e-5 of the
# weight's step by dividing the element by its own size. And the spacing of a log-prob, 8e-6 nats,
# moves td_dpo's slope of a pair, about 1/tau, by 1/tau of itself, and its pull to the reference by
# beta; DiscoPOP's slope moves by 1/tau per unit of beta times a log-ratio (1.6e-5 under 0.05).
RATES = {"td_dpo": 0.03, "dpo": 0.3, "discopop": 0.3}
CELLS = {
    "train.adam_eps": 1.0,
    "train.mode": "lora",
    "lora.rank": 2,
    "loss.name": list(RATES),
    "loss.beta": [0.005, 0.01],
    "loss.tau": [4.0, 8.0],
    "loss.discopop_tau": 0.5,
    "train.learning_rate": RATES,
}
# Td_dpo with two betas and two taus, dpo and discopop with two betas.
COUNT = 8
TOGETHER = {**CELLS, "train.population": True}
PROGRAM = ("start", "zeros", "add_gradients", "update", "log_probs", "log_probs_of_one", "summary")
VICTIM = "dpo-beta0.005-seed0"

pytestmark = pytest.mark.usefixtures("one_device")


def finished(inputs, directory, changes):
    """A grid that trained, and what was compiled for it; its reference is not out of a cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TDDPO_CACHE", str(directory.with_name("cache")))
        tiny_runs.use_devices(patch, 1)
        with tiny_runs.compilations() as compiled:
            summaries = tiny_runs.run(inputs, directory, changes)
    assert {summary["state"] for summary in summaries} == {"finished"}
    return directory, dict(compiled)


@pytest.fixture(scope="module")
def together(inputs, tmp_path_factory):
    """The directory of a grid that trained as one population, and what was compiled for it."""
    return finished(inputs, tmp_path_factory.mktemp("together") / "grid", TOGETHER)


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    """The directory of the same grid, each cell by itself."""
    return finished(inputs, tmp_path_factory.mktemp("alone") / "grid", CELLS)[0]


def cells_of(directory):
    return [directory / name for name in json.loads((directory / "grid.json").read_text())["cells"]]


def assert_same_to_rounding(directory, expected):
    """Everything that a run leaves; absolute bounds as in `test_training`."""
    read = [tiny_runs.untimed(tiny_runs.lines(run)) for run in (directory, expected)]
    for line, same in zip(*read, strict=True):
        assert line == pytest.approx(same, rel=1e-5, abs=3e-5)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (directory, expected)]
    for name in ("best", "first", "last"):
        record, same = (summary.pop(name) for summary in summaries)
        assert record == pytest.approx(same, rel=1e-5, abs=3e-5)
    assert summaries[0] == summaries[1]
    files = [sorted((run / "evaluations").iterdir()) for run in (directory, expected)]
    for file, same in zip(*files, strict=True):
        assert file.name == same.name
        np.testing.assert_allclose(np.load(file), np.load(same), rtol=1e-5, err_msg=file.name)
    for tensors in (tiny_runs.weights, tiny_runs.last_state):
        found, wanted = tensors(directory), tensors(expected)
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            assert np.max(np.abs(found[name] - values)) <= 1e-5 * np.max(np.abs(values)), name


# ---- as if alone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(COUNT))
def test_a_member_is_the_run_that_it_would_be_alone(number, together, alone):
    assert len(cells_of(together[0])) == COUNT
    assert_same_to_rounding(cells_of(together[0])[number], cells_of(alone)[number])


def test_a_population_compiles_one_program(together):
    assert {name: together[1].get(name) for name in PROGRAM} == dict.fromkeys(PROGRAM, 1)


def test_members_learn_different_things(together):
    """Or all of these tests would be about nothing."""
    states = [tiny_runs.last_state(cell) for cell in cells_of(together[0])]
    name = "trainable.layers.q_proj.adapter.b"
    assert len({state[name].tobytes() for state in states}) == COUNT


def test_checkpoints_hold_adapters_and_their_moments_alone(together):
    """Two factors of seven layers, their two moments, and Adam's count: no weight of the base."""
    shapes = {name: x.shape for name, x in tiny_runs.last_state(cells_of(together[0])[0]).items()}
    factors = [name for name in shapes if name.endswith((".adapter.a", ".adapter.b"))]
    assert sorted(name.split(".")[0] for name in factors) == ["optimizer"] * 28 + ["trainable"] * 14
    assert all(2 in shapes[name][1:] for name in factors), "a factor has the rank"
    assert {shape for name, shape in shapes.items() if name not in factors} == {()}


def test_policy_and_reference_are_one_model_at_first(together):
    """The reference comes from the program of one member, the policies from that of eight."""
    for cell in cells_of(together[0]):
        first, *_ = tiny_runs.lines(cell)
        assert (first["step"], first["eval_rewards/accuracies"]) == (0, 0.5)
        evaluations = cell / "evaluations"
        start, reference = (np.load(evaluations / f"{n}.npy") for n in ("000000", "reference"))
        np.testing.assert_array_equal(start, reference)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_mapped_program_gives_the_references_log_probs(dtype, inputs, tmp_path):
    changes = {"model.dtype": dtype, "train.mode": "lora", "lora.rank": 2}
    settings = tiny_runs.settings(inputs, tmp_path / "run", changes)
    experiment = prepare([resolve(settings)], Screen(quiet=True))
    program, policy = experiment.programs.of(3), experiment.policy
    state = program.start(stacked([policy.fresh(0)] * 3))
    shared = experiment.shared
    run = functools.partial(program.log_probs, state.trainable, policy.frozen)
    logps, _ = log_probs(run, shared.dataset.train, shared.shapes, shared.mesh)
    np.testing.assert_array_equal(logps, np.stack([experiment.reference.train] * 3))


def test_in_four_bits_too(inputs, tmp_path):
    two = {"loss.name": ["dpo", "discopop"], "loss.beta": 0.005, "train.max_steps": 4}
    changes = {**CELLS, **two, "train.mode": "qlora"}
    together, _ = finished(inputs, tmp_path / "together", {**changes, "train.population": True})
    alone, _ = finished(inputs, tmp_path / "alone", changes)
    for member, run in zip(cells_of(together), cells_of(alone), strict=True):
        assert_same_to_rounding(member, run)


def test_on_two_devices_too(inputs, tmp_path, together, monkeypatch):
    tiny_runs.use_devices(monkeypatch, 2)
    tiny_runs.run(inputs, tmp_path / "grid", {**TOGETHER, "mesh.fsdp": 2})
    for member, run in zip(cells_of(tmp_path / "grid"), cells_of(together[0]), strict=True):
        assert_same_to_rounding(member, run)


# ---- stop and go on ------------------------------------------------------------------------------

PLACES = {
    "between steps": on_line(lambda path, line: path.name == VICTIM and line["step"] == 5),
    "when some have saved a step and some have not": before_save(6, VICTIM),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_resumed_population_is_an_uninterrupted_one(
    place, together, inputs, tmp_path, monkeypatch
):
    killed_run(inputs, tmp_path / "grid", monkeypatch, PLACES[place], TOGETHER)
    tiny_runs.run(inputs, tmp_path / "grid", TOGETHER)
    for member, expected in zip(cells_of(tmp_path / "grid"), cells_of(together[0]), strict=True):
        assert_same_run(member, expected)


def test_a_population_that_grows_loses_no_step(together, inputs, tmp_path, monkeypatch):
    """Cells that were on their way go on from what they saved, beside others that begin."""
    few = {**TOGETHER, "loss.beta": [0.005]}
    killed_run(inputs, tmp_path / "grid", monkeypatch, PLACES["between steps"], few)
    trained = []

    def watched(prepared, configs, directories, screen):
        steps = [max(saved_steps(d.path / "checkpoints"), default=0) for d in directories]
        trained.append(steps)
        return train(prepared, configs, directories, screen)

    train = grid.train
    monkeypatch.setattr(grid, "train", watched)
    tiny_runs.run(inputs, tmp_path / "grid", TOGETHER)
    assert sorted(trained) == [[0] * 4, [4] * 4]
    expected = {cell.name: cell for cell in cells_of(together[0])}
    for member in cells_of(tmp_path / "grid"):
        assert_same_to_rounding(member, expected[member.name])


# ---- a member that diverges ----------------------------------------------------------------------


def poison(monkeypatch, number, at, *, policy=False):
    """Makes the gradients of one member, or of a lone run, not a number in one step alone.

    Or only the policy that the step leaves.
    """
    program, before = Programs.of, []

    def poisoned(self, members):
        original = program(self, members)
        place = slice(None) if members == 1 else number

        def without_numbers(tree):
            return jax.tree.map(lambda leaf: leaf.at[place].set(np.nan), tree)

        def update(state, sums, knobs, totals):
            now = len(before) == at
            if now and not policy:
                sums = sums._replace(gradients=without_numbers(sums.gradients))
            before.append(jax.tree.map(np.array, state.trainable))
            state, metrics = original.update(state, sums, knobs, totals)
            if now and policy:
                state = state._replace(trainable=without_numbers(state.trainable))
            return state, metrics

        return dataclasses.replace(original, update=update)

    monkeypatch.setattr(Programs, "of", poisoned)
    return before


def poisoned_grid(together, inputs, tmp_path, monkeypatch, **how):
    """The victim of a population, its summary and its metrics, which are those of before.

    All others come to what they come to beside a member that is well.
    """
    names = [cell.name for cell in cells_of(together[0])]
    poison(monkeypatch, names.index(VICTIM), **how)
    tiny_runs.run(inputs, tmp_path / "grid", TOGETHER)
    for member, expected in zip(cells_of(tmp_path / "grid"), cells_of(together[0]), strict=True):
        if member.name != VICTIM:
            assert_same_run(member, expected)
    victim, unharmed = tmp_path / "grid" / VICTIM, together[0] / VICTIM
    found, wanted = (tiny_runs.untimed(tiny_runs.lines(run)) for run in (victim, unharmed))
    assert found == wanted[: len(found)]
    return victim, json.loads((victim / "summary.json").read_text()), found


def test_a_member_that_diverged_stays_dead_and_leaves_the_others_alone(
    together, inputs, tmp_path, monkeypatch
):
    """All batches after step 5 are good again; the states of steps 3 and 4 must stay."""
    said = []
    monkeypatch.setattr(Screen, "_plain", lambda *_: lambda done, total, text="": said.append(text))
    victim, summary, found = poisoned_grid(together, inputs, tmp_path, monkeypatch, at=5)
    assert (summary["state"], summary["steps"], summary["last"]["step"]) == ("diverged", 5, 4)
    assert (found[-1]["step"], saved_steps(victim / "checkpoints")) == (4, {3, 4})
    assert len(said) >= 8
    assert not any("nan" in text for text in said)


def test_a_member_that_its_last_step_broke_has_diverged(together, inputs, tmp_path, monkeypatch):
    """No later step would tell: validation does, and neither best/ nor a state is made of it."""
    how = {"at": 7, "policy": True}
    victim, summary, found = poisoned_grid(together, inputs, tmp_path, monkeypatch, **how)
    assert (summary["state"], summary["steps"], summary["last"]["step"]) == ("diverged", 8, 6)
    reason = summary["divergence"]["reason"]
    assert reason.startswith("validation is not finite after step 8; rows of the validation data: ")
    assert (found[-1]["step"], saved_steps(victim / "checkpoints")) == (7, {4, 6})
    assert all(np.isfinite(weight).all() for weight in tiny_runs.weights(victim).values())


def test_without_validation_a_policy_that_broke_is_told_by_its_weights(
    inputs, tmp_path, monkeypatch
):
    poison(monkeypatch, 0, at=7, policy=True)
    changes = {"train.mode": "lora", "lora.rank": 2, "data.validation": 0}
    (summary,) = tiny_runs.run(inputs, tmp_path / "run", changes)
    assert (summary["state"], summary["steps"]) == ("diverged", 8)
    assert summary["divergence"]["reason"].startswith("weights are not finite after step 8; rows")
    assert not (tmp_path / "run" / "best").exists()
    assert 8 not in saved_steps(tmp_path / "run" / "checkpoints")


def test_a_population_resumes_without_the_member_that_diverged(
    together, inputs, tmp_path, monkeypatch
):
    names = [cell.name for cell in cells_of(together[0])]
    with monkeypatch.context() as patch:
        poison(patch, names.index(VICTIM), at=5)
        killed_run(inputs, tmp_path / "grid", patch, before_save(8), TOGETHER)
    victim = tmp_path / "grid" / VICTIM
    before = tiny_runs.times(victim)
    tiny_runs.run(inputs, tmp_path / "grid", TOGETHER)
    assert tiny_runs.times(victim) == before
    for member, expected in zip(cells_of(tmp_path / "grid"), cells_of(together[0]), strict=True):
        if member.name != VICTIM:
            assert_same_run(member, expected)


def test_a_rate_beyond_all_measure_ends_its_own_cell_alone(together, inputs, tmp_path):
    """Numbers of 1e30 make a loss that is none; it is the next step that shows it."""
    rates = {**RATES, "discopop": 1e30}
    tiny_runs.run(inputs, tmp_path / "grid", {**TOGETHER, "train.learning_rate": rates})
    for member, expected in zip(cells_of(tmp_path / "grid"), cells_of(together[0]), strict=True):
        if "discopop" not in member.name:
            assert_same_run(member, expected)
            continue
        summary = json.loads((member / "summary.json").read_text())
        assert (summary["state"], summary["divergence"]["step"]) == ("diverged", 1)
        assert not saved_steps(member / "checkpoints")


def test_a_lone_run_that_diverged_keeps_the_policy_that_it_diverged_with(
    inputs, tmp_path, monkeypatch
):
    """The next step is under way when the divergence is read, and must have changed nothing."""
    before, read = poison(monkeypatch, 0, at=5), []
    record = step_log.record_divergence

    def watched(prepared, state, *arguments):
        read.append((len(before), jax.tree.map(np.array, state.trainable)))
        return record(prepared, state, *arguments)

    monkeypatch.setattr(step_log, "record_divergence", watched)
    changes = {"train.mode": "lora", "lora.rank": 2, "train.eval_every": None, "train.epochs": 3}
    (summary,) = tiny_runs.run(inputs, tmp_path / "run", changes)
    assert (summary["state"], summary["divergence"]["step"]) == ("diverged", 5)
    ((steps, state),) = read
    assert steps == 7
    jax.tree.map(np.testing.assert_array_equal, state, before[5])
    assert saved_steps(tmp_path / "run" / "checkpoints") == {4}


# ---- what trains together ------------------------------------------------------------------------


def cells(root, **train):
    """Five cells of each of two seeds."""
    settings = {"loss": {"beta": [0.1, 0.2, 0.3, 0.4, 0.5]}, "seed": [0, 1], "output": str(root)}
    return cell_directories({**settings, "train": {"mode": "lora", **train}})


def test_a_grid_may_go_on_in_populations_of_another_size(tmp_path):
    """One that ran out of memory must; what a cell comes to is the same but for rounding."""
    first = cells(tmp_path / "grid", population=True)
    record_grid(first)
    first[0].create(facts(10))
    for population in (False, 1, 3):
        assert len(cells(tmp_path / "grid", population=population)) == 10
    with pytest.raises(ValueError, match=r"train\.batch_pairs is"):
        cells(tmp_path / "grid", batch_pairs=3)


@pytest.mark.parametrize(
    ("population", "sizes"),
    [(False, [1] * 10), (True, [5, 5]), ("3", [3, 2, 3, 2]), (8, [5, 5]), ("1", [1] * 10)],
)
def test_a_population_has_a_seed_and_a_largest_size(population, sizes, tmp_path):
    configs = [cell.config for cell in cells(tmp_path, population=population)]
    groups = populations(configs)
    assert list(map(len, groups)) == sizes
    assert sorted(map(configs.index, itertools.chain(*groups))) == list(range(10))
    for group in groups:
        assert len({cell.seed for cell in group}) == 1


def test_what_trains_together_does_not_depend_on_what_is_left(inputs, tmp_path, monkeypatch):
    """Three cells in populations of two, of which the first cell has ended."""
    changes = {**CELLS, "loss.name": "dpo", "loss.beta": [0.005, 0.01, 0.02], "train.max_steps": 1}
    settings = tiny_runs.settings(
        inputs, tmp_path / "grid", {**changes, "train.population": 2, "loss.tau": 1.0}
    )
    first, second, third = directories = cell_directories(settings)
    record_grid(directories)
    first.create(facts(10))
    first.finish({"state": "diverged", "steps": 0})
    trained = []

    def recording(experiment, configs, group, screen):
        trained.append([cell.path.name for cell in group])
        for cell in group:
            cell.finish({"state": "finished", "steps": 1})

    monkeypatch.setattr(grid, "train", recording)
    monkeypatch.setattr(grid, "check_cells", lambda *_: None)  # the recorded facts are invented
    run_experiment(settings, Screen(quiet=True))
    names = [cell.path.name for cell in (first, second, third)]
    assert trained == [names[:2], names[2:]]


def test_cells_go_on_together_that_have_a_step_in_common(tmp_path):
    """The states of an interrupted population, of one that is further, and of new cells."""
    five = cells(tmp_path)[:5]
    for cell, steps in zip(five, [(3, 4), (4, 6), (), (7,), ()], strict=True):
        for step in steps:
            (cell.path / "checkpoints" / str(step)).mkdir(parents=True)
    (five[2].path / "checkpoints" / "4.orbax-checkpoint-tmp-0").mkdir(parents=True)
    groups = [[five.index(cell) for cell in group] for group in grid._in_step(five)]
    assert groups == [[0, 1], [2, 4], [3]]


def test_a_population_of_lone_cells_is_told(inputs, tmp_path, monkeypatch):
    def dying(*_):
        raise Killed

    said = []
    monkeypatch.setattr(Screen, "say", lambda _, text: said.append(text))
    monkeypatch.setattr(grid, "prepare", dying)
    for seeds, warned in (([0, 1], True), ([0], True)):
        changes = {"train.mode": "lora", "train.population": True, "seed": seeds}
        with pytest.raises(Killed):
            tiny_runs.run(inputs, tmp_path / "grid", changes)
        assert any("train.population has no effect" in text for text in said) == warned
