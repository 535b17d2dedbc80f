"""The metrics of every example."""

from __future__ import annotations

import math

import jax.numpy as jnp

from tddpo_jax.losses.elementary import PerPair
from tddpo_jax.losses.metric_names import SATURATED
from tddpo_jax.losses.pair_logps import PairLogps, Rewards, chosen_log_ratio, log_ratios

# A difference of log-ratios that is rounding prefers neither response: 1e-4 nats, or the float32
# spacing of the two sums where that is wider (two sums of together more than 840 nats).
TIE_NATS = 1e-4


# The weight sigmoid(-z) of a gradient is below 0.05 or above 0.95 where |z| is greater.
SATURATED_LOGIT = math.log(0.95 / 0.05)


def saturation(logits: PerPair) -> dict[str, PerPair]:
    """1 for each pair whose gradient weight sigmoid(-z) is saturated, else 0, by its name."""
    return {SATURATED: (jnp.abs(logits) > SATURATED_LOGIT).astype(jnp.float32)}


def pair_metrics(pairs: PairLogps, loss: PerPair, rewards: Rewards) -> dict[str, PerPair]:
    """Every metric of each example, from its loss and its rewards.

    Pairs have all of `PAIR_METRICS`, examples of one response have `RESPONSE_METRICS`. `kl` is
    0.5 * (s_w^2 + s_l^2) for a pair and 0.5 * s^2 for one response, in nats.
    """
    chosen, rejected = rewards
    if rejected is None:
        return {
            "loss": loss,
            "rewards/chosen": chosen,
            "logps/chosen": pairs.logp_chosen,
            "kl": 0.5 * chosen_log_ratio(pairs) ** 2,
        }
    s_w, s_l = log_ratios(pairs)
    spacing = jnp.finfo(s_w.dtype).eps * (jnp.abs(pairs.logp_chosen) + jnp.abs(pairs.logp_rejected))
    tie = jnp.abs(s_w - s_l) <= jnp.maximum(TIE_NATS, spacing)
    better = jnp.where(tie, 0.5, s_w > s_l)
    return {
        "loss": loss,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": better,
        "logps/chosen": pairs.logp_chosen,
        "logps/rejected": pairs.logp_rejected,
        "logps/accuracies": (pairs.logp_chosen > pairs.logp_rejected).astype(jnp.float32),
        "kl": 0.5 * (s_w**2 + s_l**2),
    }
