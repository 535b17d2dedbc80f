"""Who is to blame: a user's mistake is one line and status 2, ours a traceback and status 1."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT

from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.config.cells import expand
from tddpo_jax.config.reading import resolve
from tddpo_jax.config.schema import MeshConfig
from tddpo_jax.data.sources import read_rows
from tddpo_jax.errors import UserError
from tddpo_jax.generation import sampling
from tddpo_jax.models.attention.kernels import causal_rows_attention
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.runs.run_directory import check_output
from tddpo_jax.system import json_lines
from tddpo_jax.system.cache import cache_folder
from tddpo_jax.system.json_files import read_object
from tddpo_jax.weights import locate

MISSING = Path("no/such/file.jsonl")
QUERIES = jnp.zeros((1, 3, 1, 8), jnp.bfloat16)


def _from_here() -> None:
    raise UserError("loss.mine: a function of the user's\nown package")


# A wrong input to each of several folders, and how its line begins.
MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "config": (lambda: resolve({"loss": {"beta": -1}}), "loss.beta: "),
    "config, cells": (lambda: expand({"seed": []}), "seed: the list of values is empty"),
    "data": (lambda: read_rows(MISSING), "data no/such/file.jsonl: no such file"),
    "generation": (lambda: sampling.check(sampling.Sampling(top_p=2.0)), "top_p: 2.0 is out"),
    "placement": (lambda: make_mesh(MeshConfig(data=7)), "mesh: "),
    "runs": (lambda: check_output(Path(__file__) / "run"), "output: "),
    "system": (lambda: read_object(MISSING), "no/such/file.jsonl: No such file"),
    "weights": (lambda: locate.resolve("no folder"), "model.path: 'no folder' is neither a folder"),
    "eval": (lambda: json_lines.read_rows(MISSING, json_lines.Row), "no/such/file.jsonl: No such"),
    "elsewhere": (_from_here, "loss.mine: a function of the user's own package"),
}
# A wrong call of each of several folders, which no input of a user can cause.
FAULTS: dict[str, Callable[[], object]] = {
    "generation": lambda: sampling.check_keys([(0, 1), (2,)]),
    "models": lambda: causal_rows_attention(*[QUERIES] * 3, (), kernel="cudnn"),
    "elsewhere": lambda: int("wrong"),
    "a package's": lambda: np.zeros(2).reshape(3),
}


def running(what: Callable[[], object]) -> Callable[..., int]:
    """A command that does this."""

    def command(_: object) -> int:
        what()
        return 0

    return command


@pytest.mark.parametrize("folder", MISTAKES)
def test_a_users_mistake_is_one_line_wherever_it_is_found(folder, capsys):
    mistake, beginning = MISTAKES[folder]
    assert run_command(running(mistake), [], resumes=True) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {beginning}")


def test_a_file_that_must_not_be_written_is_one_line(capsys):
    """Root may write everywhere but in the kernel's own folders."""
    assert run_command(running(lambda: Path("/sys/no_run").mkdir()), [], resumes=True) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: /sys/no_run: ")


def test_a_cache_that_cannot_be_made_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TDDPO_CACHE", str(tmp_path / "file"))
    assert run_command(running(cache_folder), [], resumes=True) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: TDDPO_CACHE: the cache's folder {tmp_path / 'file'} cannot")


@pytest.mark.parametrize(
    "failure",
    [
        OSError(28, "No space left on device", "runs/x/metrics.jsonl"),
        RuntimeError("RESOURCE_EXHAUSTED: Error writing\nfile: No space left on device"),
    ],
)
def test_a_full_disk_is_told_in_one_line(failure, capsys):
    """Whoever met it: Python, or a library that passes on what the kernel said."""

    def command(_):
        raise failure

    assert run_command(command, [], resumes=True) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the disk is full: ")
    assert line.endswith("the same command resumes")


def test_an_interrupted_command_says_how_to_go_on(capsys):
    def command(_):
        raise KeyboardInterrupt

    assert run_command(command, [], resumes=True) == 130
    assert capsys.readouterr().err == "interrupted; the same command resumes\n"


@pytest.mark.parametrize("folder", FAULTS)
def test_a_fault_of_ours_is_left_as_it_is(folder, capsys):
    with pytest.raises(ValueError, match=r"\w") as caught:
        run_command(running(FAULTS[folder]), [], resumes=True)
    assert not isinstance(caught.value, UserError)
    assert capsys.readouterr().err == ""


def test_a_fault_of_ours_shows_its_traceback_and_ends_with_status_1():
    script = """
import sys
from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.generation.sampling import check_keys
sys.exit(run_command(lambda _: check_keys([(0, 1), (2,)]), [], resumes=True))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    first, *_, last = result.stderr.splitlines()
    assert first == "Traceback (most recent call last):"
    assert "sampling.py" in result.stderr
    assert last.startswith("ValueError: keys: ")
