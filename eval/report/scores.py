"""What cells are scored by: one value per cell and item, whatever the item is.

An item is a validation pair, a prompt or a question. Nothing is chosen and scored on the same
items: they are split in two halves, and each half scores what the other chose. C cells, U items.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from eval.mt_bench.judgments import current
from eval.mt_bench.report import read_judgments
from eval.mt_bench.score import scores_of
from eval.report.cells import Cell, Experiment
from eval.report.pairs import chosen_checkpoints, halves, pair_values


class Margins(NamedTuple):
    """What is counted as equal, and how much better is better, in the unit of a score."""

    matches: float
    beats: float
    because: str


MARGINS = {
    "mt_bench": Margins(0.1, 1.5, "the experiment's own numbers"),
    "quality": Margins(0.02, 0.05, "of a scale from 0 to 1"),
    "accuracy": Margins(0.02, 0.02, "two pairs in a hundred"),
}


@dataclasses.dataclass(frozen=True)
class Score:
    """A column of scores.

    Attributes:
        title, unit: for people; the unit also labels axes.
        items: what is resampled, in the plural.
        higher: more is better.
        margins: of the claims; None: shown, and no claim is tested on it.
        decimals: digits after the point that are worth printing.
        strata: `U` names; items are drawn and split within them.
        second: `[U]`, the items of the second half.
        choosing: `[C, U]`, what to choose by: each item under the checkpoint its own half chose.
        scoring: `[C, U]`, what to score by: each item under the checkpoint the other half chose.
            NaN where a cell has no score.
    """

    name: str
    title: str
    unit: str
    items: str
    higher: bool
    margins: Margins | None
    decimals: int
    strata: tuple[str, ...]
    second: Bool[np.ndarray, " U"]
    choosing: Float[np.ndarray, "C U"]
    scoring: Float[np.ndarray, "C U"]

    def has(self, cell: int) -> bool:
        """Whether the cell of this number has a score."""
        return bool(np.isfinite(self.scoring[cell]).any())

    def of(self, cell: int) -> float:
        """A cell's score: its mean over items; NaN if it has none."""
        return float(np.nanmean(self.scoring[cell])) if self.has(cell) else float("nan")


class Checkpoints(NamedTuple):
    """The steps that the two halves of the validation pairs choose in one cell."""

    first: int
    second: int


class Found(NamedTuple):
    """All scores of an experiment, the first one first, and what there is to say about them."""

    scores: list[Score]
    checkpoints: dict[str, Checkpoints]
    notes: list[str]


def find_scores(
    experiment: Experiment, files: Sequence[Path], judge_model: str | None, split_seed: int
) -> Found:
    """Every score that can be found, those of answers before those of validation pairs.

    Args:
        experiment: the cells.
        files: further scores, see `read_score`.
        judge_model: whose MT-Bench ratings, where there are several judges'.
        split_seed: of the split into halves.

    Raises:
        ValueError: a file of scores is damaged or does not fit the cells.
    """
    found = [
        *_mt_bench(experiment, judge_model, split_seed),
        *_quality(experiment, split_seed),
        *(read_score(experiment, file, split_seed) for file in files),
    ]
    notes = _notes(experiment, found)
    pairs, checkpoints = _validation(experiment, split_seed)
    return Found([*found, *pairs], checkpoints, notes)


def _notes(experiment: Experiment, scores: Sequence[Score]) -> list[str]:
    """Which cells that are over lack a score that others have."""
    lines = []
    for score in scores:
        lacking = [
            cell.name
            for number, cell in enumerate(experiment.cells)
            if cell.over and not score.has(number)
        ]
        if lacking:
            shown = ", ".join(lacking[:4]) + (", ..." if len(lacking) > 4 else "")
            lines.append(f"{score.title}: {len(lacking)} cells that are over have none: {shown}")
    return lines


# ---- Validation pairs ----------------------------------------------------------------------------

# name, title, unit, higher is better, decimals, key of `pairs.pair_values`
VALIDATION = (
    ("accuracy", "validation reward accuracy", "share of pairs", True, 3, "rewards/accuracies"),
    ("logps_accuracy", "log-prob accuracy", "share of pairs", True, 3, "logps/accuracies"),
    ("log_ratio_margin", "log-ratio margin", "nats", True, 2, "log_ratio_margin"),
    ("kl", "KL penalty, (s_w² + s_l²) / 2", "nats", False, 2, "kl"),
    ("loss", "validation loss", "nats", False, 4, "loss"),
)


def _validation(
    experiment: Experiment, split_seed: int
) -> tuple[list[Score], dict[str, Checkpoints]]:
    cells = experiment.cells
    pairs = max((len(cell.reference) for cell in cells), default=0)
    if pairs < 2:
        return [], {}
    strata = ("pairs",) * pairs
    second = halves(strata, split_seed)
    shape = len(cells), pairs
    choosing = {name: np.full(shape, np.nan) for name, *_ in VALIDATION}
    scoring = {name: np.full(shape, np.nan) for name, *_ in VALIDATION}
    checkpoints = {}
    for number, cell in enumerate(cells):
        if not cell.steps:
            continue
        values = pair_values(cell)
        of_first, of_second = chosen_checkpoints(cell, values, second)
        checkpoints[cell.name] = Checkpoints(cell.steps[of_first], cell.steps[of_second])
        # What cannot be computed pair by pair is the recorded mean, for every pair alike.
        recorded = {record["step"]: record["eval_loss"] for record in cell.validations}
        means = np.array([[recorded[step]] for step in cell.steps])
        values["loss"] = np.where(np.isnan(values["loss"]), means, values["loss"])
        for name, *_, key in VALIDATION:
            chosen_by_first, chosen_by_second = values[key][of_first], values[key][of_second]
            choosing[name][number] = np.where(second, chosen_by_second, chosen_by_first)
            scoring[name][number] = np.where(second, chosen_by_first, chosen_by_second)
    scores = [
        Score(
            name=name,
            title=title,
            unit=unit,
            items="validation pairs",
            higher=higher,
            margins=MARGINS.get(name),
            decimals=decimals,
            strata=strata,
            second=second,
            choosing=choosing[name],
            scoring=scoring[name],
        )
        for name, title, unit, higher, decimals, _ in VALIDATION
    ]
    return scores, checkpoints


