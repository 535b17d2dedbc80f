"""Scores of the validation pairs: each half of the pairs chooses a checkpoint for the other."""

from __future__ import annotations

import collections

import numpy as np

from ...experiment import Experiment
from .pair_metrics import chosen_checkpoints, halves_can_choose, name_of_pairs, pair_values
from .scores import MARGINS, Score, halves, note

ACCURACY = "eval_rewards/accuracies"
# name (of metrics.jsonl, if it has the number), title, unit, whether higher is better, decimals
VALIDATION = (
    (ACCURACY, "reward accuracy", "share of held-out pairs", True, 3),
    ("eval_logps/accuracies", "log-prob accuracy", "share of pairs", True, 3),
    ("log_ratio_margin", "log-ratio margin", "nats", True, 2),
    ("eval_kl", "KL penalty, (s_w² + s_l²) / 2", "nats", False, 2),
    ("eval_loss", "validation loss", "nats", False, 4),
)


def validation_scores(
    experiment: Experiment,
) -> tuple[list[Score], dict[str, tuple[int, int]], list[str]]:
    """The scores of the pairs, the steps that the halves choose by cell name, and notes.

    There are none if no cell has two validation pairs.
    """
    cells = experiment.cells
    pairs = max((len(cell.reference) for cell in cells), default=0)
    if pairs < 2:
        return [], {}, []
    strata = ("pairs",) * pairs
    second = halves(strata)
    # What chooses, what scores, and the last policy.
    nothing = np.full((3, len(cells), pairs), np.nan)
    tables: dict[str, np.ndarray] = collections.defaultdict(nothing.copy)
    before: dict[str, set[float]] = collections.defaultdict(set)
    checkpoints, unchosen = {}, []
    for number, cell in enumerate(cells):
        if not cell.steps:
            continue
        values = pair_values(cell)
        if cell.state != "diverged" and not halves_can_choose(cell, values):
            unchosen.append(cell.name)
        of_first, of_second = chosen_checkpoints(cell, values, second)
        checkpoints[cell.name] = cell.steps[of_first], cell.steps[of_second]
        # A loss that cannot be computed for single pairs takes the recorded mean for every pair.
        recorded = {record["step"]: record["eval_loss"] for record in cell.validations}
        means = np.array([[recorded[step]] for step in cell.steps])
        values["loss"] = np.where(np.isnan(values["loss"]), means, values["loss"])
        for key, found in values.items():
            own = np.where(second, found[of_second], found[of_first])
            other = np.where(second, found[of_first], found[of_second])
            tables[key][:, number] = own, other, found[-1]
            if cell.steps[0] == 0:
                before[key].add(float(np.float32(found[0].mean())))
    scores = [
        Score(
            name=name,
            title=title,
            unit=unit,
            higher=higher,
            margins=MARGINS.get(name),
            decimals=decimals,
            strata=strata,
            choosing=tables[key][0],
            scoring=tables[key][1],
            last=tables[key][2],
            # Losses differ before training already.
            base=before[key].pop() if len(before[key]) == 1 else None,
        )
        for name, title, unit, higher, decimals in VALIDATION
        if (key := name_of_pairs(name)) in tables
    ]
    text = (
        "validation pairs: {} chose checkpoints by a metric that is not known for single pairs; "
        "neither half could choose, so the last validation counts"
    )
    return scores, checkpoints, note(unchosen, text)
