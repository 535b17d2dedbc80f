"""What a screen shows on a terminal, in a notebook, and in a plain log."""

from __future__ import annotations

import io
import itertools
import sys
import time
import types

import pytest
from rich.console import Console

from tddpo_jax.system import console
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
    """A notebook: what is displayed beside its widgets, and how often a widget changes."""

    def __init__(self, patch):
        self.shown, self.changes, self.inside = [], 0, False
        cell = self

        class Output:
            def __enter__(self):
                cell.inside, cell.changes = True, cell.changes + 1

            def __exit__(self, *_):
                cell.inside = False

            def clear_output(self, wait=False):
                pass

            def close(self):
                pass

        def display(thing):
            if not cell.inside and not isinstance(thing, Output):
                cell.shown.append(thing)

        ipython, widgets = types.ModuleType("IPython.display"), types.ModuleType("ipywidgets")
        ipython.display, widgets.Output = display, Output
        patch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
        patch.setitem(sys.modules, "IPython.display", ipython)
        patch.setitem(sys.modules, "ipywidgets", widgets)


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


def test_a_notebook_shows_progress_in_one_place(notebook, monkeypatch):
    monkeypatch.setattr(console.importlib.util, "find_spec", lambda name: name)
    work(screen_of(force_jupyter=True), until=lambda: notebook.changes > 1)
    assert len(notebook.shown) <= 1  # an empty line at the end


def test_a_notebook_without_widgets_is_a_plain_log(notebook, monkeypatch):
    monkeypatch.setattr(console.importlib.util, "find_spec", lambda name: None)
    work(screen_of(force_jupyter=True))
    assert (notebook.changes, len(notebook.shown)) == (0, 1)