# ---- Scores of answers ---------------------------------------------------------------------------


def _outside(
    experiment: Experiment,
    values: Mapping[str, Float[np.ndarray, " U"]],
    strata: Sequence[str],
    split_seed: int,
    **about: Any,
) -> Score:
    """A score of answers: its checkpoint was chosen on validation pairs, which are other items."""
    table = np.full((len(experiment.cells), len(strata)), np.nan)
    for number, cell in enumerate(experiment.cells):
        if cell.over and cell.name in values:
            table[number] = values[cell.name]
    second = halves(strata, split_seed)
    return Score(strata=tuple(strata), second=second, choosing=table, scoring=table, **about)


def _mt_bench(experiment: Experiment, judge_model: str | None, split_seed: int) -> list[Score]:
    """The mean rating of each question, for cells whose every question has been rated."""
    files = sorted((experiment.folder / "mt_bench" / "model_judgment").glob("*.jsonl"))
    if not files:
        return []
    models = scores_of(current(read_judgments(files, judge_model)))
    names = {cell.name for cell in experiment.cells}
    complete = {name: s for name, s in models.items() if name in names and s.complete}
    if not complete:
        return []
    first = next(iter(complete.values()))
    differing = [name for name, s in complete.items() if s.questions != first.questions]
    if differing:
        raise ValueError(f"{files[0].parent}: {differing[0]} was asked other questions")
    return [
        _outside(
            experiment,
            {name: found.ratings.mean(axis=(0, 2)) for name, found in complete.items()},
            first.categories,
            split_seed,
            name="mt_bench",
            title="MT-Bench",
            unit="points, 1 to 10",
            items="questions",
            higher=True,
            margins=MARGINS["mt_bench"],
            decimals=2,
        )
    ]


def _quality(experiment: Experiment, split_seed: int) -> list[Score]:
    """What `python -m eval.quality` wrote beside the runs: the rule's score of sampled answers."""
    values = {
        cell.name: np.asarray(quality["scores"], np.float64)
        for cell in experiment.cells
        if (quality := quality_of(cell)) is not None
    }
    if not values:
        return []
    counts = {name: len(scores) for name, scores in values.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"quality.json: the cells have different numbers of prompts: {counts}")
    return [
        _outside(
            experiment,
            values,
            ("prompts",) * next(iter(counts.values())),
            split_seed,
            name="quality",
            title="answer quality",
            unit="rule's score, 0 to 1",
            items="prompts",
            higher=True,
            margins=MARGINS["quality"],
            decimals=3,
        )
    ]


def quality_of(cell: Cell) -> dict[str, Any] | None:
    """A cell's `quality.json`, or None.

    Raises:
        ValueError: the file is damaged.
    """
    file = cell.folder / "quality.json"
    if not file.exists():
        return None
    found = _mapping(file)
    if not isinstance(found.get("scores"), list):
        raise ValueError(f"{file}: scores: must be a list, one number per prompt")
    return found


def read_score(experiment: Experiment, file: Path, split_seed: int) -> Score:
    """A score of the user's own.

    The file is a JSON mapping: `name`, `unit`, `higher_is_better` (true), the margins `matches` and
    `beats`, and `cells`, from the name of a cell's directory to one number or a list of one number
    per item, the same items for every cell.

    Raises:
        ValueError: a key is missing or wrong, or a name is no cell's.
    """
    found = _mapping(file)
    for key in ("name", "matches", "beats", "cells"):
        if key not in found:
            raise ValueError(f"{file}: {key}: is missing")
    unknown = sorted(set(found["cells"]) - {cell.name for cell in experiment.cells})
    if unknown:
        raise ValueError(f"{file}: cells: {unknown[0]!r} is no cell of {experiment.folder}")
    try:
        values = {
            name: np.atleast_1d(np.asarray(value, np.float64))
            for name, value in found["cells"].items()
        }
    except (TypeError, ValueError):
        raise ValueError(f"{file}: cells: must hold a number or a list of numbers each") from None
    if len({value.shape for value in values.values()}) != 1:
        raise ValueError(
            f"{file}: cells: must hold the same number of items each, and at least one"
        )
    return _outside(
        experiment,
        values,
        ("items",) * len(next(iter(values.values()))),
        split_seed,
        name=str(found["name"]),
        title=str(found["name"]),
        unit=str(found.get("unit", "score")),
        items="items",
        higher=bool(found.get("higher_is_better", True)),
        margins=Margins(float(found["matches"]), float(found["beats"]), f"from {file.name}"),
        decimals=3,
    )


def _mapping(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: must hold a mapping")
    return found
