"""Several processes on one grid: no cell twice, and none lost with a killed process."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from tddpo_jax.experiments import grid
from tddpo_jax.experiments.cell_table import CellTable
from tddpo_jax.runs import locks
from tddpo_jax.runs.grid_directory import cell_directories, record_grid
from tddpo_jax.runs.locks import alone_in, claim
from tddpo_jax.runs.run_directory import LOCK_FILE
from tddpo_jax.system.console import Screen
from tddpo_jax.training.prepare import Experiment

HOLDER = """
import sys, time
from pathlib import Path
from tddpo_jax.runs.locks import claim
with claim([Path(name) for name in sys.argv[1:]]) as held:
    print(held, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process():
    """Starts processes that claim runs and say whether they hold them; kills them at the end."""
    started = []

    def start(*runs):
        command = [sys.executable, "-c", HOLDER, *map(str, runs)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, process.stdout.readline().strip() == "True"

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_cell_has_one_holder_until_it_dies(tmp_path, other_process):
    holder, held = other_process(tmp_path / "a")
    assert held
    with claim([tmp_path / "a"]) as ours:
        assert not ours
    with claim([tmp_path / "b"]) as ours:
        assert ours
        assert other_process(tmp_path / "b")[1] is False
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with claim([tmp_path / "a"]) as ours:
        assert ours


def test_the_lock_says_who_holds_it(tmp_path, other_process):
    (tmp_path / LOCK_FILE).write_text("a host with a long name 123456789\n")
    holder, _ = other_process(tmp_path)
    with claim([tmp_path]) as ours:
        assert not ours
    assert (tmp_path / LOCK_FILE).read_text() == f"{socket.gethostname()} {holder.pid}\n"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_line(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    for holding in (claim([tmp_path]), alone_in(tmp_path)):
        with pytest.raises(ValueError, match="system does not support locks") as error, holding:
            pass
        assert str(tmp_path) in str(error.value)
        assert os.strerror(number) in str(error.value)


def test_two_commands_that_record_a_grid_at_once_lose_no_cell(tmp_path):
    low, high = (
        cell_directories({"loss": {"name": "dpo", "beta": betas}, "output": str(tmp_path)})
        for betas in ([0.1, 0.2], [0.3, 0.4])
    )
    record_grid(low)
    recorder = threading.Thread(target=record_grid, args=[high])
    with alone_in(tmp_path):
        recorder.start()
        recorder.join(0.5)
        assert recorder.is_alive(), "nobody may read while another is about to write"
        cells = json.loads((tmp_path / "grid.json").read_text())["cells"]
        assert cells == [directory.path.name for directory in low]
    recorder.join()
    cells = json.loads((tmp_path / "grid.json").read_text())["cells"]
    assert cells == [directory.path.name for directory in [*low, *high]]


def test_a_population_is_claimed_whole_or_not_at_all(tmp_path, other_process):
    other_process(tmp_path / "b")
    with claim([tmp_path / "a", tmp_path / "b", tmp_path / "c"]) as ours:
        assert not ours
        assert not other_process(tmp_path / "b")[1]
    assert other_process(tmp_path / "a", tmp_path / "c")[1]


def cells_of(root, betas):
    return cell_directories({"loss": {"beta": list(betas)}, "output": str(root)})


OVER = {"state": "finished", "steps": 8, "best": None, "best_metric": "", "divergence": None}


def train_cells(cells):
    table = CellTable(cells, steps=8)
    grid.train_cells(object.__new__(Experiment), cells, table, Screen(quiet=True))


def finish(_, configs, directories, screen):
    """In place of training: the run is over at once."""
    for directory in directories:
        assert directory.summary is None, "a cell was trained twice"
        directory.finish(OVER)


def test_cells_of_another_process_are_waited_for(tmp_path, other_process, monkeypatch):
    """The last cell is held by a process that dies while we wait: we train it then."""
    cells = cells_of(tmp_path, (0.1, 0.2, 0.3))
    holder, held = other_process(cells[2].path)
    assert held
    trained = []

    def train(prepared, configs, directories, screen):
        trained.extend(config.loss.beta for config in configs)
        finish(prepared, configs, directories, screen)

    def wait(_):
        assert trained == [0.1, 0.2]
        holder.kill()
        holder.wait()

    monkeypatch.setattr(grid, "train", train)
    monkeypatch.setattr(grid.time, "sleep", wait)
    train_cells(cells)
    assert trained == [0.1, 0.2, 0.3]


def test_a_cell_that_another_process_finished_is_left_alone(tmp_path, other_process, monkeypatch):
    cells = cells_of(tmp_path, (0.1, 0.2))
    holder, _ = other_process(cells[0].path)

    def wait(_):
        cells[0].finish(OVER)
        holder.kill()
        holder.wait()

    monkeypatch.setattr(grid, "train", finish)
    monkeypatch.setattr(grid.time, "sleep", wait)
    train_cells(cells)
    assert all(directory.summary == OVER for directory in cells)
