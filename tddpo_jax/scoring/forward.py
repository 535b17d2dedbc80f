"""From a packed batch to hidden states, sharded over a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from tddpo_jax.batches.layout import Batch
from tddpo_jax.models.attention.ranges import attention
from tddpo_jax.models.decoder import Llama
from tddpo_jax.placement.computation import Computation
from tddpo_jax.placement.shardings import (
    head_parallel,
)


def attention_over(batch: Batch, how: Computation) -> Callable[..., Array]:
    """Attention as `how` says, on each device over its own rows and heads.

    Left to the compiler, the loops of `xla` would run in step on all devices, as far as the
    farthest row reaches, and tokamax's kernel cannot be divided.
    """
    heads, rows = head_parallel(how.rows.mesh).spec, how.rows.spec
    on_each = jax.shard_map(
        functools.partial(attention, implementation=how.attention),
        mesh=how.rows.mesh,
        in_specs=(heads, heads, heads, rows, rows, rows),
        out_specs=heads,
        # Of what kernels give out JAX does not know over which devices it varies.
        check_vma=how.attention == "xla",
    )
    return lambda q, k, v, start, end: on_each(q, k, v, start, end, batch.causal_rows)


def hidden_states(
    model: Llama, batch: Batch, how: Computation, dropout_key: PRNGKeyArray | None = None
) -> Float[Array, "B T D"]:
    """The model's hidden states over the packed rows of a batch."""
    return model(
        batch.tokens,
        batch.positions,
        batch.key_start,
        batch.key_end,
        dtype=how.dtype,
        attend=attention_over(batch, how),
        remat=how.remat,
        constrain=lambda x: jax.lax.with_sharding_constraint(x, how.rows),
        dropout_key=dropout_key,
    )
