"""Which experts a token chooses, and with which weights. All of it is computed in float32.

Letters: N tokens, E experts, K choices of a token, G groups of experts.

References:
    OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card" (2025).
    Meta, "Llama 4", huggingface/transformers, `models/llama4/modeling_llama4.py`.
    DeepSeek-AI, "DeepSeek-V3 Technical Report" (2024), section 2.1.2.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

SMALLEST_SUM = 1e-20  # added to the sum by which DeepSeek divides its weights


class Route(NamedTuple):
    """The choices of every token."""

    expert: Int[Array, "*N K"]
    weight: Float[Array, "*N K"]  # float32
    logits: Float[Array, "*N E"] | None = None  # of all experts, for the loss of the router


def _best(scores: Float[Array, "*N E"], count: int) -> Int[Array, "*N K"]:
    return jax.lax.top_k(jax.lax.stop_gradient(scores), count)[1]


def _at(scores: Float[Array, "*N E"], expert: Int[Array, "*N K"]) -> Float[Array, "*N K"]:
    return jnp.take_along_axis(scores, expert, axis=-1)


def softmax_of_best(logits: Float[Array, "*N E"], count: int) -> Route:
    """The best logits, with a softmax over these alone (gpt-oss)."""
    expert = _best(logits, count)
    return Route(expert, jax.nn.softmax(_at(logits, expert), axis=-1), logits)


def sigmoid_of_best(logits: Float[Array, "*N E"], count: int) -> Route:
    """The best logits, each through a sigmoid of its own (Llama 4)."""
    expert = _best(logits, count)
    return Route(expert, jax.nn.sigmoid(_at(logits, expert)), logits)


def sigmoid_in_groups(
    logits: Float[Array, "*N E"],
    correction: Float[Array, " E"],
    count: int,
    *,
    groups: int,
    kept_groups: int,
    factor: float,
) -> Route:
    """The best experts of the best groups by corrected scores (DeepSeek V3).

    The correction only chooses. The weights are the scores themselves, divided by their sum.

    Args:
        logits: of every expert.
        correction: added to the scores for the choice; it gets no gradient.
        count: number of choices of a token.
        groups: number of groups into which the experts are divided, in their order.
        kept_groups: number of groups from which a token chooses. A group counts as much as its two
            best corrected scores together.
        factor: of the weights, which sum to it.
    """
    scores = jax.nn.sigmoid(logits)
    choice = scores + correction.reshape((1,) * (scores.ndim - 1) + correction.shape)
    by_group = choice.reshape(*choice.shape[:-1], groups, -1)
    group_scores = jnp.sum(jax.lax.top_k(by_group, 2)[0], axis=-1)
    kept = jnp.any(jax.nn.one_hot(_best(group_scores, kept_groups), groups, dtype=bool), axis=-2)
    allowed = jnp.where(kept[..., None], by_group, -jnp.inf).reshape(choice.shape)
    expert = _best(allowed, count)
    weight = _at(scores, expert)
    total = jnp.sum(weight, axis=-1, keepdims=True) + SMALLEST_SUM
    return Route(expert, factor * weight / total, logits)


def load(choices: Float[Array, "*L E"]) -> Float[Array, "*L"]:
    """The largest share of an expert over the mean share: 1 if all are chosen equally often."""
    most, mean = jnp.max(choices, axis=-1), jnp.mean(choices, axis=-1)
    return most / jnp.maximum(mean, 1e-9)
