"""What the user sees while a program works: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0

Update = Callable[..., None]


class Screen:
    """Lines and one progress bar at a time; silent if `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True, markup=False)

    def say(self, text: str) -> None:
        self.console.print(text)

    @contextlib.contextmanager
    def stage(self, label: str) -> Iterator[Update]:
        """A stage of the work; yields `update(done, total, text="")`."""
        if self.console.is_terminal:
            with _bar(self.console) as progress:
                task = progress.add_task(label, total=None, text="")

                def update(done: int, total: int, text: str = "") -> None:
                    progress.update(task, completed=done, total=total, text=text)

                yield update
        else:
            yield self._plain(label)

    def _plain(self, label: str) -> Update:
        last = time.monotonic()

        def update(done: int, total: int, text: str = "") -> None:
            nonlocal last
            if done < total and time.monotonic() - last < PLAIN_SECONDS:
                return
            last = time.monotonic()
            self.say(f"{label} {done}/{total} {text}".rstrip())

        return update


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns,
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[text]}"),
        console=console,
    )
