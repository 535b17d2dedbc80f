"""Multi-head latent attention: keys and values of all heads are made of one latent per token.

Training expands the latent into keys and values. Decoding keeps the latents and absorbs the
expansion into queries and outputs (see `models/attention/latent.py`).

Letters: B rows, T stream positions, D width, H heads, L features of the latent and of the key that
all heads share, R ranks of an adapter.

References:
    DeepSeek-AI, "DeepSeek-V2" (2024), section 2.1.
    huggingface/transformers, `models/deepseek_v3/modeling_deepseek_v3.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from tddpo_jax.models.attention.latent import Latent
from tddpo_jax.models.deepseek.indexer import Indexer, IndexerShape
from tddpo_jax.models.linear import Adapter, DropoutKeys, Linear, dense, mark_product
from tddpo_jax.models.norm import RMSNorm
from tddpo_jax.models.rope import rotate

INNER_EPSILON = 1e-6  # of the norms of the latents; DeepSeek has it in its code


@dataclasses.dataclass(frozen=True)
class LatentShape:
    """The sizes of latent attention."""

    width: int
    heads: int
    query_latent: int  # features of the latent that queries are made of
    key_latent: int  # features of the latent that keys and values are made of
    plain_size: int  # features of a head's query and key that are not rotated; they are first
    rotated_size: int  # features of a head's query that are rotated; all heads share those of a key
    value_size: int

    @property
    def size(self) -> int:
        """Features of a query and of a key."""
        return self.plain_size + self.rotated_size

    @property
    def axes(self) -> dict[str, int]:
        """The sizes of the axes of its tensors, by the axes' names."""
        return {
            "query_latent": self.query_latent,
            "key_latent": self.key_latent,
            "compressed": self.key_latent + self.rotated_size,
            "queries": self.heads * self.size,
            "keys_values": self.heads * (self.plain_size + self.value_size),
            "attended": self.heads * self.value_size,
        }


