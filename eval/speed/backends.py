"""Checks every back-end of attention on fresh random inputs: values and gradients.

The reference computes every score, masks and normalises, all in float32.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tddpo_jax.batches.layout import Batch, Example, Shape
from tddpo_jax.batches.packing import pack
from tddpo_jax.config.schema import ModelConfig
from tddpo_jax.errors import UserError
from tddpo_jax.models.attention.kernels import KERNELS, Kernel, causal_rows_attention
from tddpo_jax.models.attention.ranges import attention
from tddpo_jax.placement.computation import attention_implementation
from tddpo_jax.scoring.forward import view_of

PAIRS = 6


class Heads(NamedTuple):
    """The number of query heads, the number of key/value heads, and the features of a head."""

    queries: int
    keys: int
    size: int


GROUPED, LLAMA_2 = Heads(8, 2, 64), Heads(8, 8, 128)
# The largest root mean square error over that of the values: a few roundings of the dtype.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1.5e-2}

Attend = Callable[..., jax.Array]  # (q, k, v, batch) gives the output


def kernels_here() -> list[Kernel]:
    """The kernels that this device has, in bfloat16."""
    return [name for name in KERNELS if _missing(name) is None]


def _missing(name: Kernel) -> str | None:
    """The reason why this device lacks a kernel; None if it has it."""
    try:
        attention_implementation(ModelConfig(dtype="bfloat16", attention=name))
    except UserError as error:
        return str(error)
    return None


def check_backends(longest: int) -> list[dict[str, Any]]:
    """The error of each available back-end, and `failed` if it exceeds the dtype's rounding.

    Without any kernel, XLA's attention checks the causal rows that kernels would read.

    Args:
        longest: tokens of the longest prompt or response.
    """
    seed = secrets.randbelow(2**31)
    batch = _batch(np.random.default_rng(seed), longest)
    kernels = kernels_here()
    backends: list[tuple[str, str, Attend]] = [
        ("xla", "float32", _by_ranges),
        ("xla", "bfloat16", _by_ranges),
        *((name, "bfloat16", _by_rows(name)) for name in kernels),
    ]
    if not kernels:
        backends.append(("causal rows", "bfloat16", _by_rows("xla")))
    left_out = [name for name in KERNELS if kernels and name not in kernels]
    return [
        *(
            _checked(name, dtype, attend, batch, heads, seed)
            for heads in (GROUPED, LLAMA_2)
            for name, dtype, attend in backends
        ),
        *({"part": f"check {name}", "remark": f"left out: {_missing(name)}"} for name in left_out),
    ]


def _batch(rng: np.random.Generator, longest: int) -> Batch:
    """A row of pairs of random lengths. Its shape fits the longest ones, so it is always one."""
    lengths = rng.integers(1, longest + 1, (PAIRS, 3))
    pairs = [
        Example(row, prompt, tuple(responses))
        for row, (prompt, *responses) in enumerate(
            [np.zeros(length, np.int32) for length in three] for three in lengths
        )
    ]
    most, wide = 3 * longest * PAIRS, 2 * longest
    rows = ((wide, 2 * PAIRS), (wide // 2, PAIRS))
    shape = Shape(1, most, 2 * longest * PAIRS, PAIRS, causal_rows=rows)
    return jax.tree.map(jnp.asarray, pack(pairs, (shape,))[0])


def _by_rows(kernel: Kernel | Literal["xla"]) -> Attend:
    return lambda q, k, v, batch: causal_rows_attention(q, k, v, batch.causal_rows, kernel=kernel)


def _by_ranges(q: jax.Array, k: jax.Array, v: jax.Array, batch: Batch) -> jax.Array:
    return attention(q, k, v, view_of(batch))


def _dense(q: jax.Array, k: jax.Array, v: jax.Array, batch: Batch) -> jax.Array:
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("BQHS,BKHS->BHQK", q, k) / q.shape[-1] ** 0.5
    key = jnp.arange(k.shape[1])[None, None, None]
    start, end = batch.key_start[:, None, :, None], batch.key_end[:, None, :, None]
    seen = (start <= key) & (key < end)
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1)
    return jnp.einsum("BHQK,BKHS->BQHS", jnp.where(seen, weights, 0), v)


def _checked(
    name: str, dtype: str, attend: Attend, batch: Batch, heads: Heads, seed: int
) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(seed), 4)
    counts = (heads.queries, heads.keys, heads.keys, heads.queries)
    arrays = [
        jax.random.normal(key, (*batch.tokens.shape, count, heads.size), jnp.dtype(dtype))
        for key, count in zip(keys, counts, strict=True)
    ]
    # Padding behind the pairs is not a query: its output is not read and has no gradient.
    live = (batch.key_end > batch.key_start)[..., None, None]
    arrays[3] = jnp.where(live, arrays[3], 0)
    with jax.default_matmul_precision("highest"):
        actual = _value_and_gradients(attend, *arrays, batch)
        exact = [array.astype(jnp.float32) for array in arrays]
        expected = _value_and_gradients(_dense, *exact, batch)
    errors = [
        float(_relative(jnp.where(live, got, 0).astype(jnp.float32), jnp.where(live, want, 0)))
        for got, want in zip(actual, expected, strict=True)
    ]
    good = max(errors) <= TOLERANCE[dtype]  # False for NaN
    return {
        "part": f"check {name} {dtype}, heads {heads.queries}/{heads.keys} of {heads.size}",
        "relative_error": max(errors),
        "remark": f"relative error {max(errors):.2g}",
        "seed": seed,
        "failed": None if good else f"error above {TOLERANCE[dtype]}",
    }


def _relative(actual: jax.Array, expected: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean((actual - expected) ** 2) / jnp.mean(expected**2))


@functools.partial(jax.jit, static_argnums=0)
def _value_and_gradients(
    attend: Attend, q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array, batch: Batch
) -> tuple[jax.Array, ...]:
    out, backward = jax.vjp(lambda *qkv: attend(*qkv, batch), q, k, v)
    return out, *backward(d_out)
