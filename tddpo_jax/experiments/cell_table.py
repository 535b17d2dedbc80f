"""The cells of a grid as a table: state, step, loss, accuracies, time left.

The table is read from the files of the runs. So a cell looks the same, whichever process trains it.
"""

from __future__ import annotations

import collections
import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tddpo_jax.runs.records import best_record, parse_records
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.system.console import Screen

# Time between two looks at the files, which may be on a slow file system.
LOOK_SECONDS = 1.0
# If a cell of another process writes nothing for this time, that process may have ended.
QUIET_SECONDS = 120.0
# Lines of a terminal for the table's head, the lines below the table, and the progress bars.
OTHER_LINES = 7

# If a terminal has too few lines for all cells, cells get lines in the order of these states.
STATES = ("training", "elsewhere", "diverged", "done", "waiting")
STYLES = {"training": "bold", "diverged": "red", "done": "green", "waiting": "dim"}


class CellTable:
    """The state of all cells of one experiment, and which of them this process trains."""

    def __init__(self, directories: Sequence[RunDirectory], steps: int) -> None:
        """
        Args:
            directories: the directories of all cells, whichever process trains them.
            steps: the steps of a whole run.
        """
        self.cells = [_Cell(directory, steps) for directory in directories]
        self._lock = threading.Lock()
        self._began = self._looked = time.monotonic()
        self._steps_before = sum(cell.step for cell in self.cells)

    @contextlib.contextmanager
    def training(self, directories: Sequence[RunDirectory], screen: Screen) -> Iterator[None]:
        """Marks cells as in training here, and prints a line when each begins and ends.

        It prints no lines for a lone run.

        Args:
            directories: the cells that this process trains during the block.
            screen: prints the lines.
        """
        ours = [cell for cell in self.cells if cell.directory in directories]
        began = time.monotonic()
        for cell in ours:
            cell.ours, cell.refused = True, False
            self._say(f"{cell.name}: training", screen)
        yield
        self._look()
        for cell in ours:
            cell.ours = False
            ending = cell.ending(time.monotonic() - began)
            self._say(f"{cell.name}: {ending}; {self._count_over()}", screen)

    def refuse(self, directories: Sequence[RunDirectory]) -> None:
        """Marks cells that another process holds."""
        for cell in self.cells:
            cell.refused |= cell.directory in directories

    def draw(self, height: int | None = None) -> RenderableType:
        """Draws the table.

        Args:
            height: lines of the terminal. If they are too few, the table shows the cells in
                training and those that ended last. None shows all cells.
        """
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()
        shown = self._choose(len(self.cells) if height is None else max(1, height - OTHER_LINES))
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("cell", no_wrap=True)
        table.add_column("state", no_wrap=True, min_width=9)
        for title in ("step", "loss", "accuracy", "held-out", "left"):
            table.add_column(title, justify="right", no_wrap=True, min_width=6)
        for cell in shown:
            table.add_row(*cell.row(), style=STYLES.get(cell.state))
        lines = [Text(self._whole())]
        hidden = collections.Counter(c.state for c in self.cells if c not in shown)
        if hidden:
            counts = ", ".join(f"{hidden[state]} {state}" for state in STATES if hidden[state])
            lines.insert(0, Text(f"... and {counts}", style="dim"))
        return Group(table, *lines)

    def _choose(self, count: int) -> list[_Cell]:
        """The most interesting cells, in the order of the grid."""
        ranked = sorted(self.cells, key=lambda cell: (STATES.index(cell.state), -cell.ended))
        chosen = set(ranked[:count])
        return [cell for cell in self.cells if cell in chosen]

    def _whole(self) -> str:
        """One line for the grid: how many cells are finished, and the time left at this pace."""
        done = sum(cell.step for cell in self.cells) - self._steps_before
        left = sum(cell.steps - cell.step for cell in self.cells if not cell.over)
        if not left:
            return self._count_over()
        seconds = (time.monotonic() - self._began) * left / done if done > 0 else None
        return f"{self._count_over()}, left {_clock(seconds)}"

    def _count_over(self) -> str:
        return f"{sum(cell.over for cell in self.cells)} of {len(self.cells)} cells finished"

    def _look(self) -> None:
        with self._lock:
            self._looked = time.monotonic()
            for cell in self.cells:
                cell.look()

    def _say(self, text: str, screen: Screen) -> None:
        if len(self.cells) > 1:
            screen.say(text)


