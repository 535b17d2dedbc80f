"""The lines of `metrics.jsonl`, and the choice of the best validation among them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tddpo_jax.errors import UserError
from tddpo_jax.losses.metric_names import example_metrics
from tddpo_jax.system.json_files import parse, problem, whole_lines

LOWER_IS_BETTER = ("eval_loss", "eval_kl", "eval_logps/rejected", "eval_rewards/rejected")
# Without `train.best_metric`, the first of these metrics that a run has chooses its best policy.
DEFAULTS = ("eval_rewards/accuracies", "eval_loss")


def check_best_metric(asked: str | None, responses: int) -> None:
    """Raises UserError if the data does not have the metric of `train.best_metric`.

    Args:
        asked: the metric; None for the default.
        responses: the number of responses per example of the data.
    """
    known = [f"eval_{metric}" for metric in example_metrics(responses)]
    if asked is not None and asked not in known:
        of_data = "" if responses == 2 else " for data with one response per prompt"
        raise UserError(
            f"train.best_metric: there is no metric {asked!r}{of_data}; "
            f"choose one of {', '.join(known)}"
        )


def best_metric(asked: str | None, records: Iterable[dict]) -> str:
    """The metric that chooses the best policy: the one asked for, or the records' default."""
    if asked is not None:
        return asked
    there = set().union(*records)
    return next((name for name in DEFAULTS if name in there), DEFAULTS[0])


def best_record(records: list[dict], asked: str | None) -> dict | None:
    """The best validation record by a metric; step 0 does not count, and ties go to the earliest.

    Args:
        records: the records of a run.
        asked: the metric; None for the default of these records.
    """
    metric = best_metric(asked, records)
    # A NaN at the first place would win every comparison.
    candidates = [
        record
        for record in records
        if record["step"] > 0 and math.isfinite(record.get(metric, math.nan))
    ]
    if not candidates:
        return None
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return max(candidates, key=lambda record: (sign * record[metric], -record["step"]))


def read_records(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` as numbers by name; empty if there is no such file.

    The file may still grow. A torn last line is left out.

    Raises:
        UserError: another line is damaged.
    """
    return parse_records(file, file.read_bytes()) if file.exists() else []


def parse_records(file: Path, text: bytes) -> list[dict[str, Any]]:
    """The records in a part of a `metrics.jsonl`, as `read_records` gives them.

    Args:
        file: the file, for messages.
        text: a part of its content, from the beginning of a line.

    Raises:
        UserError: a line is damaged, other than a torn last one.
    """
    records = []
    lines, _ = whole_lines(text)
    for line in filter(bytes.strip, lines):
        try:
            value = parse(line)
        except ValueError as error:
            raise UserError(f"{file}: {problem(error)}: {line[:60]!r}") from None
        if not isinstance(value, dict) or not _is_record(value):
            raise UserError(f"{file}: a line must hold a step and named numbers: {line[:60]!r}")
        records.append(value)
    return records


def _is_record(values: dict[str, Any]) -> bool:
    numbers = all(isinstance(value, int | float) for value in values.values())
    return numbers and isinstance(values.get("step"), int)
