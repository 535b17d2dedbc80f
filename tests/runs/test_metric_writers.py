"""What the trackers get: TensorBoard's HParams tab, and the runs of Weights & Biases."""

from __future__ import annotations

import struct
import sys
import types

import pytest
import tiny_runs
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from tddpo_jax.config.reading import resolve
from tddpo_jax.errors import UserError
from tddpo_jax.runs.metric_writers import Writer
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.runs.weights_and_biases import check_wandb


def directory_of(path, **train):
    """The directory of a run that has begun."""
    loss = {"name": "dpo", "beta": 0.25}
    settings = {"loss": loss, "seed": 3, "train": {"best_metric": "eval_loss", **train}}
    path.mkdir(parents=True)
    return RunDirectory(path, resolve(settings))


def write(directory, records):
    writer = Writer(directory)
    for record in records:
        writer.log(record)
    writer.close()


def hyperparameters(directory):
    """The settings in the last event that TensorBoard's plugin reads."""
    found = None
    for file in sorted((directory.path / "tensorboard").iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 12 + length + 4
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "hparams":
                    found = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    return dict(found.session_start_info.hparams)


def test_the_hparams_tab_has_the_settings_that_the_run_reads(tmp_path):
    directory = directory_of(tmp_path / "run")
    write(directory, [])
    shown = hyperparameters(directory)
    assert shown["loss.name"].string_value == "dpo"
    assert shown["loss.beta"].number_value == 0.25
    assert shown["seed"].number_value == 3
    assert shown["train.learning_rate"].number_value == 1e-5
    assert shown["train.wandb"].HasField("bool_value")
    assert not {"loss.tau", "lora.rank", "model.path"} & set(shown)


RECORDS = [
    {"step": 0, "eval_loss": 0.5},  # the base, which is no policy of the run
    {"step": 2, "eval_loss": 0.875},
    {"step": 2, "loss": 0.75},
    {"step": 4, "eval_loss": 0.625},
    {"step": 6, "eval_loss": 0.75},
]


def best_values(directory):
    return [each for each in tiny_runs.board(directory.path) if each[1].startswith("best/")]


def test_the_last_best_value_is_the_best_policys(tmp_path):
    directory = directory_of(tmp_path / "run")
    write(directory, RECORDS)
    assert best_values(directory) == [(2, "best/eval_loss", 0.875), (4, "best/eval_loss", 0.625)]


@pytest.mark.parametrize("kept", ["all", "nothing"])
def test_a_resumed_run_shows_each_value_once(kept, tmp_path):
    """A process that is killed may have kept its last events to itself."""
    directory = directory_of(tmp_path / "run")
    write(directory, RECORDS[:4])
    (events,) = (directory.path / "tensorboard").iterdir()
    # Else a quick resume has its name.
    events = events.rename(events.with_name("events.out.tfevents.1"))
    if kept == "nothing":
        events.write_bytes(b"")
    write(directory, RECORDS[4:])
    losses = [each[::2] for each in tiny_runs.board(directory.path) if each[1] == "eval_loss"]
    assert losses == [(0, 0.5), (2, 0.875), (4, 0.625), (6, 0.75)]
    assert best_values(directory) == [(2, "best/eval_loss", 0.875), (4, "best/eval_loss", 0.625)]


@pytest.fixture
def begun(monkeypatch):
    """The settings of every run that a stand-in for Weights & Biases has begun."""
    settings = []
    run = types.SimpleNamespace(log=lambda values, step: None, finish=lambda: None)

    def init(**given):
        settings.append(given)
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    return settings


def test_every_run_has_its_own_id_and_finds_it_again(tmp_path, begun):
    """Cells of two grids have the same names, and an id is unique in a project."""
    for grid in ("one", "two"):
        directory = directory_of(tmp_path / grid / "dpo-beta0.25-seed3", wandb=True)
        (tmp_path / grid / "grid.json").write_text("{}")
        write(directory, [])
        write(directory, [])
    first, resumed, second, _ = (given["id"] for given in begun)
    assert first == resumed
    assert first != second
    assert [given["name"] for given in begun] == ["dpo-beta0.25-seed3"] * 4
    assert [given["group"] for given in begun] == ["one", "one", "two", "two"]
    assert {given["resume"] for given in begun} == {"allow"}


def test_a_given_id_is_taken_and_kept(tmp_path, begun, monkeypatch):
    directory = directory_of(tmp_path / "run", wandb=True)
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    write(directory, [])
    monkeypatch.delenv("WANDB_RUN_ID")
    write(directory, [])
    assert [given["id"] for given in begun] == ["mine", "mine"]
    assert begun[0]["group"] is None


def test_one_id_cannot_be_that_of_several_cells(begun, monkeypatch):
    config = resolve({"train": {"wandb": True}})
    check_wandb(config, cells=2)
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    check_wandb(config, cells=1)
    check_wandb(resolve({}), cells=2)
    with pytest.raises(UserError, match="WANDB_RUN_ID: is the id of one run, but the grid has 2 c"):
        check_wandb(config, cells=2)
