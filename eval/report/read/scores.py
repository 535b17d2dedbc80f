"""What cells are scored by: one value per cell and item, whatever the item is.

An item is a validation pair, a prompt or a question. Nothing is chosen and scored on the same
items: they are split in two halves, and each half scores what the other chose. C cells, U items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pydantic
from jaxtyping import Bool, Float

from eval.experiment import Cell, Experiment
from eval.mt_bench.judgments import current
from eval.mt_bench.report import read_judgments
from eval.mt_bench.score import scores_of
from eval.quality.score_file import FILE, quality_of, standing_of
from eval.report.number_formats import plural
from eval.report.read.pair_metrics import chosen_checkpoints, halves, halves_can_choose, pair_values
from tddpo_jax.errors import UserError
from tddpo_jax.system.json_files import read_as


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
        UserError: a file of scores is damaged or does not fit the cells.
    """
    rated, of_rated = _mt_bench(experiment, judge_model, split_seed)
    measured, of_measured = _quality(experiment, split_seed)
    given = _given(experiment, files, split_seed)
    pairs, checkpoints, of_pairs = _validation(experiment, split_seed)
    outside = [*rated, *measured, *given]
    # The scores of validation pairs are lacking together.
    lacking = _lacking(experiment, [*outside, *pairs[:1]])
    notes = [*of_rated, *of_measured, *lacking, *of_pairs]
    return Found([*outside, *pairs], checkpoints, notes)


def _given(experiment: Experiment, files: Sequence[Path], split_seed: int) -> list[Score]:
    scores: dict[str, Score] = {}
    for file in files:
        score = read_score(experiment, file, split_seed)
        if score.name in TAKEN or score.name in scores:
            raise UserError(f"{file}: name: another score is called {score.name!r}")
        scores[score.name] = score
    return list(scores.values())


def _lacking(experiment: Experiment, scores: Sequence[Score]) -> list[str]:
    """Which cells that are over lack a score that others have."""
    lines = []
    for score in scores:
        names = [
            cell.name
            for number, cell in enumerate(experiment.cells)
            if cell.over and not score.has(number)
        ]
        lines += _note(names, f"{score.title}: {{}} over and without one")
    return lines


def _note(names: Sequence[str], text: str) -> list[str]:
    """A line that says something of some cells and names them; none of no cells."""
    if not names:
        return []
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return [f"{text.format(plural(len(names), 'cell'))}: {shown}"]


BY_BASE = "{}: {{}} that diverged before there was a best/ to be counted with the base's score"


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
) -> tuple[list[Score], dict[str, Checkpoints], list[str]]:
    cells = experiment.cells
    pairs = max((len(cell.reference) for cell in cells), default=0)
    if pairs < 2:
        return [], {}, []
    strata = ("pairs",) * pairs
    second = halves(strata, split_seed)
    shape = len(cells), pairs
    choosing = {name: np.full(shape, np.nan) for name, *_ in VALIDATION}
    scoring = {name: np.full(shape, np.nan) for name, *_ in VALIDATION}
    checkpoints, unchosen = {}, []
    for number, cell in enumerate(cells):
        if not cell.steps:
            continue
        values = pair_values(cell)
        if cell.state != "diverged" and not halves_can_choose(cell, values):
            unchosen.append(cell.name)
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
    text = (
        "validation pairs: the metric of {} by which checkpoints are chosen is not known pair by "
        "pair; no half chose, and the last validation counts"
    )
    return scores, checkpoints, _note(unchosen, text)


# Columns of `results.csv` beside the scores, before and after them.
CELL_COLUMNS = (
    *("cell", "state", "loss", "beta", "tau", "seed", "learning_rate", "diverged_at_step"),
    *("checkpoint_of_first_half", "checkpoint_of_second_half"),
)
TRAINING_COLUMNS = ("largest_grad_norm", "pairs_per_second")
# No score of the user's own may be called so.
TAKEN = {
    *("mt_bench", "MT-Bench", "quality", "answer quality", "eval_loss"),
    *(text for name, title, *_ in VALIDATION for text in (name, title)),
    *CELL_COLUMNS,
    *TRAINING_COLUMNS,
}


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


