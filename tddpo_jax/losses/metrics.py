"""The metrics of every pair."""

from __future__ import annotations

import jax.numpy as jnp

from tddpo_jax.losses.elementary import PerPair
from tddpo_jax.losses.pair_logps import PairLogps, log_ratios

# A difference of log-ratios that is rounding prefers neither response: 1e-4 nats, or the float32
# spacing of the two sums where that is wider (two sums of together more than 840 nats).
TIE_NATS = 1e-4


def pair_metrics(
    pairs: PairLogps, loss: PerPair, rewards: tuple[PerPair, PerPair]
) -> dict[str, PerPair]:
    """Every one of `PAIR_METRICS` for each pair, from its loss and its rewards."""
    s_w, s_l = log_ratios(pairs)
    chosen, rejected = rewards
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
