"""Cells with and without LD-DPO's weight train in one program, from one reference pass."""

import json

import numpy as np
import pytest
import tiny_runs

from eval.experiment import read_experiment
from eval.report.__main__ import main
from eval.report.read.pair_metrics import pair_values
from tddpo_jax.config.reading import read_yaml

CHANGES = {"loss.name": "dpo", "train.max_steps": 2, "train.eval_every": None}
NAMES = [f"dpo-beta0.05-ld_alpha{alpha}-seed0" for alpha in (1.0, 0.0)]


@pytest.fixture(scope="module")
def grid(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoupled") / "grid"
    with tiny_runs.compilations() as counts:
        tiny_runs.run_on_one_device(inputs, folder, {**CHANGES, "loss.ld_alpha": [1.0, 0.0]})
    assert counts["add_gradients"] == 1
    return folder


@pytest.mark.usefixtures("one_device")
def test_at_one_a_cell_is_plain_and_at_zero_it_is_not(grid, inputs, tmp_path):
    tiny_runs.run(inputs, tmp_path, CHANGES)
    plain, whole, shared = (
        [line["loss"] for line in tiny_runs.training_lines(folder)]
        for folder in (tmp_path, *(grid / name for name in NAMES))
    )
    assert whole == pytest.approx(plain, rel=1e-6)
    assert shared[0] == pytest.approx(np.log(2), abs=1e-6)
    assert shared[1] != pytest.approx(plain[1], rel=1e-6)


def test_a_run_of_an_earlier_version_had_no_weight(grid, inputs):
    """Its settings lack `ld_alpha`, and it is the run of the weight 1."""
    config = grid / NAMES[0] / "config.yaml"
    text = config.read_text()
    config.write_text("".join(line for line in text.splitlines(True) if "ld_alpha" not in line))
    assert "ld_alpha" not in read_yaml(config)["loss"]
    before = tiny_runs.times(grid)
    tiny_runs.run(inputs, grid, {**CHANGES, "loss.ld_alpha": [1.0, 0.0]})
    assert tiny_runs.times(grid) == before
    config.write_text(text)


def test_the_report_does_not_make_up_what_no_file_holds(grid):
    whole, shared = (pair_values(cell) for cell in read_experiment(grid).cells[::-1])
    assert np.isfinite(whole["loss"]).all()
    assert np.isnan(shared["loss"]).all()
    assert np.isfinite(shared["rewards/accuracies"]).all()
    assert main([str(grid)]) == 0
    assert json.loads((grid / "experiment.json").read_text())["results"]["cells"]
