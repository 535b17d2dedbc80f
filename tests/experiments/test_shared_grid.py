"""Whole processes on one grid directory: they share its cells, are killed, and lose none."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_runs
import yaml
from places import ROOT

from eval.report.analysis import analyse
from eval.report.pages.results_csv import results_csv
from tddpo_jax.commands.submit import Jobs, submit


@pytest.fixture(autouse=True)
def keep_programs(monkeypatch):
    """Processes keep what compiles fast, too."""
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def start(settings):
    """`python run.py` with these settings."""
    config = Path(f"{settings['output']}.yaml")
    config.write_text(yaml.safe_dump(settings))
    return subprocess.Popen(
        [sys.executable, "run.py", "--config", str(config)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_until(true, process):
    """Until something is true, while a process is alive."""
    while not true():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)


def has_lines(directory, count):
    file = directory / "metrics.jsonl"
    return file.exists() and file.read_text().count("\n") >= count


def has_checkpoint(directory):
    return any(path.name.isdigit() for path in directory.glob("checkpoints/*"))


def states(grid):
    return {
        file.parent.name: json.loads(file.read_text())["state"]
        for file in grid.glob("*/summary.json")
    }


def begun(output):
    """The cells that a process says it trains."""
    return re.findall(r"^(\S+): training$", output, re.MULTILINE)


def test_two_processes_share_the_cells_and_both_train_some(inputs, tmp_path):
    """The first is halted within its first cell until the second has finished another."""
    grid = tmp_path / "grid"
    settings = tiny_runs.settings(inputs, grid, {"loss.beta": [0.05, 0.1, 0.5]})
    cells = [f"td_dpo-beta{beta}-tau1.0-seed0" for beta in (0.05, 0.1, 0.5)]
    with start(settings) as one:
        wait_until(lambda: has_lines(grid / cells[0], 3), one)
        one.send_signal(signal.SIGSTOP)
        with start(settings) as other:
            wait_until(lambda: states(grid), other)
            one.send_signal(signal.SIGCONT)
            outputs = [process.communicate(timeout=300)[0] for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0)
    of_one, of_other = map(begun, outputs)
    assert of_one[0] == cells[0]
    assert of_other[0] == cells[1]
    assert sorted([*of_one, *of_other]) == sorted(cells)
    assert states(grid) == dict.fromkeys(cells, "finished")
    assert not any("resuming" in output for output in outputs)


def test_processes_share_the_cells_and_a_killed_one_loses_none(inputs, tmp_path):
    """A process is stopped within its first cell, two jobs take the others, and it is killed."""
    grid = tmp_path / "grid"
    axes = {"loss.name": ["td_dpo", "dpo"], "loss.beta": [0.05, 0.1, 0.5]}
    settings = tiny_runs.settings(inputs, grid, axes)
    first = grid / "td_dpo-beta0.05-tau1.0-seed0"
    with start(settings) as killed:
        wait_until(lambda: has_lines(first, 5), killed)
        killed.send_signal(signal.SIGSTOP)
        jobs = submit(settings, Jobs("local", workers=2))
        wait_until(lambda: len(states(grid)) >= 3, killed)
        killed.kill()
        its_cells = begun(killed.stdout.read())
    for job in jobs:
        job.result()
    trained = begun("".join(job.paths.stdout.read_text() for job in jobs))
    assert its_cells == [first.name]
    assert len(trained) == len(set(trained)) == 6
    assert states(grid) == dict.fromkeys(trained, "finished")
    for cell in trained:
        steps = [line["step"] for line in tiny_runs.training_lines(grid / cell)]
        assert steps == list(range(8))


def untimed_results(grid):
    """`results.csv` without its last column, which is a timing."""
    return [row[:-1] for row in csv.reader(io.StringIO(results_csv(analyse(grid))))]


def test_a_grid_killed_twice_gives_the_results_of_an_uninterrupted_one(inputs, tmp_path):
    axes = {"loss.name": ["td_dpo", "dpo"], "loss.beta": [0.05, 0.5]}
    whole, grid = (tiny_runs.settings(inputs, tmp_path / name, axes) for name in ("whole", "grid"))
    outputs = []
    with start(whole) as uninterrupted:
        for cell in ("td_dpo-beta0.5-tau1.0-seed0", "dpo-beta0.05-seed0"):
            with start(grid) as killed:
                wait_until(lambda cell=cell: has_checkpoint(tmp_path / "grid" / cell), killed)
                killed.kill()
                outputs.append(killed.stdout.read())
            assert killed.returncode == -signal.SIGKILL
        with start(grid) as restarted:
            outputs.append(restarted.communicate(timeout=300)[0])
        uninterrupted.communicate(timeout=300)
    assert (uninterrupted.returncode, restarted.returncode) == (0, 0)
    # Each restart goes on in the middle of the cell that was being trained.
    assert [output.count("resuming after step") for output in outputs] == [0, 1, 1]
    assert "2 of 4 cells already finished" in outputs[-1]
    assert begun(outputs[-1]) == ["dpo-beta0.05-seed0", "dpo-beta0.5-seed0"]
    results = untimed_results(tmp_path / "grid")
    assert len(results) == 5
    assert results == untimed_results(tmp_path / "whole")
