"""Scores of the validation pairs: each half of the pairs chooses a checkpoint for the other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...experiment import Experiment
from .pair_metrics import chosen_checkpoints, halves, halves_can_choose, pair_values
from .scores import MARGINS, Score, note

# name, title, unit, whether higher is better, decimals, key of `pair_metrics.pair_values`
VALIDATION = (
    ("accuracy", "validation reward accuracy", "share of pairs", True, 3, "rewards/accuracies"),
    ("logps_accuracy", "log-prob accuracy", "share of pairs", True, 3, "logps/accuracies"),
    ("log_ratio_margin", "log-ratio margin", "nats", True, 2, "log_ratio_margin"),
    ("kl", "KL penalty, (s_w² + s_l²) / 2", "nats", False, 2, "kl"),
    ("loss", "validation loss", "nats", False, 4, "loss"),
)


class Checkpoints(NamedTuple):
    """The steps that the two halves of the validation pairs choose in one cell."""

    first: int
    second: int


def validation_scores(
    experiment: Experiment, split_seed: int
) -> tuple[list[Score], dict[str, Checkpoints], list[str]]:
    """The scores of the validation pairs, the checkpoints chosen by cell name, and notes.

    There are none if no cell has two validation pairs.
    """
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
        # A loss that cannot be computed for single pairs takes the recorded mean for every pair.
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
        "validation pairs: {} chose checkpoints by a metric that is not known for single pairs; "
        "neither half could choose, so the last validation counts"
    )
    return scores, checkpoints, note(unchosen, text)
