"""Attention in which every query sees one contiguous range of keys, or the newest part of it.

The `xla` implementation costs only as much as the ranges. It computes queries in blocks. Each block
visits only the key blocks that its own ranges reach (see `attention/mask.py`), with the running
softmax of FlashAttention. So no `[T, T]` array exists on any device, with one exception: the choice
of an indexer is an array of booleans of this shape. On NVIDIA GPUs `attention/kernels.py` computes
the same result branch by branch.

Letters: B rows, T stream positions, H heads, K key/value heads, S features of a key, V features of
a value, N blocks, C keys of a block, Q queries of a block. The queries of a block are those of all
heads that share a key/value head, one head after the other.

References:
    Dao et al., "FlashAttention" (2022), algorithm 1 and its backward pass in appendix B.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from tddpo_jax.errors import UserError
from tddpo_jax.models.attention.choice import Choice
from tddpo_jax.models.attention.kernels import (
    KERNELS,
    NO_SINKS,
    causal_rows_attention,
    check_choice,
    widest,
)
from tddpo_jax.models.attention.mask import (
    BLOCK,
    Seen,
    block_at,
    seen_keys,
    visible_keys,
    visit_blocks,
    with_choice,
)
from tddpo_jax.models.attention.view import View

# Masked scores are finite, so that no difference is nan. The running largest score starts at
# SMALLEST, which is above MASKED. So masked scores have weight 0 even if a query sees no key.
MASKED, SMALLEST = -1e30, -5e29


def attention(
    q: Float[Array, "B T H size"],
    k: Float[Array, "B T K size"],
    v: Float[Array, "B T K value_size"],
    view: View,
    *,
    window: int | None = None,
    chunk: int | None = None,
    scale: float | None = None,
    sinks: Float[Array, " H"] | None = None,
    choice: Choice | None = None,
    implementation: str = "xla",
) -> Float[Array, "B T H value_size"]:
    """Softmax attention of query i over keys `key_start[i] <= j < key_end[i]`.

    With a window, query i sees only those of these keys that have
    `position[i] - position[j] < window`, and with chunks only those of its own chunk of positions.
    A query that sees no key gets zeros. Statistics and sums are float32.

    Args:
        q: queries; head h reads key/value head `h // (H // K)`.
        k: keys.
        v: values.
        view: the keys that each query sees; `cudnn` and `tokamax` read its causal rows.
        window: number of newest positions that a query sees, including its own; None: all.
        chunk: size of the chunks into which positions are cut; None: one chunk.
        scale: factor of the scores; None: 1/sqrt(size).
        sinks: a score of each head that takes part in the softmax without a value; only `xla`
            supports it.
        choice: what an indexer makes of every token, if it chooses among the keys that are seen;
            the kernels support it only for branches that are so short that it leaves all keys.
        implementation: `xla`, `cudnn` or `tokamax`; none of them ever replaces another.

    Returns:
        The attended values of every query, in the dtype of `q`.

    Raises:
        UserError: the implementation does not support this head size, this window, sinks or the
            choice of keys.
        ValueError: the implementation is unknown, or it does not support this dtype or view.
    """
    if implementation in KERNELS:
        if sinks is not None:
            raise UserError(NO_SINKS.format(implementation))
        if choice is not None:
            check_choice(implementation, choice.most, widest(view.causal_rows))
        return causal_rows_attention(
            q,
            k,
            v,
            view.causal_rows,
            window=window,
            chunk=chunk,
            scale=scale,
            kernel=implementation,
        )
    if implementation != "xla":
        raise ValueError(f"attention {implementation!r} is not available")
    rows, length, heads, size = q.shape
    shared = heads // k.shape[2]
    q = _in_blocks(q * (size**-0.5 if scale is None else scale), k.shape[2])
    k, v = (_in_blocks(x, x.shape[2]) for x in (k, v))
    seen, position = seen_keys(view, window, chunk, shared)
    if choice is not None:
        seen = with_choice(seen, choice, view, shared)
    # Adding an empty sum over the queries lets the sinks vary over the same mesh axes.
    sink = None if sinks is None else _of_queries(sinks, k.shape[2]) + jnp.sum(q[:0, :0, 0, 0, 0])
    out = _ranged(q, k, v, seen, position, sink).reshape(
        -1, rows, k.shape[2], shared, BLOCK, v.shape[-1]
    )
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(rows, -1, heads, v.shape[-1])[:, :length]


def _of_queries(sinks: Float[Array, " H"], key_value_heads: int) -> Float[Array, "K Q"]:
    """The sink of every query of a block."""
    by_head = sinks.astype(jnp.float32).reshape(key_value_heads, -1)
    return jnp.repeat(by_head, BLOCK, axis=1)


def _in_blocks(x: Float[Array, "B T H S"], key_value_heads: int) -> Float[Array, "N B K Q S"]:
    """Pads to whole blocks and puts heads that share a key/value head one after the other."""
    rows, length, heads, size = x.shape
    shared = heads // key_value_heads
    x = jnp.pad(x, ((0, 0), (0, -length % BLOCK), (0, 0), (0, 0)))
    x = x.reshape(rows, -1, BLOCK, key_value_heads, shared, size).transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(-1, rows, key_value_heads, shared * BLOCK, size)


# Rows times columns: a matrix product in this form needs no transpose.
_product = functools.partial(jnp.einsum, "BKxy,BKyz->BKxz", preferred_element_type=jnp.float32)


def _transposed(x: Array) -> Array:
    return x.swapaxes(-1, -2)


def _add_at(blocks: Array, block: Array, j: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(blocks, block_at(blocks, j) + block, j, 0)


def _scores(
    q: Float[Array, "B K Q S"],
    k: Float[Array, "N B K S C"],
    seen: Seen,
    position: Int[Array, "N B C"] | None,
    j: Array,
) -> Float[Array, "B K Q C"]:
    """The scores of one block of queries with key block j."""
    visible = visible_keys(seen, position, j)
    return jnp.where(visible[:, None], _product(q, block_at(k, j)), MASKED)


def _weights(scores: Array, shift: Array) -> Array:
    # Without the barrier each reader of the weights would compute the exponentials again.
    return jax.lax.optimization_barrier(jnp.exp(scores - shift[..., None]))


def _forward(
    q: Array, k: Array, v: Array, seen: Seen, position: Array | None, sink: Array | None
) -> tuple[Array, Array]:
    """The output and the log-sum-exp of the scores of each query, including its sink."""
    k = _transposed(k)

    def query_block(_: None, block: tuple[Array, Seen]) -> tuple[None, tuple[Array, Array]]:
        q, seen = block

        def key_block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            out, total, largest = carry
            scores = _scores(q, k, seen, position, j)
            new_largest = jnp.maximum(largest, jnp.max(scores, axis=-1))
            weights = _weights(scores, new_largest)
            shrink = jnp.exp(largest - new_largest)
            out = out * shrink[..., None] + _product(weights.astype(v.dtype), block_at(v, j))
            return out, total * shrink + jnp.sum(weights, axis=-1), new_largest

        # Deriving the zeros from q gives a scan inside shard_map or vmap one consistent type.
        total = jnp.zeros_like(q[..., 0], dtype=jnp.float32)
        out = jnp.broadcast_to(total[..., None], (*total.shape, v.shape[-1]))
        out, total, largest = visit_blocks(seen, key_block, (out, total, total + SMALLEST))
        safe = jnp.where(total > 0, total, 1.0)
        out, log_total = out / safe[..., None], largest + jnp.log(safe)
        if sink is not None:
            with_sink = jnp.logaddexp(log_total, sink[None])
            out, log_total = out * jnp.exp(log_total - with_sink)[..., None], with_sink
        return None, (out.astype(q.dtype), log_total)

    _, (out, log_total) = jax.lax.scan(query_block, None, (q, seen))
    return out, log_total


@jax.custom_vjp
def _ranged(
    q: Float[Array, "N B K Q S"],
    k: Float[Array, "N B K C S"],
    v: Float[Array, "N B K C V"],
    seen: Seen,
    position: Int[Array, "N B C"] | None,
    sink: Float[Array, "K Q"] | None,
) -> Float[Array, "N B K Q V"]:
    return _forward(q, k, v, seen, position, sink)[0]


def _ranged_forward(
    q: Array, k: Array, v: Array, seen: Seen, position: Array | None, sink: Array | None
) -> tuple[Array, tuple]:
    out, log_total = _forward(q, k, v, seen, position, sink)
    # The names make the remat policy `dots` keep both, so backward does not run forward again.
    out, log_total = checkpoint_name(out, "attention"), checkpoint_name(log_total, "attention")
    return out, (q, k, v, seen, position, sink, out, log_total)


def _ranged_backward(
    saved: tuple, d_out: Array
) -> tuple[Array, Array, Array, None, None, Array | None]:
    """Sums the gradients of keys and values transposed, so that no product transposes weights."""
    q, k, v, seen, position, sink, out, log_total = saved
    # Row sums of d_weights * weights, see FlashAttention, appendix B.
    inner = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    k_t, v_t = _transposed(k), _transposed(v)

    def query_block(carry: tuple[Array, Array], block: tuple) -> tuple[tuple[Array, Array], Array]:
        q, q_t, d_out, d_out_t, log_total, inner, seen = block

        def key_block(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_q, d_k, d_v = carry
            weights = _weights(_scores(q, k_t, seen, position, j), log_total)
            d_weights = _product(d_out, block_at(v_t, j))
            d_scores = (weights * (d_weights - inner[..., None])).astype(q.dtype)
            d_scores = jax.lax.optimization_barrier(d_scores)  # d_scores has two readers too
            return (
                d_q + _product(d_scores, block_at(k, j)),
                _add_at(d_k, _product(q_t, d_scores), j),
                _add_at(d_v, _product(d_out_t, weights.astype(q.dtype)), j),
            )

        d_q = jnp.zeros_like(q, dtype=jnp.float32)
        d_q, *sums = visit_blocks(seen, key_block, (d_q, *carry))
        return (sums[0], sums[1]), d_q.astype(q.dtype)

    zeros = jnp.zeros_like(k_t, dtype=jnp.float32), jnp.zeros_like(v_t, dtype=jnp.float32)
    blocks = (q, _transposed(q), d_out, _transposed(d_out), log_total, inner, seen)
    (d_k, d_v), d_q = jax.lax.scan(query_block, zeros, blocks)
    d_sink = None
    if sink is not None:
        # The sink is one more key, whose value is zero.
        d_sink = -jnp.sum(jnp.exp(sink[None, None] - log_total) * inner, axis=(0, 1))
    d_k, d_v = _transposed(d_k).astype(k.dtype), _transposed(d_v).astype(v.dtype)
    return d_q, d_k, d_v, None, None, d_sink


_ranged.defvjp(_ranged_forward, _ranged_backward)