class _Cell:
    """One cell, as its files show it."""

    def __init__(self, directory: RunDirectory, steps: int) -> None:
        self.directory, self.steps = directory, steps
        self.name = directory.path.name
        self.ours = self.refused = self.over = self.diverged = False
        self.ended = 0.0  # when we saw it end
        self._forget()
        self.look()
        # The steps that were made earlier do not count for the pace.
        self._seen.clear()

    def _forget(self) -> None:
        self.step = 0  # number of finished steps
        self.newest: dict[str, Any] = {}  # the last training line
        self.best: dict[str, Any] | None = None
        self._inode, self._offset = 0, 0
        # Times and numbers of steps, at the first and at the last time that we saw the cell write.
        self._seen: list[tuple[float, int]] = []

    @property
    def state(self) -> str:
        if self.diverged:
            return "diverged"
        if self.over:
            return "done"
        if self.ours:
            return "training"
        writes = self._seen and time.monotonic() - self._seen[-1][0] < QUIET_SECONDS
        return "elsewhere" if self.refused or writes else "waiting"

    def row(self) -> tuple[str, ...]:
        """The cell's row of the table; its held-out accuracy is that of the best policy."""
        loss, accuracy = (self.newest.get(name) for name in ("loss", "rewards/accuracies"))
        held_out = (self.best or {}).get("eval_rewards/accuracies")
        numbers = (_number(loss), _number(accuracy), _number(held_out))
        left = _clock(self._seconds_left()) if self.state in ("training", "elsewhere") else ""
        return (self.name, self.state, f"{self.step}/{self.steps}", *numbers, left)

    def _seconds_left(self) -> float | None:
        """The time left at the pace since we first saw the cell write; None if unknown."""
        if len(self._seen) < 2 or self._seen[0][1] >= self._seen[1][1]:
            return None
        (began, before), (now, step) = self._seen
        return (now - began) / (step - before) * (self.steps - step)

    def ending(self, seconds: float) -> str:
        """How a finished cell ended.

        Args:
            seconds: the time that this process trained it.
        """
        summary, took = self.directory.summary or {}, _clock(seconds)
        if summary.get("divergence"):
            return f"diverged after {took}, at step {summary['divergence']['step']}"
        best, metric = summary.get("best"), summary.get("best_metric")
        if best is None:
            return f"done in {took}"
        return f"done in {took}, best {metric} {best[metric]:.4g} at step {best['step']}"

    def look(self) -> None:
        """Reads what the cell has written since the last look."""
        if self.over:
            return
        # Another process may be replacing a file now. The next look finds the new file.
        with contextlib.suppress(OSError):
            self._read()

    def _read(self) -> None:
        records = self._new_records()
        for record in records:
            self._take(record)
        if records:
            self._seen = [*self._seen[:1], (time.monotonic(), self.step)]
        divergence, summary = self.directory.divergence, self.directory.summary
        self.diverged, self.over = divergence is not None, summary is not None
        if divergence is not None:
            self.step = divergence["step"]
        if summary is not None:
            self.step, self.ended = summary["steps"], time.monotonic()

    def _take(self, record: dict[str, Any]) -> None:
        if "loss" in record:
            self.newest, self.step = record, record["step"] + 1
            return
        before = [self.best] if self.best is not None else []
        self.best = best_record([*before, record], self.directory.config.train.best_metric)

    def _new_records(self) -> list[dict[str, Any]]:
        path = self.directory.path / "metrics.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._inode or found.st_size < self._offset:
                # A run that resumes replaces the file by a shorter one.
                self._forget()
                self._inode = found.st_ino
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole + newline)
        return parse_records(path, whole + newline)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:#.4g}"


def _clock(seconds: float | None) -> str:
    """`1:02:03`, `2:03`, `3 s`; dashes if unknown."""
    if seconds is None:
        return "--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}" if minutes else f"{rest} s"
