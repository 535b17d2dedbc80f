"""Attention in which every query sees one contiguous range of keys.

`attention(q, k, v, key_start, key_end)` is the only mask definition of the project. The `xla`
implementation costs what the ranges cost: queries go in blocks, and each block visits only the key
blocks that its own ranges reach, with the running softmax of FlashAttention, so no `[T, T]` array
exists on any device. On NVIDIA GPUs `attention_kernels` does the same for the branches one by one.

Letters: B rows, T stream positions, K key/value heads, S head size, N blocks, C the keys of a
block, Q its queries: those of all heads that share a key/value head, one head after the other.

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

from tddpo_jax.batches.causal_rows import CausalRows
from tddpo_jax.models.attention.kernels import KERNELS, causal_rows_attention

BLOCK = 64
# Finite, so that no difference is nan; the largest score of a query starts above every masked one,
# so that these have weight 0 also where the query has seen no key yet.
MASKED, SMALLEST = -1e30, -5e29


def attention(
    q: Float[Array, "B T H size"],
    k: Float[Array, "B T K size"],
    v: Float[Array, "B T K size"],
    key_start: Int[Array, "B T"],
    key_end: Int[Array, "B T"],
    causal_rows: Sequence[CausalRows] = (),
    *,
    implementation: str = "xla",
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
        causal_rows: the same ranges as causal rows, which `cudnn` and `tokamax` read instead.
        implementation: `xla`, `cudnn` or `tokamax`; others are refused, never replaced.

    Raises:
        UserError: the implementation has no kernel for these heads.
        ValueError: the implementation is unknown, or cannot compute this.
    """
    if implementation in KERNELS:
        return causal_rows_attention(q, k, v, causal_rows, kernel=implementation)
    if implementation != "xla":
        raise ValueError(f"attention {implementation!r} is not available")
    start, end = key_start, key_end
    rows, length, heads, size = q.shape
    padding = -length % BLOCK
    if padding:
        q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q, k, v))
        start, end = (
            jnp.pad(x, ((0, 0), (0, padding)), constant_values=length) for x in (start, end)
        )
    shared = heads // k.shape[2]
    q = (q * size**-0.5).reshape(rows, -1, BLOCK, k.shape[2], shared, size)
    q = q.transpose(1, 0, 3, 4, 2, 5).reshape(-1, rows, k.shape[2], shared * BLOCK, size)
    k, v = (x.reshape(rows, -1, BLOCK, *x.shape[2:]).transpose(1, 0, 3, 2, 4) for x in (k, v))
    start, end = (
        jnp.tile(x.reshape(rows, -1, BLOCK).swapaxes(0, 1), (1, 1, shared)) for x in (start, end)
    )
    out = _ranged(q, k, v, start, end).reshape(-1, rows, k.shape[2], shared, BLOCK, size)
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(rows, -1, heads, size)[:, :length]


# Rows times columns, the form that a matrix product takes without a transpose.
_product = functools.partial(jnp.einsum, "BKxy,BKyz->BKxz", preferred_element_type=jnp.float32)


def _transposed(x: Array) -> Array:
    return x.swapaxes(-1, -2)


