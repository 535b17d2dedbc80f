"""Names of the metrics; imports no JAX.

Most are TRL's, so that dashboards carry over; those of the validation set begin with `eval_`.
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

# The share of pairs whose gradient has a weight below 0.05 or above 0.95. Only losses with a term
# -log sigmoid(z) have such a weight, sigmoid(-z).
SATURATED = "margins/saturated"

# Those of examples of one response: there is no second one to compare it with.
RESPONSE_METRICS = ("loss", "rewards/chosen", "logps/chosen", "kl")

# These two are metrics of training steps of models with experts.
EXPERT_LOAD = "experts/load"  # largest share of an expert over the mean share, over all layers
ROUTER_LOSS = "aux_loss"  # the loss of trained routers; `loss` has it times its weight

# How fast a step was; these alone may differ between a run and its repetition.
TIMING_METRICS = ("pairs_per_second", "examples_per_second", "mfu")


def example_metrics(responses: int) -> tuple[str, ...]:
    """The metrics of a data set whose examples have so many responses, one or two."""
    return PAIR_METRICS if responses == 2 else RESPONSE_METRICS
