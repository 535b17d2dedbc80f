"""Names of the metrics; imports no JAX.

They are TRL's, so that dashboards carry over; those of the validation set begin with `eval_`.
"""

from __future__ import annotations

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
