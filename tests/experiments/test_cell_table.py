"""The table of cells: what it reads from the files of runs, and what fits a terminal."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from tddpo_jax.experiments import cell_table
from tddpo_jax.experiments.cell_table import CellTable
from tddpo_jax.runs.grid_directory import cell_directories
from tddpo_jax.system.console import Screen

STEPS = 10


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the table sees, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(cell_table.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def cells(tmp_path):
    """Three directories of runs, empty."""
    directories = cell_directories({"loss": {"beta": [0.1, 0.2, 0.3]}, "output": str(tmp_path)})
    for directory in directories:
        directory.path.mkdir()
    return directories


def step(number, loss=0.5):
    return {"step": number, "loss": loss, "rewards/accuracies": 0.625}


def validation(steps, accuracy):
    return {"step": steps, "eval_loss": 0.6, "eval_rewards/accuracies": accuracy}


def finish(cell, divergence=None):
    best = {"step": 10, "eval_rewards/accuracies": 0.875}
    summary = {"steps": divergence["step"] if divergence else STEPS, "divergence": divergence}
    summary["state"] = "diverged" if divergence else "finished"
    cell.finish({**summary, "best_metric": "eval_rewards/accuracies", "best": best})


def lines(table, height=None, width=80):
    """What the table looks like, without its head."""
    console = Console(file=io.StringIO(), width=width)
    console.print(table.draw(height))
    return [line.split() for line in console.file.getvalue().splitlines()][1:]


def name(cell):
    return cell.path.name


def test_a_cell_at_work_shows_its_last_step_and_the_time_left(cells, clock):
    """Two seconds a step: twelve for the other six steps of the cell, 52 for the grid's 26."""
    table = CellTable(cells, STEPS)
    for record in (validation(0, 0.5), step(0)):
        cells[0].log(record)
    clock[0] += 2
    with table.training([cells[0]], Screen(quiet=True)):
        lines(table)
        for number in (1, 2, 3):
            cells[0].log(step(number, loss=0.25))
        cells[0].log(validation(4, 0.75))
        clock[0] += 6
        first, second, _, whole = lines(table)
        finish(cells[0])
    assert first == [name(cells[0]), "training", "4/10", "0.2500", "0.6250", "0.7500", "12", "s"]
    assert second == [name(cells[1]), "waiting", "0/10"]
    assert " ".join(whole) == "0 of 3 cells finished, left 52 s"


def test_a_cell_of_another_process_is_known_by_what_it_writes_or_by_its_claim(cells, clock):
    table = CellTable(cells, STEPS)
    cells[0].log(step(0))
    table.refuse([cells[1]])
    clock[0] += 2
    assert [row[1] for row in lines(table)[:3]] == ["elsewhere", "elsewhere", "waiting"]
    clock[0] += 2 * cell_table.QUIET_SECONDS
    assert [row[1] for row in lines(table)[:3]] == ["waiting", "elsewhere", "waiting"]


def test_what_was_there_before_belongs_to_no_process(cells, clock):
    """An interrupted run is waiting, and its steps say nothing of the pace."""
    cells[0].log(step(4))
    row, *_, whole = lines(CellTable(cells, STEPS))
    assert row[:3] == [name(cells[0]), "waiting", "5/10"]
    assert whole[-1] == "--"


def test_a_resumed_cell_goes_back_to_its_checkpoint(cells, clock):
    table = CellTable(cells, STEPS)
    for number in range(6):
        cells[0].log(step(number))
    clock[0] += 2
    assert lines(table)[0][2] == "6/10"
    cells[0].rewind(3)
    clock[0] += 2
    assert lines(table)[0][2] == "3/10"


def test_a_torn_line_is_read_when_it_is_whole(cells, clock):
    table = CellTable(cells, STEPS)
    text = json.dumps(step(0)) + "\n"
    with (cells[0].path / "metrics.jsonl").open("a") as file:
        for part, shown in ((text[:9], "0/10"), (text[9:], "1/10")):
            file.write(part)
            file.flush()
            clock[0] += 2
            assert lines(table)[0][2] == shown


def test_cells_that_are_over_say_how(cells, clock, capsys):
    table = CellTable(cells, STEPS)
    divergence = {"step": 4, "reason": "loss is not finite at step 4", "rows": [], "metrics": {}}
    with table.training(cells[:2], Screen()):
        clock[0] += 100
        finish(cells[0])
        cells[1].diverge(divergence)
        finish(cells[1], divergence)
    assert [row[1:3] for row in lines(table)[:3]] == [
        ["done", "10/10"],
        ["diverged", "4/10"],
        ["waiting", "0/10"],
    ]
    first, second = name(cells[0]), name(cells[1])
    assert capsys.readouterr().out.splitlines() == [
        f"{first}: training",
        f"{second}: training",
        f"{first}: done in 1:40, best eval_rewards/accuracies 0.875 at step 10; "
        "2 of 3 cells finished",
        f"{second}: diverged after 1:40, at step 4; 2 of 3 cells finished",
    ]


def test_a_low_terminal_shows_what_is_in_work_and_what_ended_last(tmp_path, clock):
    """Sixty cells on 12 lines: five of them, in the order of the grid, and a count of the rest."""
    axes = {"loss": {"beta": [0.1, 0.2, 0.3, 0.4]}, "seed": list(range(15))}
    cells = cell_directories({**axes, "output": str(tmp_path)})
    for cell in cells:
        cell.path.mkdir()
    table = CellTable(cells, STEPS)
    for number in (7, 40, 3, 20):
        finish(cells[number])
        clock[0] += 2
        lines(table)
    table.refuse([cells[30]])
    with table.training([cells[10]], Screen(quiet=True)):
        *shown, rest, whole = lines(table, height=12)
        finish(cells[10])
    found = [row[0] for row in shown]
    assert found == [name(cells[number]) for number in (3, 10, 20, 30, 40)]
    assert " ".join(rest) == "... and 1 done, 54 waiting"
    assert " ".join(whole).startswith("4 of 60 cells finished, left ")
    assert len(lines(table)) == 61


def test_nothing_is_cut_on_eighty_columns(tmp_path, clock):
    axes = {"loss": {"name": "sigmoid_norm", "beta": [0.05, 2.5]}, "seed": 10}
    cells = cell_directories({**axes, "output": str(tmp_path)})
    cells[0].path.mkdir()
    table = CellTable(cells, 1590)
    table.refuse(cells)
    cells[0].log(step(1000, loss=123.4567))
    clock[0] += 2
    console = Console(file=io.StringIO(), width=80)
    console.print(table.draw())
    assert "…" not in console.file.getvalue()
    assert name(cells[0]) in console.file.getvalue()
