"""A loss of one's own is one row: the schema, the command line, training and the report read it."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from jax.nn import softplus
from tiny_commands import run

from eval.experiment import read_experiment
from eval.report.__main__ import main
from eval.report.read.pair_metrics import pair_values
from tddpo_jax.config.cells import cell_name, expand, ignored_settings
from tddpo_jax.config.reading import read_yaml, resolve
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.losses.loss import BETA, Loss, Setting
from tddpo_jax.losses.pair_logps import scaled_margin

SHORT = {"train.max_steps": 2, "train.eval_every": None}


def cautious(pairs, *, beta, caution, form):
    """DPO whose margin must exceed a number of nats."""
    missing = caution - scaled_margin(pairs, beta)
    return softplus(missing) if form == "smooth" else jnp.maximum(missing, 0)


ROW = Loss(
    cautious,
    {
        "beta": BETA,
        "caution": Setting(default=0.25, at_least=0.0, help="nats that the margin must exceed"),
        "form": Setting(default="smooth", choices=("smooth", "sharp"), help="of the edge"),
    },
)


@pytest.fixture
def own_loss(monkeypatch):
    monkeypatch.setitem(LOSSES, "cautious", ROW)


def test_without_its_row_it_is_not_there():
    with pytest.raises(ValueError, match=r"^loss\.caution: no such setting$"):
        resolve({"loss": {"caution": 0.5}})
    with pytest.raises(ValueError, match=r"^loss\.name: "):
        resolve({"loss": {"name": "cautious"}})


def test_a_configuration_has_its_settings(own_loss):
    config = resolve({"loss": {"name": "cautious", "caution": "0.5"}})
    assert (config.loss.caution, config.loss.form, config.loss.beta) == (0.5, "smooth", 0.05)
    assert config.model_dump()["loss"]["caution"] == 0.5
    assert ignored_settings(config) == []
    unread = resolve({"loss": {"name": "cautious", "tau": 2, "label_smoothing": 0.1}})
    assert ignored_settings(unread) == ["loss.label_smoothing", "loss.tau"]
    assert ignored_settings(resolve({"loss": {"caution": 0.5}})) == ["loss.caution"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"caution": -1}, r"^loss\.caution: must be at least 0, got -1$"),
        ({"form": "round"}, r"^loss\.form: .*'smooth' or 'sharp', got 'round'$"),
        ({"beta": 0}, r"^loss\.beta: must be above 0 for cautious, got 0$"),
    ],
)
def test_its_mistakes_are_told_like_others(own_loss, settings, message):
    with pytest.raises(ValueError, match=message):
        resolve({"loss": {"name": "cautious", **settings}})


def test_the_command_line_has_its_settings(own_loss, capsys):
    assert run("train", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--loss.caution CAUTION [CAUTION ...] nats that the margin must exceed; read by" in text
    assert run("train", "--loss", "cautious", "--loss.caution", "-1") == 2
    assert capsys.readouterr().err.startswith("error: loss.caution: ")


def test_a_grid_gives_it_no_axis_that_it_does_not_read(own_loss):
    cells = expand({"loss": {"name": ["td_dpo", "cautious"], "tau": [0.5, 1], "caution": 0.5}})
    names = [cell_name(resolve(cell)) for cell in cells]
    assert names == [
        "td_dpo-beta0.05-tau0.5-seed0",
        "td_dpo-beta0.05-tau1.0-seed0",
        "cautious-beta0.05-seed0",
    ]


@pytest.mark.usefixtures("one_device", "own_loss")
def test_it_trains_beside_others_and_has_a_report(inputs, tmp_path):
    """Before the first update all margins are 0, so the loss is softplus(caution)."""
    changes = {**SHORT, "loss.name": ["cautious", "dpo"], "loss.caution": 0.5}
    tiny_runs.run(inputs, tmp_path, changes)
    cell = tmp_path / "cautious-beta0.05-seed0"
    assert tiny_runs.training_lines(cell)[0]["loss"] == pytest.approx(np.logaddexp(0.5, 0))
    other = tiny_runs.training_lines(tmp_path / "dpo-beta0.05-seed0")
    assert other[0]["loss"] == pytest.approx(np.log(2))
    assert read_yaml(cell / "config.yaml")["loss"]["caution"] == 0.5

    assert main([str(tmp_path)]) == 0
    card = json.loads((tmp_path / "experiment.json").read_text())
    methods = [card["proposed_method"], *card["comparative_methods"]]
    assert "cautious: DPO whose margin must exceed a number of nats." in methods
    for own in read_experiment(tmp_path).cells:
        means = pair_values(own)["loss"].mean(axis=1)
        assert len(means) == len(own.validations) > 0
        np.testing.assert_allclose(
            means, [line["eval_loss"] for line in own.validations], rtol=1e-5
        )


@pytest.mark.usefixtures("one_device", "own_loss")
def test_its_texts_are_compiled_into_the_step(inputs, tmp_path):
    """At margins of 0 the sharp form is the caution itself."""
    changes = {**SHORT, "loss.name": "cautious", "loss.caution": 0.5, "loss.form": "sharp"}
    tiny_runs.run(inputs, tmp_path, changes)
    assert tiny_runs.training_lines(tmp_path)[0]["loss"] == pytest.approx(0.5)


@pytest.mark.usefixtures("one_device")
def test_a_later_loss_breaks_no_earlier_run_and_no_earlier_grid(inputs, tmp_path, monkeypatch):
    """Their files lack its settings, which their losses do not read."""
    one, several = tmp_path / "run", tmp_path / "grid"
    of_grid = {**SHORT, "loss.name": ["dpo"], "loss.beta": [0.1, 0.2]}
    tiny_runs.run(inputs, one, SHORT)
    tiny_runs.run(inputs, several, of_grid)
    monkeypatch.setitem(LOSSES, "cautious", ROW)
    before = tiny_runs.times(tmp_path)
    tiny_runs.run(inputs, one, SHORT)
    # What a run does not read may change as well.
    tiny_runs.run(inputs, one, {**SHORT, "loss.caution": 0.5, "loss.label_smoothing": 0.1})
    assert tiny_runs.times(tmp_path) == before
    tiny_runs.run(inputs, several, {**of_grid, "loss.name": ["dpo", "cautious"]})
    assert len(list(several.glob("cautious-*/summary.json"))) == 2


@pytest.mark.usefixtures("one_device")
def test_another_loss_is_another_run_and_its_settings_are_not_listed(inputs, tmp_path):
    tiny_runs.run(inputs, tmp_path, SHORT)
    with pytest.raises(ValueError, match=r"configuration: loss\.name is td_dpo, asked for dpo$"):
        tiny_runs.run(inputs, tmp_path, {**SHORT, "loss.name": "dpo"})
