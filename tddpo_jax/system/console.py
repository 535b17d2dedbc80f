"""What the user sees while a program works: live drawings on a terminal, else plain lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tddpo_jax.system.notebook_page import NotebookPage

PLAIN_SECONDS = 10.0

Update = Callable[..., None]


class Screen:
    """Prints lines, and below them shows the work in progress; prints nothing if `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True, markup=False)
        self._page = NotebookPage()

    @property
    def is_live(self) -> bool:
        """Whether drawings can change: on a terminal or in a notebook."""
        return self.console.is_terminal or self._is_page

    @property
    def _is_page(self) -> bool:
        return self.console.is_jupyter and not self.console.quiet

    def say(self, text: str) -> None:
        """Prints one line."""
        self.show(text)

    def show(self, what: RenderableType) -> None:
        """Prints a line or a table."""
        if self._is_page:
            self._page.add(what)
        else:
            self.console.print(what)

    @contextlib.contextmanager
    def drawing(self, draw: Callable[[], RenderableType]) -> Iterator[None]:
        """Shows what `draw` returns below all lines of a terminal, or in one place of a notebook.

        Where drawings cannot change, it shows nothing.

        On a terminal, another thread calls `draw` several times a second. A drawing inside another
        one is shown below it.
        """
        if not self.is_live:
            yield
            return
        if self._is_page:
            with self._page.drawing(draw):
                yield
            return
        with Live(get_renderable=draw, console=self.console, transient=True):
            yield

    @contextlib.contextmanager
    def stage(self, label: str) -> Iterator[Update]:
        """Shows the progress of one stage of the work; yields `update(done, total, text="")`."""
        if not self.is_live:
            yield self._plain(label)
            return
        progress = _bar(self.console)
        task = progress.add_task(label, total=None, text="")

        def update(done: int, total: int, text: str = "") -> None:
            progress.update(task, completed=done, total=total, text=text)
            if self._is_page:
                self._page.refresh()

        with self.drawing(progress.get_renderable):
            yield update

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
