"""What a screen shows on a terminal, in a notebook, and in a plain log."""

from __future__ import annotations

import io
import itertools
import sys
import time
import types

import pytest
from rich.console import Console

from tddpo_jax.system.console import Screen


def work(screen, until=lambda: True):
    """A stage of a hundred steps and more, until something has happened."""
    with screen.stage("training") as update:
        for step in itertools.count(1):
            update(step, step, "loss 0.5") if step == 100 else update(step, step + 1, "loss 0.5")
            if step >= 100 and until():
                return
            assert step < 1000
            time.sleep(0.01 if step > 100 else 0)


class Notebook:
    """A notebook: the outputs of a cell, and every text that the first of them has shown."""

    def __init__(self, patch):
        self.outputs, self.texts = 0, []

        def display(page, *, raw, display_id):
            self.outputs += 1
            update(page, raw=raw)
            return types.SimpleNamespace(update=update)

        def update(page, *, raw):
            self.texts.append(page["text/plain"])

        ipython = types.ModuleType("IPython.display")
        ipython.display = display
        patch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
        patch.setitem(sys.modules, "IPython.display", ipython)


@pytest.fixture
def notebook(monkeypatch):
    return Notebook(monkeypatch)


def screen_of(**settings):
    screen = Screen()
    screen.console = Console(width=80, **settings)
    return screen


def test_a_plain_log_has_the_last_line_of_a_short_stage():
    screen = screen_of(file=io.StringIO(), force_terminal=False)
    work(screen)
    assert screen.console.file.getvalue() == "training 100/100 loss 0.5\n"


def test_a_notebook_shows_lines_and_progress_in_one_place(notebook):
    screen = screen_of(force_jupyter=True)
    screen.say("before")
    work(screen, until=lambda: "loss 0.5" in notebook.texts[-1])
    screen.say("after")
    assert notebook.outputs == 1
    # The line of progress was there, and is gone when its stage is over.
    assert any(text.startswith("before\ntraining ") for text in notebook.texts)
    assert notebook.texts[-1] == "before\nafter"


def test_a_quiet_notebook_shows_nothing(notebook):
    work(screen_of(force_jupyter=True, quiet=True))
    assert notebook.outputs == 0
