"""SFT: the loss that reads the chosen response alone."""

from __future__ import annotations

from tddpo_jax.losses.elementary import PerPair, Scalar
from tddpo_jax.losses.loss import Loss
from tddpo_jax.losses.pair_logps import PairLogps, Rewards, chosen_log_ratio, log_ratios


def sft(pairs: PairLogps, *, tokens_per_pair: Scalar) -> PerPair:
    """Negative log-likelihood of the chosen response, over the mean length of the batch's.

    The mean of the values is thus a mean over tokens, not over pairs.

    Args:
        pairs: P pairs.
        tokens_per_pair: the mean of `length_chosen` over the batch, of which `pairs` may be a part.

    Returns:
        [P] values in nats, 0 or more.

    Example:
        >>> import jax.numpy as jnp
        >>> zero, one = jnp.zeros(1), jnp.ones(1)
        >>> pairs = PairLogps(-9 * one, -7 * one, -8 * one, -7 * one, 3 * one, one, zero, zero)
        >>> sft(pairs, tokens_per_pair=3.0).tolist()
        [3.0]
    """
    return -pairs.logp_chosen / tokens_per_pair


def sft_rewards(pairs: PairLogps) -> Rewards:
    """The log-ratios in nats; a prompt with one response has no rejected one."""
    if pairs.logp_rejected is None:
        return chosen_log_ratio(pairs), None
    return log_ratios(pairs)


SFT = Loss(sft, {}, rewards=sft_rewards, responses=1)
