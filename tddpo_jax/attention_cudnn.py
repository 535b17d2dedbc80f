"""Attention by cuDNN's flash attention, over the branches of packed rows as causal rows.

The kernel is JAX's public one. It knows causal rows with a length each, and so every branch becomes
one, see `causal_rows`.

References:
    Dao, "FlashAttention-2" (2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from tddpo_jax.causal_rows import CausalRows, collected, spread

# What cuDNN takes on every GPU since Ampere.
LARGEST_HEAD, HEAD_MULTIPLE = 128, 8


def causal_rows_attention(
    q: Float[Array, "B T H size"],
    k: Float[Array, "B T K size"],
    v: Float[Array, "B T K size"],
    rows: Sequence[CausalRows],
    *,
    kernel: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T H size"]:
    """Softmax attention of every token over its own branch up to itself.

    Args:
        q: queries; head h reads key/value head `h // (H // K)`.
        k: keys.
        v: values.
        rows: the causal rows of each width; a token that stands in none gets zeros.
        kernel: `implementation` of `jax.nn.dot_product_attention`.

    Raises:
        ValueError: cuDNN has no kernel for these heads or this dtype, or there are no causal rows.
    """
    if not rows:
        raise ValueError("model.attention: cudnn needs the causal rows of a packed batch")
    if kernel == "cudnn":
        _check(q)
    out = sum(collected(_attended(q, k, v, width, kernel), width) for width in rows)
    return checkpoint_name(out, "attention")


def _check(q: Array) -> None:
    size = q.shape[-1]
    if size > LARGEST_HEAD or size % HEAD_MULTIPLE:
        raise ValueError(
            f"model.attention: cudnn takes heads of a multiple of {HEAD_MULTIPLE} up to "
            f"{LARGEST_HEAD} features, the model's have {size}; choose xla"
        )
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"model.attention: cudnn computes in bfloat16, not {q.dtype}; choose xla")


def _attended(
    q: Array, k: Array, v: Array, rows: CausalRows, kernel: Literal["cudnn", "xla"]
) -> Float[Array, "B N W H size"]:
    queries, keys, values = (spread(x, rows) for x in (q, k, v))
    # An empty sum over the queries: under vmap over members, the kernel wants lengths for each.
    length = rows.length.reshape(-1) + jnp.sum(q[:0, 0, 0, 0]).astype(jnp.int32)
    flat_q, flat_k, flat_v = (x.reshape(-1, *x.shape[2:]) for x in (queries, keys, values))
    out = jax.nn.dot_product_attention(
        flat_q,
        flat_k,
        flat_v,
        is_causal=True,
        query_seq_lengths=length,
        key_value_seq_lengths=length,
        implementation=kernel,
    )
    return out.reshape(queries.shape)
