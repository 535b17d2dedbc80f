"""What a notebook's cell shows: one display that changes, with all lines and the work in progress.

Every `print` of a notebook would be an output of its own. This needs no `ipywidgets`.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, RenderableType

WIDTH = 110  # columns
# A notebook may be far from its kernel.
SECONDS = 0.5


class NotebookPage:
    """Lines, and below them the drawings of the work in progress."""

    def __init__(self) -> None:
        self._lines: list[RenderableType] = []
        self._drawings: list[Callable[[], RenderableType]] = []
        self._handle: Any = None
        self._shown = 0.0

    def add(self, line: RenderableType) -> None:
        """Adds a line or a table that stays."""
        self._lines.append(line)
        self._show()

    @contextlib.contextmanager
    def drawing(self, draw: Callable[[], RenderableType]) -> Iterator[None]:
        """Shows what `draw` returns below all lines, until the block ends."""
        self._drawings.append(draw)
        try:
            yield
        finally:
            self._drawings.remove(draw)
            self._show()

    def refresh(self) -> None:
        """Draws anew, unless it has just done so."""
        if time.monotonic() - self._shown > SECONDS:
            self._show()

    def _show(self) -> None:
        from IPython.display import display

        self._shown = time.monotonic()
        page = {"text/plain": self._text()}
        if self._handle is None:
            self._handle = display(page, raw=True, display_id=True)
        else:
            self._handle.update(page, raw=True)

    def _text(self) -> str:
        file = io.StringIO()
        console = Console(
            file=file,
            width=WIDTH,
            force_jupyter=False,
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
        for part in (*self._lines, *(draw() for draw in self._drawings)):
            console.print(part)
        return file.getvalue().rstrip("\n")