def _mt_bench(
    experiment: Experiment, judge_model: str | None, split_seed: int
) -> tuple[list[Score], list[str]]:
    """The mean rating of each question, for cells whose every question has been rated.

    A cell that diverged before it had a policy to ask is rated as its base, if that was asked.
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
    ], _note(by_base, BY_BASE.format("MT-Bench"))


def _asked(cell: Cell) -> str:
    """The id of the model whose answers stand for a cell: by default its folder's name."""
    standing = standing_of(cell)
    if standing is None or standing.policy == "best":
        return cell.name
    return Path(cell.facts["model"]["path"]).name


def _quality(experiment: Experiment, split_seed: int) -> tuple[list[Score], list[str]]:
    """What `python -m eval.quality` wrote beside the runs: the rule's score of sampled answers.

    Raises:
        UserError: the cells were asked different things.
    """
    found = {
        cell.name: quality for cell in experiment.cells if (quality := quality_of(cell)) is not None
    }
    stale = [
        cell.name
        for cell in experiment.cells
        if cell.over and cell.name not in found and (cell.folder / FILE).exists()
    ]
    notes = _note(
        stale,
        "answer quality: {} measured by another policy than the one in best/ now (python -m "
        "eval.quality.__main__ measures these again)",
    )
    if not found:
        return [], notes
    first = next(iter(found))
    for name, quality in found.items():
        alike = len(quality["scores"]) == len(found[first]["scores"])
        if not alike or quality.get("asked") != found[first].get("asked"):
            raise UserError(
                f"{experiment.folder / name / FILE}: was asked other prompts than {first}, or in "
                "another way; python -m eval.quality asks all the same"
            )
    by_base = [name for name, quality in found.items() if quality["policy"] == "base"]
    return [
        _outside(
            experiment,
            {name: np.asarray(one["scores"], np.float64) for name, one in found.items()},
            ("prompts",) * len(found[first]["scores"]),
            split_seed,
            name="quality",
            title="answer quality",
            unit="rule's score, 0 to 1",
            items="prompts",
            higher=True,
            margins=MARGINS["quality"],
            decimals=3,
        )
    ], [*notes, *_note(by_base, BY_BASE.format("answer quality"))]


Number = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Margin = Annotated[float, pydantic.Field(allow_inf_nan=False, ge=0)]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Items = Annotated[list[Number], pydantic.Field(min_length=1), pydantic.BeforeValidator(_as_list)]


class ScoreFile(pydantic.BaseModel):
    """A user's own score, see `read_score`."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    # It also names files, and pictures whose names have a dash and more. A $ begins mathematics.
    name: Annotated[str, pydantic.Field(pattern=r"^\w[\w .]*$", max_length=60)]
    unit: Annotated[str, pydantic.Field(pattern=r"^[^$]*$", max_length=60)] = "score"
    higher_is_better: bool = True
    matches: Margin
    beats: Margin
    cells: Annotated[dict[str, Items], pydantic.Field(min_length=1)]


def read_score(experiment: Experiment, file: Path, split_seed: int) -> Score:
    """A score of the user's own.

    The file is a JSON object: `name`, `unit`, `higher_is_better` (true), the margins `matches` and
    `beats`, and `cells`, from the name of a cell's directory to one number or a list of one number
    per item, the same items for every cell.

    Raises:
        UserError: a field is missing or wrong, or a name is no cell's.
    """
    given = read_as(file, ScoreFile)
    unknown = sorted(set(given.cells) - {cell.name for cell in experiment.cells})
    if unknown:
        raise UserError(f"{file}: cells: {unknown[0]!r} is no cell of {experiment.folder}")
    values = {name: np.array(items) for name, items in given.cells.items()}
    if len({value.shape for value in values.values()}) != 1:
        raise UserError(f"{file}: cells: must hold the same number of items each")
    return _outside(
        experiment,
        values,
        ("items",) * len(next(iter(values.values()))),
        split_seed,
        name=given.name,
        title=given.name,
        unit=given.unit,
        items="items",
        higher=given.higher_is_better,
        margins=Margins(given.matches, given.beats, f"from {file.name}"),
        decimals=3,
    )