def _at(blocks: Array, j: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(blocks, j, keepdims=False)


def _add_at(blocks: Array, block: Array, j: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(blocks, _at(blocks, j) + block, j, 0)


def _reach(start: Int[Array, "B Q"], end: Int[Array, "B Q"]) -> tuple[Array, Array]:
    """The half-open range of key blocks that a block of queries reaches, over all rows."""
    return jnp.min(start) // BLOCK, (jnp.max(jnp.where(end > start, end, 0)) + BLOCK - 1) // BLOCK


def _scores(
    q: Float[Array, "B K Q S"], k: Float[Array, "B K S C"], start: Array, end: Array, j: Array
) -> Float[Array, "B K Q C"]:
    key = j * BLOCK + jnp.arange(BLOCK)
    seen = (start[:, :, None] <= key) & (key < end[:, :, None])
    return jnp.where(seen[:, None], _product(q, k), MASKED)


def _weights(scores: Array, shift: Array) -> Array:
    # Behind a barrier, or each of its readers computes the exponentials again.
    return jax.lax.optimization_barrier(jnp.exp(scores - shift[..., None]))


def _forward(q: Array, k: Array, v: Array, start: Array, end: Array) -> tuple[Array, Array]:
    """The output and the log-sum-exp of the scores of each query."""
    k = _transposed(k)

    def query_block(_: None, block: tuple[Array, Array, Array]) -> tuple[None, tuple[Array, Array]]:
        q, start, end = block

        def key_block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            out, total, largest = carry
            scores = _scores(q, _at(k, j), start, end, j)
            new_largest = jnp.maximum(largest, jnp.max(scores, axis=-1))
            weights = _weights(scores, new_largest)
            shrink = jnp.exp(largest - new_largest)
            out = out * shrink[..., None] + _product(weights.astype(v.dtype), _at(v, j))
            return out, total * shrink + jnp.sum(weights, axis=-1), new_largest

        # Derived from q, so that a scan inside shard_map or vmap sees one consistent type.
        out = jnp.zeros_like(q, dtype=jnp.float32)
        total = jnp.zeros_like(q[..., 0], dtype=jnp.float32)
        start_values = (out, total, total + SMALLEST)
        out, total, largest = jax.lax.fori_loop(*_reach(start, end), key_block, start_values)
        safe = jnp.where(total > 0, total, 1.0)
        return None, ((out / safe[..., None]).astype(q.dtype), largest + jnp.log(safe))

    _, (out, log_total) = jax.lax.scan(query_block, None, (q, start, end))
    return out, log_total


@jax.custom_vjp
def _ranged(
    q: Float[Array, "N B K Q S"],
    k: Float[Array, "N B K C S"],
    v: Float[Array, "N B K C S"],
    start: Int[Array, "N B Q"],
    end: Int[Array, "N B Q"],
) -> Float[Array, "N B K Q S"]:
    return _forward(q, k, v, start, end)[0]


def _ranged_forward(q: Array, k: Array, v: Array, start: Array, end: Array) -> tuple[Array, tuple]:
    out, log_total = _forward(q, k, v, start, end)
    # Named, so that the remat policy `dots` keeps them and backward need not run forward again.
    out, log_total = checkpoint_name(out, "attention"), checkpoint_name(log_total, "attention")
    return out, (q, k, v, start, end, out, log_total)


def _ranged_backward(saved: tuple, d_out: Array) -> tuple[Array, Array, Array, None, None]:
    """Sums the gradients of keys and values transposed: so no product transposes any weights."""
    q, k, v, start, end, out, log_total = saved
    # Row sums of d_scores * weights, FlashAttention appendix B.
    inner = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    k_t, v_t = _transposed(k), _transposed(v)

    def query_block(carry: tuple[Array, Array], block: tuple) -> tuple[tuple[Array, Array], Array]:
        q, q_t, d_out, d_out_t, log_total, inner, start, end = block

        def key_block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_q, d_k, d_v = carry
            weights = _weights(_scores(q, _at(k_t, j), start, end, j), log_total)
            d_weights = _product(d_out, _at(v_t, j))
            d_scores = (weights * (d_weights - inner[..., None])).astype(q.dtype)
            d_scores = jax.lax.optimization_barrier(d_scores)  # it has two readers as well
            return (
                d_q + _product(d_scores, _at(k, j)),
                _add_at(d_k, _product(q_t, d_scores), j),
                _add_at(d_v, _product(d_out_t, weights.astype(q.dtype)), j),
            )

        d_q = jnp.zeros_like(q, dtype=jnp.float32)
        d_q, *sums = jax.lax.fori_loop(*_reach(start, end), key_block, (d_q, *carry))
        return (sums[0], sums[1]), d_q.astype(q.dtype)

    zeros = jnp.zeros_like(k_t, dtype=jnp.float32), jnp.zeros_like(v_t, dtype=jnp.float32)
    blocks = (q, _transposed(q), d_out, _transposed(d_out), log_total, inner, start, end)
    (d_k, d_v), d_q = jax.lax.scan(query_block, zeros, blocks)
    return d_q, _transposed(d_k).astype(k.dtype), _transposed(d_v).astype(v.dtype), None, None


_ranged.defvjp(_ranged_forward, _ranged_backward)
