"""A feed-forward that all tokens use, with or without experts beside it."""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from tddpo_jax.models.linear import DropoutKeys, Linear, gated


class FeedForward(nnx.Module):
    """A gated feed-forward. B rows, T stream positions, D width.

    Args:
        width: features of the hidden states.
        inner: hidden features.
        key: random key for fresh weights.
    """

    def __init__(self, width: int, inner: int, key: PRNGKeyArray) -> None:
        keys = jax.random.split(key, 3)
        self.gate_proj = Linear(width, inner, keys[0])
        self.up_proj = Linear(width, inner, keys[1])
        self.down_proj = Linear(inner, width, keys[2])

    def __call__(self, x: Float[Array, "B T D"], keys: DropoutKeys) -> Float[Array, "B T D"]:
        inner = gated(jax.nn.silu, self.gate_proj(x, keys[0]), self.up_proj(x, keys[1]))
        return self.down_proj(inner, keys[2])
