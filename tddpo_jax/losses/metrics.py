"""The metrics of every example, under any of the losses of an experiment."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tddpo_jax.losses.catalogue import LossScalars, LossSpec, per_pair_loss, rewards
from tddpo_jax.losses.pair_logps import PairLogps, chosen_log_ratio, log_ratios

# A difference of log-ratios that is rounding prefers neither response: 1e-4 nats, or the float32
# spacing of the two sums where that is wider (two sums of together more than 840 nats).
TIE_NATS = 1e-4


def pair_metrics(
    specs: tuple[LossSpec, ...],
    which: Int[Array, ""] | int,
    pairs: PairLogps,
    scalars: LossScalars,
) -> dict[str, Float[Array, " P"]]:
    """Every metric of each example: `PAIR_METRICS` of pairs, `RESPONSE_METRICS` of one response.

    `kl` is 0.5 * (s_w^2 + s_l^2) of a pair and 0.5 * s^2 of one response, in nats.

    Args: as for `losses.per_pair_loss`.
    """
    chosen, rejected = rewards(specs, which, pairs, scalars)
    if rejected is None:
        return {
            "loss": per_pair_loss(specs, which, pairs, scalars),
            "rewards/chosen": chosen,
            "logps/chosen": pairs.logp_chosen,
            "kl": 0.5 * chosen_log_ratio(pairs) ** 2,
        }
    s_w, s_l = log_ratios(pairs)
    spacing = jnp.finfo(s_w.dtype).eps * (jnp.abs(pairs.logp_chosen) + jnp.abs(pairs.logp_rejected))
    tie = jnp.abs(s_w - s_l) <= jnp.maximum(TIE_NATS, spacing)
    better = jnp.where(tie, 0.5, s_w > s_l)
    return {
        "loss": per_pair_loss(specs, which, pairs, scalars),
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": better,
        "logps/chosen": pairs.logp_chosen,
        "logps/rejected": pairs.logp_rejected,
        "logps/accuracies": (pairs.logp_chosen > pairs.logp_rejected).astype(jnp.float32),
        "kl": 0.5 * (s_w**2 + s_l**2),
    }
