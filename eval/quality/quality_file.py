"""`quality.json` of a run: the figures of one policy, which policy it was, and what it was asked.

A run may go on after it was measured, and cells may have been asked different things. The file lets
a report notice both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from tddpo_jax.runs.records import best_record
from tddpo_jax.system.json_files import Content, read_as

from ..experiment import Cell

FILE = "quality.json"


class _Quality(Content):
    scores: list[float] | None = None  # one number per prompt; None without a rule
    base_score: float | None = None
    kl_per_token: float | None = None


class Standing(NamedTuple):
    """The policy that stands for a cell, and the number of its optimiser steps."""

    policy: Literal["best", "base"]
    step: int


def standing_of(cell: Cell) -> Standing | None:
    """The policy that stands for a cell that has ended; None if it has not.

    It is `best/`, or the base if the cell diverged before it had a `best/`. The base is then the
    last policy with a finite validation: that of step 0.
    """
    if not cell.ended or cell.config is None:
        return None
    if (cell.folder / "best").is_dir():
        best = best_record(list(cell.records), cell.config.train.best_metric)
        # Without validations, best/ is the last policy.
        last = max((record["step"] + 1 for record in cell.training), default=0)
        return Standing("best", best["step"] if best else last)
    return Standing("base", 0) if cell.state == "diverged" else None


def read_quality(folder: Path) -> dict[str, Any] | None:
    """The figures of a run or a model; None if it was not measured.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / FILE
    if not file.exists():
        return None
    return read_as(file, _Quality).model_dump()


def quality_of(cell: Cell) -> dict[str, Any] | None:
    """A cell's figures; None unless they are of the policy that stands for the cell.

    Raises:
        UserError: the file is damaged.
    """
    found = read_quality(cell.folder)
    return found if found is not None and is_of(found, standing_of(cell)) else None


def is_of(found: dict[str, Any], standing: Standing | None) -> bool:
    """Whether figures are of this policy. Figures that do not name their policy are of none."""
    return standing is not None and (found.get("policy"), found.get("step")) == standing
