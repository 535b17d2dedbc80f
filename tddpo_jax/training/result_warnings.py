"""Warns of what makes a bad policy, or shows one: saturated margins, a worse loss, a large KL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from tddpo_jax.config.schema import Config
from tddpo_jax.losses.catalogue import LOSSES

# The largest root mean square of the log-ratio of a response, in nats per token of the response. At
# this bound the policy gives a typical token e = 2.7 times the reference's probability, or 1/e of
# it. Answers of such a policy are usually broken.
NATS_PER_TOKEN = 1.0
# The share of saturated pairs from which on it is worth a line.
MOSTLY_SATURATED = 0.5


def result_warnings(
    first: Mapping[str, Any],
    best: Mapping[str, Any],
    lengths: Float[np.ndarray, "examples N"],
) -> list[str]:
    """What is wrong with a run's best policy, in one line each; none if nothing is.

    Args:
        first: the validation before the first step.
        best: the validation of the best policy.
        lengths: tokens of the responses of the validation set.
    """
    lines = []
    before, after = first["eval_loss"], best["eval_loss"]
    if after > before:
        lines.append(
            f"best/ has a higher eval_loss than the policy before training ({after:.4g} > "
            f"{before:.4g}): training made it worse; try a lower train.learning_rate"
        )
    bound = largest_kl(lengths)
    if best["eval_kl"] > bound:
        lines.append(
            f"best/ has an eval_kl of {best['eval_kl']:.4g}; above {bound:.4g} (log-ratios of "
            f"{NATS_PER_TOKEN:g} nat per token) its answers are probably broken; try a lower "
            "train.learning_rate or a higher loss.beta"
        )
    return lines


def saturation(config: Config, share: float | None) -> list[str]:
    """One line if the loss weighs most pairs alike before the first step; else none.

    Args:
        config: the settings of the run.
        share: the metric `margins/saturated` before the first step; None if the loss has none.
    """
    if share is None or share < MOSTLY_SATURATED:
        return []
    spread = "higher loss.tau" if "tau" in LOSSES[config.loss.name].settings else "lower loss.beta"
    return [
        f"before the first step, {share:.0%} of the pairs have a gradient weight below 0.05 or "
        f"above 0.95: the loss hardly tells them apart; a {spread} spreads the weights"
    ]


def largest_kl(lengths: Float[np.ndarray, "examples N"]) -> float:
    """The metric `kl` if every log-ratio were `NATS_PER_TOKEN` times its response's length."""
    log_ratios = NATS_PER_TOKEN * lengths.astype(np.float64)
    return float(np.mean(0.5 * np.sum(log_ratios**2, axis=-1)))
