"""Attention by third-party kernels, over the branches of packed rows as causal rows.

There are two kernels. cuDNN's is called through JAX's public function. tokamax's, for Hopper GPUs
(Mosaic GPU), is called through its own. Both compute causal rows, so every branch becomes one (see
`batches.causal_rows`). In a causal row a window is a plain sliding window, which cuDNN supports.
Chunks of positions are parts of a causal row, and each part is a causal row itself.
tokamax also takes ranges of keys and lengths of rows, but its backward pass then computes all
queries against all keys. It skips the part above the diagonal only if rows are plainly causal. So
we pass neither lengths nor windows to tokamax.

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
# The back-ends that read causal rows.
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
# Limits on the head size. cuDNN takes wider heads on GPUs since Hopper.
LARGEST_HEAD, LARGEST_HEAD_SINCE_HOPPER, HEAD_MULTIPLE = 128, 256, 8
# The device kinds begin like this. Hopper's are H100, H200 and similar ones, and GH200.
HOPPER = ("NVIDIA H", "NVIDIA GH")
SINCE_HOPPER = (*HOPPER, "NVIDIA B", "NVIDIA GB")
NO_SINKS = "model.attention: {} does not support this model's attention sinks; choose xla"
# We set tokamax's flags, because it would otherwise parse this process's command line. The flag
# switches off its table of tuned block sizes, in versions that allow it. The table lacks our
# shapes, and tokamax warns about each of them.
TOKAMAX_FLAGS = ["", "--tokamax_ignore_autotuning_cache"]


def causal_rows_attention(
    q: Float[Array, "B T H size"],
    k: Float[Array, "B T K size"],
    v: Float[Array, "B T K value_size"],
    rows: Sequence[CausalRows],
    *,
    window: int | None = None,
    chunk: int | None = None,
    scale: float | None = None,
    kernel: Kernel | Literal["xla"],
) -> Float[Array, "B T H value_size"]:
    """Softmax attention of every token over its own branch up to itself.

    Args:
        q: queries; head h reads key/value head `h // (H // K)`.
        k: keys.
        v: values.
        rows: the causal rows of each width; a token that is in none of them gets zeros.
        window: number of newest tokens of the branch that a token sees, including itself; None:
            all.
        chunk: size of the chunks into which positions are cut; None: one chunk.
        scale: factor of the scores; None: 1/sqrt(size).
        kernel: the kernel's name; `xla` is JAX's own implementation, for tests.

    Returns:
        The attended values of every token.

    Raises:
        UserError: the kernel does not support this head size or window.
        ValueError: the kernel does not support this dtype, or there are no causal rows.
    """
    if not rows:
        raise ValueError(f"{kernel} needs the causal rows of a packed batch")
    heads, key_value_heads, sizes = q.shape[2], k.shape[2], (q.shape[3], v.shape[3])
    shape = AttentionShape(heads, key_value_heads, *sizes, window, scale, chunk=chunk)
    if kernel != "xla":
        check_shape(kernel, shape, SINCE_HOPPER[0])  # the kind is checked before
        _check_dtype(kernel, q.dtype)
    q, k, v, shape = _of_one_size(q, k, v, shape)
    out = sum(collected(_attended(q, k, v, width, shape, kernel), width) for width in rows)
    return checkpoint_name(out, "attention")


def check_shape(attention: str, shape: AttentionShape, kind: str) -> None:
    """Refuses a layer's attention that the back-end cannot compute.

    Args:
        attention: the back-end's name; one that is not in `KERNELS` computes everything.
        shape: sizes and settings of the layer's attention.
        kind: the kind of device, as JAX names it.

    Raises:
        UserError: the back-end does not support the head size, the window or sinks.
    """
    if attention not in KERNELS:
        return
    if shape.sinks:
        raise UserError(NO_SINKS.format(attention))
    is_wide = attention == "cudnn" and kind.startswith(SINCE_HOPPER)
    largest = LARGEST_HEAD_SINCE_HOPPER if is_wide else LARGEST_HEAD
    for size in (shape.size, shape.value_size):
        if size > largest or size % HEAD_MULTIPLE:
            raise UserError(
                f"model.attention: {attention} on {kind} needs a head size that is a multiple of "
                f"{HEAD_MULTIPLE} and at most {largest}, but this model's is {size}; choose xla"
            )
    if attention == "tokamax" and shape.window is not None:
        raise UserError(
            f"model.attention: tokamax does not support windows, but this model has a window of "
            f"{shape.window} tokens; choose cudnn or xla"
        )


def widest(rows: Sequence[CausalRows]) -> int:
    """The most tokens that a branch may have in these causal rows."""
    return max((one.position.shape[-1] for one in rows), default=0)


def check_choice(attention: str, most: int | None, longest: int) -> None:
    """Refuses branches in which a model chooses among keys, which no kernel can do.

    Args:
        attention: the back-end's name; one that is not in `KERNELS` computes everything.
        most: number of keys that the model leaves to a token at most; None: all.
        longest: tokens of the longest branch.

    Raises:
        UserError: the back-end is a kernel, and a token of the longest branch sees more keys.
    """
    if attention in KERNELS and most is not None and longest > most:
        raise UserError(
            f"model.attention: {attention} cannot choose keys, but this model leaves {most} to a "
            f"token, and branches have up to {longest} tokens; choose xla, or a data.max_length "
            f"of {most}"
        )


def _check_dtype(kernel: Kernel, dtype: Any) -> None:
    if dtype != jnp.bfloat16:
        raise ValueError(f"{kernel} computes in bfloat16, not {dtype}")


def _of_one_size(
    q: Array, k: Array, v: Array, shape: AttentionShape
) -> tuple[Array, Array, Array, AttentionShape]:
    """Pads the smaller of keys and values with zeros, because the kernels take heads of one size.

    The zeros add nothing to a score. `_attended` drops the extra features of its output.
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
    width = rows.position.shape[-1]
    part = min(shape.chunk or width, width)
    queries, keys, values = (_in_parts(spread(x, rows), part) for x in (q, k, v))
    flat = [x.reshape(-1, *x.shape[3:]) for x in (queries, keys, values)]
    options: dict[str, Any] = {} if shape.scale is None else {"scale": shape.scale}

    def whole(out: Array) -> Float[Array, "B N W H value_size"]:
        joined = out.reshape(*rows.length.shape, -1, *out.shape[2:])
        return joined[:, :, :width, :, : shape.value_size]

    if kernel == "tokamax":
        return whole(_tokamax(*flat, **options))
    if shape.window is not None:
        # The numbers of tokens that a token sees to its left and to its right.
        options["local_window_size"] = (shape.window - 1, 0)
    # Under vmap over members, cuDNN needs lengths for every member. Adding an empty sum over the
    # queries gives the lengths the members' axis and changes no value.
    before = part * jnp.arange(queries.shape[2])
    lengths = jnp.clip(rows.length[..., None] - before[None, None], 1, part)
    length = lengths.reshape(-1) + jnp.sum(q[:0, 0, 0, 0]).astype(jnp.int32)
    out = jax.nn.dot_product_attention(
        *flat,
        is_causal=True,
        query_seq_lengths=length,
        key_value_seq_lengths=length,
        implementation=kernel,
        **options,
    )
    return whole(out)


def _in_parts(x: Float[Array, "B N W H size"], part: int) -> Float[Array, "B N parts part H size"]:
    """Cuts causal rows into parts of this width; zeros fill the last one."""
    x = jnp.pad(x, (*[(0, 0)] * 2, (0, -x.shape[2] % part), *[(0, 0)] * 2))
    return x.reshape(*x.shape[:2], -1, part, *x.shape[3:])


def set_tokamax_flags() -> None:
    """Keeps tokamax from parsing the command line of this process."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(TOKAMAX_FLAGS, known_only=True)


def _tokamax(q: Array, k: Array, v: Array, **options: Any) -> Array:
    import tokamax

    set_tokamax_flags()
    # Lengths are not needed. In a causal row no token sees what follows it, and nobody reads the
    # output behind a row's end.
    options |= {"is_causal": True, "implementation": "mosaic"}
    return tokamax.dot_product_attention(q, k, v, **options)
