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

from tddpo_jax.models.experts.routing import Route, choices_of_experts


class Balance(NamedTuple):
    """Sums over the tokens of all branches, so a prompt counts once for each of its responses."""

    choices: Float[Array, "*L E"]  # how often each expert is chosen
    probability: Float[Array, "*L E"]  # of each expert, by a softmax over all of them


class Usage(NamedTuple):
    """What the tokens of a micro-batch do with the experts of a layer, or of L layers."""

    choices: Float[Array, "*L E"]  # how often tokens choose each expert; none is padding
    balance: Balance | None  # None if no loss reads it


def usage(route: Route, uses: Int[Array, "B T"], *, with_balance: bool) -> Usage:
    """The usage of one layer's experts.

    Args:
        route: the experts of every token.
        uses: number of branches that each token belongs to; 0 at padding.
        with_balance: whether a loss reads the balance.
    """
    assert route.logits is not None
    experts = route.logits.shape[-1]
    choices = choices_of_experts(route.expert, (uses > 0).astype(jnp.float32), experts)
    if not with_balance:
        return Usage(choices, None)
    times = uses.astype(jnp.float32)
    probability = jnp.einsum("BT,BTE->E", times, jax.nn.softmax(route.logits, axis=-1))
    return Usage(choices, Balance(choices_of_experts(route.expert, times, experts), probability))


def balance_loss(balance: Balance, chosen: int) -> Float[Array, ""]:
    """The loss that a router trains with: it is `chosen` if all experts are used equally often.

    It is E times the sum over experts of f P, over the tokens of all layers together. f is the
    number of choices per token that fall on the expert, and P is its mean probability. Only P has
    a gradient.

    Args:
        balance: the sums of a micro-batch, of all layers.
        chosen: number of experts that a token uses.
    """
    choices, probability = (jnp.sum(x.reshape(-1, x.shape[-1]), axis=0) for x in balance)
    tokens = jnp.maximum(jnp.sum(choices) / chosen, 1.0)
    return choices.size * jnp.sum((choices / tokens) * (probability / tokens))
