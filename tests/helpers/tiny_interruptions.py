"""Interrupts runs before their end, and compares runs to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs

from tddpo_jax.runs.metric_writers import Writer
from tddpo_jax.training.checkpoints import Checkpoints


class Killed(Exception):
    """Simulates the death of the process."""


def killed_run(
    inputs: tiny_runs.Inputs,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Callable,
    changes: dict | None = None,
) -> None:
    """Starts a run that is killed where `where`, a patch of the trainer, raises `Killed`."""
    with monkeypatch.context() as patch:
        where(patch)
        with pytest.raises(Killed):
            tiny_runs.run(inputs, directory, changes)
    assert not (directory / "summary.json").exists()


def on_line(matches: Callable[[Path, dict], bool]) -> Callable:
    """Kills a run after it has written a line of metrics for which `matches` is true.

    Args:
        matches: takes the run's directory and the line.
    """

    def where(patch: pytest.MonkeyPatch) -> None:
        log = Writer.log

        def dying_log(self: Writer, record: dict) -> None:
            log(self, record)
            if matches(self.directory.path, record):
                raise Killed

        patch.setattr(Writer, "log", dying_log)

    return where


def before_save(step: int, name: str = "") -> Callable:
    """Kills a run before it saves the state after `step` steps, in a folder with `name` in it."""

    def where(patch: pytest.MonkeyPatch) -> None:
        save = Checkpoints.save

        def dying_save(self: Checkpoints, at: int, state: Any) -> None:
            if at == step and name in str(self.folder):
                raise Killed
            save(self, at, state)

        patch.setattr(Checkpoints, "save", dying_save)

    return where


def assert_same_run(directory: Path, expected: Path) -> None:
    """Checks for equal metrics, validations, summary, export and last state, to the last bit."""
    found, wanted = (tiny_runs.untimed(tiny_runs.lines(run)) for run in (directory, expected))
    assert found == wanted
    assert tiny_runs.untimed_board(directory) == tiny_runs.untimed_board(expected)
    assert tiny_runs.board_texts(directory) == tiny_runs.board_texts(expected)
    for name in ("config.yaml", "run.json"):
        assert (directory / name).read_text() == (expected / name).read_text()
    summaries = [json.loads((run / "summary.json").read_text()) for run in (directory, expected)]
    assert summaries[0] == summaries[1]
    for folder in ("best", "evaluations"):
        there, here = (unnamed(contents(run / folder), run) for run in (expected, directory))
        assert here == there
    states = [tiny_runs.last_state(run) for run in (directory, expected)]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name], err_msg=name)


def unnamed(files: dict[str, bytes], run: Path) -> dict[str, bytes]:
    """The files without the run's name, which the heading of its model card holds."""
    card, heading = files.get("README.md"), f"# {run.name}\n".encode()
    return files if card is None else {**files, "README.md": card.replace(heading, b"", 1)}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}
