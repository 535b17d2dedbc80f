"""A run keeps the text of its own loss; with another text it does not resume."""

import json
import shutil

import own_losses
import pytest
import tiny_runs

from eval.report.__main__ import main
from tddpo_jax.config.reading import read_yaml
from tddpo_jax.errors import UserError
from tddpo_jax.losses.objective import objective_of
from tddpo_jax.runs.grid_directory import cell_directories, record_grid, recorded_losses
from tddpo_jax.runs.run_directory import LOSS_FILE

CELLS = [f"my_dpo-beta0.05-margin_scale{scale}-seed0" for scale in (1.0, 2.0)]


def settings(inputs, folder, *more):
    names = [f"{folder}/mine.py:my_dpo", *more]
    changes = {
        "loss.name": names[0] if len(names) == 1 else names,
        "loss.set.margin_scale": [1.0, 2.0],
        "train.max_steps": 2,
        "train.eval_every": None,
    }
    return tiny_runs.settings(inputs, folder / "grid", changes)


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """A folder with a loss's file and a grid of two of its cells."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(own_losses.__file__, folder / "mine.py")
    with pytest.MonkeyPatch.context() as patch:
        tiny_runs.use_devices(patch, 1)
        tiny_runs.run_experiment(settings(inputs, folder), tiny_runs.Screen(quiet=True))
    return folder


@pytest.fixture
def own(trained, tmp_path):
    """A copy of that folder: it has moved."""
    return shutil.copytree(trained, tmp_path / "copy")


def test_the_loss_trains_as_ours_does_and_its_numbers_are_arguments(trained, inputs, tmp_path):
    """At the scale 1 it is DPO."""
    changes = {"loss.name": "dpo", "train.max_steps": 2, "train.eval_every": None}
    tiny_runs.run_on_one_device(inputs, tmp_path, changes)
    ours, scaled, own = (
        [line["loss"] for line in tiny_runs.training_lines(folder)]
        for folder in (tmp_path, trained / "grid" / CELLS[1], trained / "grid" / CELLS[0])
    )
    assert own == pytest.approx(ours, rel=1e-5)
    assert scaled[0] == pytest.approx(own[0], rel=1e-6)  # log 2
    assert scaled[1] != pytest.approx(own[1], rel=1e-6)


def test_a_run_keeps_the_text_and_names_the_file(trained):
    for cell in CELLS:
        folder = trained / "grid" / cell
        assert (folder / LOSS_FILE).read_text() == (trained / "mine.py").read_text()
        assert read_yaml(folder / "config.yaml")["loss"]["name"] == f"{trained}/mine.py:my_dpo"


def test_a_moved_file_is_the_same_loss(own, inputs):
    assert all(cell.summary for cell in cell_directories(settings(inputs, own)))


def test_a_command_without_the_loss_makes_the_program_of_the_whole_grid(own, inputs):
    """It is the program with which the grid began, even if the loss's file is gone."""
    whole = cell_directories(settings(inputs, own, "dpo"))
    record_grid(whole)
    (own / "mine.py").unlink()
    part = {**settings(inputs, own), "loss": {"name": "dpo", "beta": [0.05, 0.1]}}
    few = cell_directories(part)
    kept = objective_of([*recorded_losses(few), *(cell.config.loss.settings for cell in few)])
    assert [term.loss.name for term in kept.terms] == ["my_dpo", "dpo"]
    assert kept == objective_of(cell.config.loss.settings for cell in whole)


def test_a_part_of_a_grid_with_tails_makes_the_program_of_the_whole(inputs, tmp_path):
    """Its own cells may weigh no tails."""

    def cells(*alphas):
        changes = {"loss.name": "dpo", "loss.ld_alpha": list(alphas), "seed": [0, 1]}
        return cell_directories(tiny_runs.settings(inputs, tmp_path / "grid", changes))

    whole = cells(1.0, 0.5)
    record_grid(whole)
    few = cells(1.0)
    kept = objective_of([*recorded_losses(few), *(cell.config.loss.settings for cell in few)])
    assert kept == objective_of(cell.config.loss.settings for cell in whole)


def test_a_grid_has_one_value_of_a_number_that_is_no_axis(inputs, tmp_path):
    """And a loss may have other defaults than ours, whichever of them a command names."""
    file = own_losses.__file__

    def cells(*names, gate):
        changes = {"loss.name": list(names), "seed": [0, 1], "loss.set.gate": gate}
        mine = any(name.endswith("needs_gate") for name in names)
        changes = changes if mine else {**changes, "loss.set": {}}
        return cell_directories(tiny_runs.settings(inputs, tmp_path / "grid", changes))

    both = cells(f"{file}:needs_gate", "dpo", gate=1)
    record_grid(both)
    assert {cell.path.name for cell in cells("dpo", gate=None)} < {cell.path.name for cell in both}
    with pytest.raises(UserError, match=r"loss\.set\.needs_gate\.gate is 1\.0, asked for 2\.0$"):
        cells(f"{file}:needs_gate", gate=2)


@pytest.mark.parametrize("more", [(), ("dpo",)])
def test_a_changed_file_is_refused(own, inputs, more):
    with (own / "mine.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(UserError, match=r"^loss\.name: .*my_dpo has changed since .* began$"):
        cell_directories(settings(inputs, own, *more))


def test_a_changed_lone_run_is_refused(own, inputs):
    with (own / "mine.py").open("a") as file:
        file.write("# changed\n")
    lone = {**settings(inputs, own), "output": str(own / "grid" / CELLS[0])}
    lone["loss"] = {"name": f"{own}/mine.py:my_dpo"}
    with pytest.raises(UserError, match=r"^loss\.name: .*mine.py:my_dpo has changed since"):
        cell_directories(lone)


def test_a_report_reads_the_kept_text(own):
    (own / "mine.py").write_text("raise SystemExit\n")
    assert main([str(own / "grid")]) == 0
    card = json.loads((own / "grid" / "experiment.json").read_text())
    assert card["proposed_method"] == "my_dpo: DPO whose margin is scaled once more."
    searched = {axis["name"]: axis["range"] for axis in card["hyperparameters_to_search"]}
    assert searched["margin_scale"] == [1.0, 2.0]


def test_a_report_knows_a_cell_that_has_not_begun(own):
    shutil.rmtree(own / "grid" / CELLS[1])
    assert main([str(own / "grid")]) == 0
    cells = json.loads((own / "grid" / "experiment.json").read_text())["results"]["cells"]
    assert cells[CELLS[1]] == "missing"


def test_two_texts_of_one_loss_are_not_compared(own, capsys):
    (own / "grid" / "grid.json").unlink()
    with (own / "grid" / CELLS[0] / LOSS_FILE).open("a") as file:
        file.write("# changed\n")
    assert main([str(own / "grid")]) == 2
    assert "differ: name the losses apart" in capsys.readouterr().err


@pytest.mark.usefixtures("one_device")
def test_a_loss_that_is_not_pure_is_refused_before_training(inputs, tmp_path):
    name = f"{own_losses.__file__}:keeps_a_tracer"
    with pytest.raises(UserError, match=r"^loss\.name: keeps_a_tracer: is not pure"):
        tiny_runs.run(inputs, tmp_path / "run", {"loss.name": name})
    assert not (tmp_path / "run").exists()
