"""How evenly the tokens of a micro-batch use the experts of a model.

Letters: B rows, T stream positions, K choices of a token, L layers, E experts.

References:
    Fedus et al., "Switch Transformers" (2021), section 2.2, equations 4 to 6.
    huggingface/transformers, `models/mixtral/modeling_mixtral.py`, whose loss TRL uses.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tddpo_jax.models.experts.routing import Route


class Balance(NamedTuple):
    """Sums over the tokens of all branches, so a prompt counts once for each of its responses."""

    choices: Float[Array, "*sums E"]  # how often each expert is chosen
    probability: Float[Array, "*sums E"]  # of each expert, by a softmax over all of them


class Usage(NamedTuple):
    """What tokens do with the experts of a layer."""

    choices: Float[Array, "*sums E"]  # how often tokens choose each expert; none is padding
    balance: Balance | None  # None if no loss reads it


def usage(route: Route, uses: Int[Array, "B T"], *, with_balance: bool) -> Usage:
    """The usage of one layer's experts, by rows: no sum here crosses devices.

    Args:
        route: the experts of every token.
        uses: number of branches that each token belongs to; 0 at padding.
        with_balance: whether a loss reads the balance.

    Returns:
        The sums of every row, `[B, E]`.
    """
    assert route.logits is not None
    hot = jax.nn.one_hot(route.expert, route.logits.shape[-1])
    times = uses.astype(jnp.float32)
    choices = _over_tokens(hot, (uses > 0).astype(jnp.float32))
    if not with_balance:
        return Usage(choices, None)
    probability = jnp.einsum("BT,BTE->BE", times, jax.nn.softmax(route.logits, axis=-1))
    return Usage(choices, Balance(_over_tokens(hot, times), probability))


def _over_tokens(hot: Float[Array, "B T K E"], times: Float[Array, "B T"]) -> Float[Array, "B E"]:
    """The sum over tokens, each counted so many times. As a product it would hold `hot` whole."""
    return jnp.sum(hot * times[..., None, None], axis=(1, 2))


def balance_loss(balance: Balance) -> Float[Array, ""]:
    """The loss that a router trains with: K if all experts are used equally often.

    It is E times the sum over experts of f P, over the tokens of all layers together. f is the
    number of choices per token that fall on the expert, and P is its mean probability. Only P has
    a gradient.

    Args:
        balance: the sums of a micro-batch, `[L, E]` each.
    """
    choices, probability = (jnp.sum(x, axis=0) for x in balance)
    # The probabilities of a token sum to 1.
    tokens = jnp.maximum(jax.lax.stop_gradient(jnp.sum(probability)), 1.0)
    return choices.size * jnp.sum((choices / tokens) * (probability / tokens))
