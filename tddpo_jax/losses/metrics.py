"""Names of the metrics and what they mean for choosing a checkpoint. Plain data, no arrays.

Names are TRL's, so that dashboards carry over; the validation set's have the prefix `eval_`.
"""

from __future__ import annotations

import math

from tddpo_jax.errors import UserError

# Means over pairs, of the parameters before the step's update.
PAIR_METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "logps/accuracies",
    "kl",
)
# How fast a step was; these alone may differ between a run and its repetition.
TIMING_METRICS = ("pairs_per_second", "mfu")
LOWER_IS_BETTER = ("eval_loss", "eval_kl", "eval_logps/rejected", "eval_rewards/rejected")


def check_best_metric(name: str) -> None:
    """Raises UserError unless `name` is a metric of the validation set."""
    known = [f"eval_{metric}" for metric in PAIR_METRICS]
    if name not in known:
        raise UserError(f"train.best_metric: no metric {name!r}; there are {', '.join(known)}")


def best_record(records: list[dict], metric: str) -> dict | None:
    """The validation record that is best by a metric: step 0 excluded, the earliest of equals."""
    # A NaN would win every comparison that it comes first in.
    candidates = [
        record
        for record in records
        if record["step"] > 0 and math.isfinite(record.get(metric, math.nan))
    ]
    if not candidates:
        return None
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return max(candidates, key=lambda record: (sign * record[metric], -record["step"]))
