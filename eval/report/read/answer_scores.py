"""Scores of answers: what `eval.mt_bench` and `eval.quality` left beside the runs.

Their checkpoints were chosen on validation pairs, which are other items. C cells, U items.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tddpo_jax.errors import UserError

from ...experiment import Cell, Experiment
from ...mt_bench.judgments import current
from ...mt_bench.report import read_judgments
from ...mt_bench.score import scores_of
from ...quality.quality_file import FILE, quality_of, standing_of
from .scores import MARGINS, Score, note

# Name and title of each score.
MT_BENCH, QUALITY = ("mt_bench", "MT-Bench"), ("quality", "answer quality")
BY_BASE = "{}: {{}} diverged before there was a best/; the base's score stands for it"


def table_of(
    experiment: Experiment, values: Mapping[str, Float[np.ndarray, " U"]], items: int
) -> Float[np.ndarray, "C U"]:
    """The numbers of each cell that ended, given by its name; NaN for the others."""
    table = np.full((len(experiment.cells), items), np.nan)
    for number, cell in enumerate(experiment.cells):
        if cell.ended and cell.name in values:
            table[number] = values[cell.name]
    return table


def mt_bench_scores(
    experiment: Experiment, judge_model: str | None
) -> tuple[list[Score], list[str]]:
    """The mean rating of each question, for cells whose every question has been rated, and notes.

    A cell that diverged before it had a policy to ask gets the rating of its base, if the base was
    asked.

    Raises:
        UserError: a judgment is wrong, or two cells were asked different questions.
    """
    files = sorted((experiment.folder / "mt_bench" / "model_judgment").glob("*.jsonl"))
    if not files:
        return [], []
    models = scores_of(current(read_judgments(files, judge_model)))
    asked = {cell.name: _asked(cell) for cell in experiment.cells}
    complete = {
        name: found
        for name, model in asked.items()
        if (found := models.get(model)) is not None and found.complete
    }
    if not complete:
        return [], []
    first = next(iter(complete.values()))
    differing = [name for name, s in complete.items() if s.questions != first.questions]
    if differing:
        raise UserError(f"{files[0].parent}: {differing[0]} was asked other questions")
    by_base = [name for name in complete if asked[name] != name]
    ratings = {name: found.ratings.mean(axis=(0, 2)) for name, found in complete.items()}
    table = table_of(experiment, ratings, len(first.categories))
    return [
        Score(
            *MT_BENCH,
            unit="points, 1 to 10",
            higher=True,
            margins=MARGINS["mt_bench"],
            decimals=2,
            strata=tuple(first.categories),
            choosing=table,
            scoring=table,
            base=_of_bases(experiment, models),
        )
    ], note(by_base, BY_BASE.format(MT_BENCH[1]))


def _of_bases(experiment: Experiment, models: Mapping[str, Any]) -> float | None:
    """The rating of the model before training, if all runs have one that was asked."""
    names = {Path(cell.facts["model"]["path"]).name for cell in experiment.cells if cell.facts}
    base = models.get(names.pop()) if len(names) == 1 else None
    return float(base.ratings.mean()) if base is not None and base.complete else None


def _asked(cell: Cell) -> str:
    """The id of the model whose answers stand for a cell: by default its folder's name."""
    standing = standing_of(cell)
    if standing is None or standing.policy == "best":
        return cell.name
    return Path(cell.facts["model"]["path"]).name


def quality_scores(experiment: Experiment) -> tuple[list[Score], list[str]]:
    """The score of sampled answers, as `tddpo quality` wrote it, and notes.

    It is that of the embedded rule, or of the reward that `tddpo quality` was given. A reward has a
    scale of its own, so there are no margins for it, and it tests no claim.

    Raises:
        UserError: the cells were asked different things.
    """
    measured = {
        cell.name: quality for cell in experiment.cells if (quality := quality_of(cell)) is not None
    }
    stale = [
        cell.name
        for cell in experiment.cells
        if cell.ended and cell.name not in measured and (cell.folder / FILE).exists()
    ]
    notes = note(
        stale,
        "answer quality: {} measured with another policy than the one in best/ now (tddpo "
        "quality measures them again)",
    )
    found = {name: quality for name, quality in measured.items() if quality["scores"] is not None}
    if not found:
        return [], notes
    first, one = next(iter(found.items()))
    items, asked = len(one["scores"]), one.get("asked")
    for name, quality in found.items():
        if len(quality["scores"]) != items or quality.get("asked") != asked:
            raise UserError(
                f"{experiment.folder / name / FILE}: was asked other prompts than {first}, or in "
                "another way; tddpo quality asks every cell the same"
            )
    by_base = [name for name, quality in found.items() if quality["policy"] == "base"]
    is_ruled = (asked or {}).get("reward") in (None, "embedded")
    values = {name: np.array(quality["scores"], np.float64) for name, quality in found.items()}
    table = table_of(experiment, values, items)
    return [
        Score(
            *QUALITY,
            unit="rule's score, 0 to 1" if is_ruled else "reward",
            higher=True,
            margins=MARGINS["quality"] if is_ruled else None,
            decimals=3,
            strata=("prompts",) * items,
            choosing=table,
            scoring=table,
            base=one.get("base_score"),
        )
    ], [*notes, *note(by_base, BY_BASE.format(QUALITY[1]))]
