"""Attention in which every query sees one contiguous range of keys.

`attention(q, k, v, key_start, key_end)` is the only mask definition of the project. The `xla`
implementation costs what the ranges cost: queries go in blocks, and each block visits only the key
blocks that its own ranges reach, with the running softmax of FlashAttention, so no `[T, T]` array
exists on any device. On NVIDIA GPUs `attention_cudnn` does the same for the branches one by one.

Einsum letters: B rows, T stream positions, K key/value heads, G queries per key/value head, Q and C
the queries and keys of a block, S head size.

References:
    Dao et al., "FlashAttention" (2022), algorithm 1 and its backward pass in appendix B.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from tddpo_jax.attention_cudnn import causal_rows_attention
from tddpo_jax.causal_rows import CausalRows

BLOCK = 64
# Finite, so that the difference of two masked scores is 0 and never nan.
MASKED = -1e30


def attention(
    q: Float[Array, "B T H size"],
    k: Float[Array, "B T K size"],
    v: Float[Array, "B T K size"],
    key_start: Int[Array, "B T"],
    key_end: Int[Array, "B T"],
    *,
    implementation: str = "xla",
    causal_rows: Sequence[CausalRows] = (),
) -> Float[Array, "B T H size"]:
    """Softmax attention of query i over keys `key_start[i] <= j < key_end[i]`.

    Scores are scaled by 1/sqrt(size); a query with an empty range gets zeros. Statistics and sums
    are float32.

    Args:
        q: queries; head h reads key/value head `h // (H // K)`.
        k: keys.
        v: values.
        key_start: first key each query sees.
        key_end: one past the last key each query sees.
        implementation: `xla` or `cudnn`; others are refused, never replaced.
        causal_rows: the same ranges as causal rows, which `cudnn` reads in their place.

    Raises:
        ValueError: the implementation is unknown, or cannot compute this.
    """
    if implementation == "cudnn":
        return causal_rows_attention(q, k, v, causal_rows)
    if implementation != "xla":
        raise ValueError(f"model.attention: {implementation!r} is not available")
    rows, length, heads, size = q.shape
    padding = -length % BLOCK
    if padding:
        q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q, k, v))
        key_start, key_end = (
            jnp.pad(x, ((0, 0), (0, padding)), constant_values=length) for x in (key_start, key_end)
        )
    key_value_heads = k.shape[2]
    q = (q * size**-0.5).reshape(rows, -1, key_value_heads, heads // key_value_heads, size)
    out = _ranged(
        q.transpose(0, 2, 3, 1, 4), k.swapaxes(1, 2), v.swapaxes(1, 2), key_start, key_end
    )
    return out.transpose(0, 3, 1, 2, 4).reshape(rows, -1, heads, size)[:, :length]


def _blocks(x: Array, axis: int) -> Array:
    """Cuts an axis into blocks and puts the block number in front, for `scan`."""
    shape = (*x.shape[:axis], -1, BLOCK, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _unblocked(x: Array, axis: int) -> Array:
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _reach(start: Int[Array, "B Q"], end: Int[Array, "B Q"]) -> tuple[Array, Array]:
    """The half-open range of key blocks that a block of queries reaches, over all rows."""
    return jnp.min(start) // BLOCK, (jnp.max(jnp.where(end > start, end, 0)) + BLOCK - 1) // BLOCK


def _key_block(x: Float[Array, "B K T S"], j: Array) -> Float[Array, "B K C S"]:
    return jax.lax.dynamic_slice_in_dim(x, j * BLOCK, BLOCK, axis=2)


def _scores(q: Array, k: Array, start: Array, end: Array, j: Array) -> Float[Array, "B K G Q C"]:
    scores = jnp.einsum("BKGQS,BKCS->BKGQC", q, k, preferred_element_type=jnp.float32)
    key = j * BLOCK + jnp.arange(BLOCK)
    seen = (start[:, :, None] <= key) & (key < end[:, :, None])
    return jnp.where(seen[:, None, None], scores, MASKED)


def _forward(q: Array, k: Array, v: Array, start: Array, end: Array) -> tuple[Array, Array]:
    """The output and the log-sum-exp of the scores of each query."""

    def query_block(_: None, block: tuple[Array, Array, Array]) -> tuple[None, tuple[Array, Array]]:
        q, start, end = block

        def key_block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            out, total, largest = carry
            scores = _scores(q, _key_block(k, j), start, end, j)
            new_largest = jnp.maximum(largest, jnp.max(scores, axis=-1))
            # A query that has seen no key yet has largest == MASKED; exp(0) must not count then.
            weights = jnp.where(scores > MASKED, jnp.exp(scores - new_largest[..., None]), 0.0)
            shrink = jnp.exp(largest - new_largest)
            mixed = jnp.einsum(
                "BKGQC,BKCS->BKGQS",
                weights.astype(v.dtype),
                _key_block(v, j),
                preferred_element_type=jnp.float32,
            )
            out = out * shrink[..., None] + mixed
            return out, total * shrink + jnp.sum(weights, axis=-1), new_largest

        # Derived from q, so that a scan inside shard_map or vmap sees one consistent type.
        out = jnp.zeros_like(q, dtype=jnp.float32)
        total = jnp.zeros_like(q[..., 0], dtype=jnp.float32)
        first, last = _reach(start, end)
        out, total, largest = jax.lax.fori_loop(
            first, last, key_block, (out, total, total + MASKED)
        )
        safe = jnp.where(total > 0, total, 1.0)
        return None, ((out / safe[..., None]).astype(q.dtype), largest + jnp.log(safe))

    blocks = (_blocks(q, 3), _blocks(start, 1), _blocks(end, 1))
    _, (out, log_total) = jax.lax.scan(query_block, None, blocks)
    return _unblocked(out, 3), _unblocked(log_total, 3)


@jax.custom_vjp
def _ranged(
    q: Float[Array, "B K G T S"],
    k: Float[Array, "B K T S"],
    v: Float[Array, "B K T S"],
    start: Int[Array, "B T"],
    end: Int[Array, "B T"],
) -> Float[Array, "B K G T S"]:
    return _forward(q, k, v, start, end)[0]


def _ranged_forward(q: Array, k: Array, v: Array, start: Array, end: Array) -> tuple[Array, tuple]:
    out, log_total = _forward(q, k, v, start, end)
    # Named, so that the remat policy `dots` keeps them and backward need not run forward again.
    out, log_total = checkpoint_name(out, "attention"), checkpoint_name(log_total, "attention")
    return out, (q, k, v, start, end, out, log_total)


def _ranged_backward(saved: tuple, d_out: Array) -> tuple[Array, Array, Array, None, None]:
    q, k, v, start, end, out, log_total = saved
    # Row sums of d_scores * weights, FlashAttention appendix B.
    inner = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def query_block(carry: tuple[Array, Array], block: tuple) -> tuple[tuple[Array, Array], Array]:
        q, d_out, log_total, inner, start, end = block
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

        def key_block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_q, d_k, d_v = carry
            kj, vj = _key_block(k, j), _key_block(v, j)
            scores = _scores(q, kj, start, end, j)
            weights = jnp.where(scores > MASKED, jnp.exp(scores - log_total[..., None]), 0.0)
            d_weights = product("BKGQS,BKCS->BKGQC", d_out, vj)
            d_scores = (weights * (d_weights - inner[..., None])).astype(q.dtype)
            d_vj = product("BKGQC,BKGQS->BKCS", weights.astype(q.dtype), d_out)
            d_kj = product("BKGQC,BKGQS->BKCS", d_scores, q)
            d_q = d_q + product("BKGQC,BKCS->BKGQS", d_scores, kj)
            return d_q, _add_block(d_k, d_kj, j), _add_block(d_v, d_vj, j)

        d_q = jnp.zeros_like(q, dtype=jnp.float32)
        d_q, *carry_out = jax.lax.fori_loop(*_reach(start, end), key_block, (d_q, *carry))
        return (carry_out[0], carry_out[1]), d_q.astype(q.dtype)

    zeros = jnp.zeros_like(k, dtype=jnp.float32), jnp.zeros_like(v, dtype=jnp.float32)
    blocks = (
        *(_blocks(x, 3) for x in (q, d_out, log_total, inner)),
        _blocks(start, 1),
        _blocks(end, 1),
    )
    (d_k, d_v), d_q = jax.lax.scan(query_block, zeros, blocks)
    return _unblocked(d_q, 3), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None


def _add_block(x: Float[Array, "B K T S"], block: Float[Array, "B K C S"], j: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, _key_block(x, j) + block, j * BLOCK, axis=2)


_ranged.defvjp(_ranged_forward, _ranged_backward)
