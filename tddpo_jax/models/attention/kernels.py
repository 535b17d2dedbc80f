"""Attention by third-party kernels, over the branches of packed rows as causal rows.

The kernels are cuDNN's, by JAX's public function, and tokamax's for Hopper GPUs (Mosaic GPU), by
its own. They know causal rows, and so every branch becomes one, see `causal_rows`. In a causal row
a window is an ordinary one, which cuDNN knows. tokamax takes ranges of keys and lengths of rows
too, but its backward pass then computes all queries against all keys: it leaves out what lies above
the diagonal only where rows are plainly causal. So tokamax is given neither lengths nor windows.

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
from tddpo_jax.models.attention.view import AttentionShape

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
    v: Float[Array, "B T K value_size"],
    rows: Sequence[CausalRows],
    *,
    window: int | None = None,
    scale: float | None = None,
    kernel: Kernel | Literal["xla"],
) -> Float[Array, "B T H value_size"]:
    """Softmax attention of every token over its own branch up to itself.

    Args:
        q: queries; head h reads key/value head `h // (H // K)`.
        k: keys.
        v: values.
        rows: the causal rows of each width; a token that stands in none gets zeros.
        window: newest tokens of the branch that a token sees, itself among them; None: all.
        scale: of the scores; None: 1/sqrt(size).
        kernel: by name; `xla` is JAX's own, for tests.

    Raises:
        UserError: there is no kernel for these heads or this window.
        ValueError: there is none for this dtype, or there are no causal rows.
    """
    if not rows:
        raise ValueError(f"{kernel} needs the causal rows of a packed batch")
    shape = AttentionShape(q.shape[2], k.shape[2], q.shape[3], v.shape[3], window, scale)
    if kernel != "xla":
        check_shape(kernel, shape)
        _check_dtype(kernel, q.dtype)
    q, k, v, shape = _of_one_size(q, k, v, shape)
    out = sum(collected(_attended(q, k, v, width, shape, kernel), width) for width in rows)
    return checkpoint_name(out, "attention")


def check_shape(attention: str, shape: AttentionShape) -> None:
    """Refuses a layer's attention if the back-end of this name has no kernel for it.

    Raises:
        UserError: it has none.
    """
    if attention not in KERNELS:
        return
    for size in (shape.size, shape.value_size):
        if size > LARGEST_HEAD or size % HEAD_MULTIPLE:
            raise UserError(
                f"model.attention: {attention} takes heads of a multiple of {HEAD_MULTIPLE} up to "
                f"{LARGEST_HEAD} features, the model's have {size}; choose xla"
            )
    if attention == "tokamax" and shape.window is not None:
        raise UserError(
            f"model.attention: tokamax computes no layers with a window, the model's have one of "
            f"{shape.window} tokens; choose cudnn or xla"
        )


def _check_dtype(kernel: Kernel, dtype: Any) -> None:
    if dtype != jnp.bfloat16:
        raise ValueError(f"{kernel} computes in bfloat16, not {dtype}")


def _of_one_size(
    q: Array, k: Array, v: Array, shape: AttentionShape
) -> tuple[Array, Array, Array, AttentionShape]:
    """Zeros fill up the smaller of keys and values: the kernels take heads of one size.

    Zeros add nothing to a score, and `_attended` leaves out the features that they make.
    """
    size = max(shape.size, shape.value_size)
    q, k, v = (jnp.pad(x, (*[(0, 0)] * 3, (0, size - x.shape[-1]))) for x in (q, k, v))
    scale = shape.scale
    if scale is None and shape.size < size:
        scale = shape.size**-0.5
    return q, k, v, shape._replace(scale=scale)


def _attended(
    q: Array,
    k: Array,
    v: Array,
    rows: CausalRows,
    shape: AttentionShape,
    kernel: Kernel | Literal["xla"],
) -> Float[Array, "B N W H value_size"]:
    queries, keys, values = (spread(x, rows) for x in (q, k, v))
    flat = [x.reshape(-1, *x.shape[2:]) for x in (queries, keys, values)]
    options: dict[str, Any] = {} if shape.scale is None else {"scale": shape.scale}
    if kernel == "tokamax":
        return _tokamax(*flat, **options).reshape(queries.shape)[..., : shape.value_size]
    if shape.window is not None:
        # Tokens to the left of a token and to its right.
        options["local_window_size"] = (shape.window - 1, 0)
    # An empty sum over the queries: under vmap over members, cuDNN wants lengths for each.
    length = rows.length.reshape(-1) + jnp.sum(q[:0, 0, 0, 0]).astype(jnp.int32)
    out = jax.nn.dot_product_attention(
        *flat,
        is_causal=True,
        query_seq_lengths=length,
        key_value_seq_lengths=length,
        implementation=kernel,
        **options,
    )
    return out.reshape(queries.shape)[..., : shape.value_size]


def _tokamax(q: Array, k: Array, v: Array, **options: Any) -> Array:
    import tokamax
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(TOKAMAX_FLAGS, known_only=True)
    # Without lengths: no query of a row sees what stands behind the row's end, and nobody reads
    # what comes out there.
    options |= {"is_causal": True, "implementation": "mosaic"}
    return tokamax.dot_product_attention(q, k, v, **options)
