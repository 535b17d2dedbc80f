"""Attention by other people's flash attention, over the branches of packed rows as causal rows.

The kernels are cuDNN's, by JAX's public function, and tokamax's for Hopper GPUs (Mosaic GPU), by
its own. They know causal rows, and so every branch becomes one, see `causal_rows`. (That of tokamax
takes ranges of keys and lengths of rows too, but its backward pass then computes all queries
against all keys; only of plainly causal rows does it leave out what lies above the diagonal.)

References:
    Dao, "FlashAttention-2" (2023); Shah et al., "FlashAttention-3" (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from tddpo_jax.batches.causal_rows import CausalRows
from tddpo_jax.errors import UserError
from tddpo_jax.models.attention.gathers import collected, spread

Kernel = Literal["cudnn", "tokamax"]
# The names of the back-ends that read causal rows.
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
# What cuDNN takes on every GPU since Ampere, and tokamax on Hopper.
LARGEST_HEAD, HEAD_MULTIPLE = 128, 8
# Given to tokamax before it reads this process's command line, which is not its own. Its table of
# tuned block sizes is left aside, where its version can: it has none for our shapes, and warns of
# each.
TOKAMAX_FLAGS = ["", "--tokamax_ignore_autotuning_cache"]


def causal_rows_attention(
    q: Float[Array, "B T H size"],
    k: Float[Array, "B T K size"],
    v: Float[Array, "B T K size"],
    rows: Sequence[CausalRows],
    *,
    kernel: Kernel | Literal["xla"],
) -> Float[Array, "B T H size"]:
    """Softmax attention of every token over its own branch up to itself.

    Args:
        q: queries; head h reads key/value head `h // (H // K)`.
        k: keys.
        v: values.
        rows: the causal rows of each width; a token that stands in none gets zeros.
        kernel: by name; `xla` is JAX's own, for tests.

    Raises:
        UserError: there is no kernel for these heads.
        ValueError: there is none for this dtype, or there are no causal rows.
    """
    if not rows:
        raise ValueError(f"{kernel} needs the causal rows of a packed batch")
    if kernel != "xla":
        check_heads(kernel, q.shape[-1])
        _check_dtype(kernel, q.dtype)
    out = sum(collected(_attended(q, k, v, width, kernel), width) for width in rows)
    return checkpoint_name(out, "attention")


def check_heads(attention: str, size: int) -> None:
    """Refuses heads of so many features, if the back-end of this name has no kernel for them.

    Raises:
        UserError: it has none.
    """
    if attention in KERNELS and (size > LARGEST_HEAD or size % HEAD_MULTIPLE):
        raise UserError(
            f"model.attention: {attention} takes heads of a multiple of {HEAD_MULTIPLE} up to "
            f"{LARGEST_HEAD} features, the model's have {size}; choose xla"
        )


def _check_dtype(kernel: Kernel, dtype: Any) -> None:
    if dtype != jnp.bfloat16:
        raise ValueError(f"{kernel} computes in bfloat16, not {dtype}")


def _attended(
    q: Array, k: Array, v: Array, rows: CausalRows, kernel: Kernel | Literal["xla"]
) -> Float[Array, "B N W H size"]:
    queries, keys, values = (spread(x, rows) for x in (q, k, v))
    flat_q, flat_k, flat_v = (x.reshape(-1, *x.shape[2:]) for x in (queries, keys, values))
    if kernel == "tokamax":
        return _tokamax(flat_q, flat_k, flat_v).reshape(queries.shape)
    # An empty sum over the queries: under vmap over members, cuDNN wants lengths for each.
    length = rows.length.reshape(-1) + jnp.sum(q[:0, 0, 0, 0]).astype(jnp.int32)
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


def _tokamax(q: Array, k: Array, v: Array) -> Array:
    import tokamax
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(TOKAMAX_FLAGS, known_only=True)
    # Without lengths: no query of a row sees what stands behind the row's end, and nobody reads
    # what comes out there.
    return tokamax.dot_product_attention(q, k, v, is_causal=True, implementation="mosaic")
