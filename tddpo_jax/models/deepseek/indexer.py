"""The indexer of DeepSeek V3.2, which chooses the keys of every query.

It is not trained here: no gradient reaches it. It computes in float32. DeepSeek's own code rotates
its queries and keys by a Hadamard matrix, which changes no product, and rounds them to eight bits.
Like transformers, we leave both out.

Letters: B rows, T stream positions, D width, L features of the latent of queries.

References:
    DeepSeek-AI, "DeepSeek-V3.2-Exp" (2025), section 1: lightning indexer.
    huggingface/transformers, `models/deepseek_v32/modeling_deepseek_v32.py`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from tddpo_jax.models.attention.choice import Choice
from tddpo_jax.models.buffer import Buffer
from tddpo_jax.models.rope import rotate

NORM_EPSILON = 1e-6  # DeepSeek has it in its code


@dataclasses.dataclass(frozen=True)
class IndexerShape:
    """The sizes of an indexer."""

    heads: int
    size: int  # features of a head's query and of a key; all heads share the keys
    most: int  # number of keys that a query attends to at most

    @property
    def axes(self) -> dict[str, int]:
        """The sizes of the axes of its tensors, by the axes' names."""
        return {
            "index_queries": self.heads * self.size,
            "index_key": self.size,
            "index_heads": self.heads,
        }


class Indexer(nnx.Module):
    """Gives every token queries, a key and weights.

    Args:
        shape: the sizes.
        width: features of the hidden states.
        query_latent: features of the latent that the layer's queries are made of.
        rotated_size: number of features that are rotated; they are first.
        rope_factor: factor of rotated features.
        key: random key for fresh weights.
    """

    def __init__(
        self,
        shape: IndexerShape,
        width: int,
        query_latent: int,
        rotated_size: int,
        rope_factor: float,
        key: PRNGKeyArray,
    ) -> None:
        first, second, third = jax.random.split(key, 3)
        self.shape, self.rotated_size, self.rope_factor = shape, rotated_size, rope_factor
        queries = (shape.heads * shape.size, query_latent)
        self.queries = Buffer(0.02 * jax.random.normal(first, queries))
        self.keys = Buffer(0.02 * jax.random.normal(second, (shape.size, width)))
        self.norm_weight = Buffer(jnp.ones(shape.size))
        self.norm_bias = Buffer(jnp.zeros(shape.size))
        self.weights = Buffer(0.02 * jax.random.normal(third, (shape.heads, width)))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        queries: Float[Array, "B T L"],
        angle: Float[Array, "B T half"],
    ) -> Choice:
        """What the choice of keys needs.

        Args:
            x: normed hidden states.
            queries: the normed latent of the layer's queries.
            angle: rotation angles by position.
        """
        x, queries = (jax.lax.stop_gradient(each).astype(jnp.float32) for each in (x, queries))
        q = _product(queries, self.queries[...]).reshape(*x.shape[:2], self.shape.heads, -1)
        k = self._normed(_product(x, self.keys[...]))[:, :, None]
        factor = (self.shape.heads * self.shape.size) ** -0.5
        weights = factor * _product(x, self.weights[...])
        return Choice(self._turned(q, angle), self._turned(k, angle), weights, self.shape.most)

    def _normed(self, x: Float[Array, "B T size"]) -> Float[Array, "B T size"]:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        scaled = centred * jax.lax.rsqrt(variance + NORM_EPSILON)
        return scaled * self.norm_weight[...][None, None] + self.norm_bias[...][None, None]

    def _turned(
        self, x: Float[Array, "B T I size"], angle: Float[Array, "B T half"]
    ) -> Float[Array, "B T I size"]:
        """Rotates the first features, in halves, unlike the rotation of the layer's own queries."""
        turned, plain = jnp.split(x, [self.rotated_size], axis=-1)
        return jnp.concatenate([rotate(turned, angle, self.rope_factor), plain], axis=-1)


def _product(x: Float[Array, "B T I"], weight: Float[Array, "O I"]) -> Float[Array, "B T O"]:
    return jnp.einsum("BTI,OI->BTO", x, weight, precision=jax.lax.Precision.HIGHEST)