class LatentAttention(nnx.Module):
    """The products before and behind attention.

    Args:
        shape: the sizes.
        rope_factor: factor of rotated features.
        key: random key for fresh weights.
        indexer: the sizes of what chooses keys; None: nothing does.
    """

    def __init__(
        self,
        shape: LatentShape,
        rope_factor: float,
        key: PRNGKeyArray,
        indexer: IndexerShape | None = None,
    ) -> None:
        *keys, indexer_key = jax.random.split(key, 6)
        width, axes = shape.width, shape.axes
        self.shape = shape
        self.rope_factor = rope_factor
        self.q_a_proj = Linear(width, shape.query_latent, keys[0])
        self.q_a_norm = RMSNorm(shape.query_latent, INNER_EPSILON)
        self.q_b_proj = Linear(shape.query_latent, axes["queries"], keys[1])
        self.kv_a_proj_with_mqa = Linear(width, axes["compressed"], keys[2])
        self.kv_a_norm = RMSNorm(shape.key_latent, INNER_EPSILON)
        self.kv_b_proj = Linear(shape.key_latent, axes["keys_values"], keys[3])
        self.o_proj = Linear(axes["attended"], width, keys[4])
        self.indexer: Indexer | None = nnx.data(None)
        if indexer is not None:
            sizes = width, shape.query_latent, shape.rotated_size
            self.indexer = Indexer(indexer, *sizes, rope_factor, indexer_key)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        angle: Float[Array, "B T half"],
        attend: Callable[..., tuple[Array, Any]],
        keys: DropoutKeys,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """What attention adds to the hidden states, and what `attend` kept.

        Args:
            x: normed hidden states.
            angle: rotation angles by position.
            attend: takes queries, keys, values, their latent and the indexer's choice; gives
                attention's output and what to keep.
            keys: keys for the adapters' dropout.
        """
        shape, places = self.shape, x.shape[:2]
        queries = self.q_a_norm(mark_product(self.q_a_proj(x, keys[0])))
        q = mark_product(self.q_b_proj(queries, keys[1])).reshape(*places, shape.heads, shape.size)
        plain, turned = jnp.split(q, [shape.plain_size], axis=-1)
        q = jnp.concatenate([plain, self._rotated(turned, angle)], axis=-1)
        compressed = mark_product(self.kv_a_proj_with_mqa(x, keys[2]))
        latent, shared_key = jnp.split(compressed, [shape.key_latent], axis=-1)
        latent = self.kv_a_norm(latent)
        shared_key = self._rotated(shared_key[:, :, None], angle)
        k, v = self._keys_values(latent, shared_key, keys[3])
        vector = jnp.concatenate([latent[:, :, None], shared_key], axis=-1)
        latent_form = Latent(vector, self._absorbed, self._expanded)
        choice = None if self.indexer is None else self.indexer(x, queries, angle)
        attended, kept = attend(q, k, v, latent=latent_form, choice=choice)
        return self.o_proj(attended.reshape(*places, -1), keys[4]), kept

    def _rotated(
        self, x: Float[Array, "B T H size"], angle: Float[Array, "B T half"]
    ) -> Float[Array, "B T H size"]:
        return rotate(x, angle, self.rope_factor, "adjacent")

    def _keys_values(
        self,
        latent: Float[Array, "B T latent"],
        shared_key: Float[Array, "B T 1 rotated"],
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T H size"], Float[Array, "B T H value_size"]]:
        shape = self.shape
        both = mark_product(self.kv_b_proj(latent, key))
        both = both.reshape(*latent.shape[:2], shape.heads, -1)
        plain, v = jnp.split(both, [shape.plain_size], axis=-1)
        turned = jnp.broadcast_to(shared_key, (*plain.shape[:3], shape.rotated_size))
        return jnp.concatenate([plain, turned], axis=-1), v

    def _by_head(self, weight: Float[Array, "outputs inputs"]) -> tuple[Array, Array]:
        """The rows of a factor of `kv_b_proj` that give keys, and those that give values."""
        by_head = weight.reshape(self.shape.heads, -1, weight.shape[-1])
        return by_head[:, : self.shape.plain_size], by_head[:, self.shape.plain_size :]

    def _absorbed(self, q: Float[Array, "B T H size"]) -> Float[Array, "B T H L"]:
        """Queries that have the same scores with latents as `q` with keys."""
        plain, turned = jnp.split(q, [self.shape.plain_size], axis=-1)
        weight = dense(self.kv_b_proj.weight.get_value()).astype(q.dtype)
        out = jnp.einsum("BTHs,HsL->BTHL", plain, self._by_head(weight)[0])
        if self.kv_b_proj.adapter is not None:
            a, b, gate = _factors(self.kv_b_proj.adapter, q.dtype)
            low = jnp.einsum("BTHs,HsR->BTHR", plain, self._by_head(b)[0]) * gate
            out = out + jnp.einsum("BTHR,RL->BTHL", low, a)
        return jnp.concatenate([out, turned], axis=-1)

    def _expanded(self, attended: Float[Array, "B T H L"]) -> Float[Array, "B T H value_size"]:
        """The weighted sums of values, for weighted sums of latents."""
        latent = attended[..., : self.shape.key_latent]
        weight = dense(self.kv_b_proj.weight.get_value()).astype(latent.dtype)
        out = jnp.einsum("BTHL,HvL->BTHv", latent, self._by_head(weight)[1])
        if self.kv_b_proj.adapter is not None:
            a, b, gate = _factors(self.kv_b_proj.adapter, latent.dtype)
            low = jnp.einsum("BTHL,RL->BTHR", latent, a) * gate
            out = out + jnp.einsum("BTHR,HvR->BTHv", low, self._by_head(b)[1])
        return out


def _factors(adapter: Adapter, dtype: Any) -> tuple[Array, Array, Float[Array, "B T H R"]]:
    """The factors of an adapter, and those of its ranks in the rows of a batch."""
    a, b = adapter.factors()
    gate = adapter.gate_of_ranks()
    if gate is None:
        gate = jnp.ones((1, a.shape[0]))
    return a.astype(dtype), b.astype(dtype), gate.astype(dtype)[:, None, None]
