"""Which of its visible keys a query attends to, where an indexer leaves it the best ones.

The indexer gives every query a score for every key. If a query sees more keys than `most`, only
those with the best scores remain. Nothing here has a gradient.

Letters: B rows, T queries, S keys, I heads of the indexer.

References:
    DeepSeek-AI, "DeepSeek-V3.2-Exp" (2025), section 1: lightning indexer.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tddpo_jax.models.attention.view import View, in_range

BLOCK = 64  # queries that are scored at once


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("queries", "keys", "weights"),
    meta_fields=("most",),
)
@dataclasses.dataclass(frozen=True)
class Choice:
    """What the indexer of a layer makes of every token, in float32."""

    queries: Float[Array, "B T I features"]
    keys: Float[Array, "B T 1 features"]
    weights: Float[Array, "B T I"]  # of the indexer's heads
    most: int  # number of keys that a query attends to at most


def index_scores(
    queries: Float[Array, "B T I features"],
    weights: Float[Array, "B T I"],
    keys: Float[Array, "B S features"],
) -> Float[Array, "B T S"]:
    """The indexer's score of every query for every key."""
    products = jnp.einsum("BTIf,BSf->BTIS", queries, keys, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum(
        "BTIS,BTI->BTS", jax.nn.relu(products), weights, precision=jax.lax.Precision.HIGHEST
    )


def best(
    score: Float[Array, "*queries S"], seen: Bool[Array, "*queries S"], most: int
) -> Bool[Array, "*queries S"]:
    """Which of the keys that a query sees have the best scores.

    Keys with the same score as the last of the best remain too, so no order of keys matters.
    """
    visible = jnp.where(seen, score, -jnp.inf)
    last = jax.lax.top_k(visible, most)[0][..., -1:]
    return seen & (visible >= last)


def chosen_keys(choice: Choice, view: View) -> Bool[Array, "B T T"]:
    """The keys that every token of a stream attends to. The stream is longer than `choice.most`."""
    rows, length = view.key_start.shape

    def of_block(block: tuple[Array, ...]) -> Array:
        queries, weights, start, end = block
        seen = in_range(start, end, 0, length)
        return best(index_scores(queries, weights, choice.keys[:, :, 0]), seen, choice.most)

    def in_blocks(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -length % BLOCK), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(rows, -1, BLOCK, *x.shape[2:]).swapaxes(0, 1)

    inputs = choice.queries, choice.weights, view.key_start, view.key_end
    found = jax.lax.map(of_block, tuple(map(in_blocks, inputs)))
    return found.swapaxes(0, 1).reshape(rows, -1, length)[:, :length]
