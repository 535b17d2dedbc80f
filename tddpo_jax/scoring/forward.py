"""Computes hidden states from a packed batch, sharded over a mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from tddpo_jax.batches.layout import Batch
from tddpo_jax.models.attention.choice import Choice
from tddpo_jax.models.attention.ranges import attention
from tddpo_jax.models.attention.view import View
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.models.experts.routing import Route
from tddpo_jax.placement.computation import Computation
from tddpo_jax.placement.embedding import embed_over
from tddpo_jax.placement.expert_parallel import experts_over
from tddpo_jax.placement.shardings import VECTOR_OF_HEADS, head_parallel


def view_of(batch: Batch) -> View:
    """The keys that the tokens of a batch see."""
    return View(batch.key_start, batch.key_end, batch.positions, batch.causal_rows)


def attention_over(how: Computation) -> Callable[..., Array]:
    """An `attend` for the decoder that runs on each device over its own rows and heads.

    The compiler could not do this by itself. It would run the loops of `xla` in step on all
    devices, each as long as the longest on any device. It cannot divide tokamax's kernel at all.

    Args:
        how: the back-end, and the sharding of rows.
    """
    heads, rows = head_parallel(how.rows.mesh).spec, how.rows.spec

    def attend(
        q: Array,
        k: Array,
        v: Array,
        view: View,
        *,
        sinks: Array | None = None,
        choice: Choice | None = None,
        **settings: Any,
    ) -> Array:
        def on_device(
            q: Array, k: Array, v: Array, view: View, sinks: Array | None, choice: Choice | None
        ) -> Array:
            how_computed = {"implementation": how.attention, "sinks": sinks, **settings}
            return attention(q, k, v, view, choice=choice, **how_computed)

        on_each: Callable[..., Array] = jax.shard_map(
            on_device,
            mesh=how.rows.mesh,
            in_specs=(heads, heads, heads, rows, VECTOR_OF_HEADS, rows),
            out_specs=heads,
            # JAX cannot tell over which mesh axes the outputs of third-party kernels vary.
            check_vma=how.attention == "xla",
        )
        return on_each(q, k, v, view, sinks, choice)

    return attend


def hidden_states(
    model: Decoder, batch: Batch, how: Computation, dropout_key: PRNGKeyArray | None = None
) -> Float[Array, "B T D"]:
    """The model's hidden states over the packed rows of a batch, after the last norm.

    Args:
        model: the model.
        batch: a micro-batch on the devices of `how`.
        how: how the model is computed.
        dropout_key: random key for the adapters' dropout; None: no dropout.

    Returns:
        The hidden states, in the dtype of `how`.
    """
    return states_and_notes(model, batch, how, lambda _: None, dropout_key)[0]


def states_and_notes(
    model: Decoder,
    batch: Batch,
    how: Computation,
    note: Callable[[Route], Any],
    dropout_key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "B T D"], tuple[Any, ...]]:
    """`hidden_states`, and notes on the experts that the tokens choose.

    Args:
        model: as for `hidden_states`.
        batch: as for `hidden_states`.
        how: as for `hidden_states`.
        note: takes the route of a layer with experts and gives what to keep of it.
        dropout_key: as for `hidden_states`.

    Returns:
        The hidden states, and the notes of every stack of layers that have experts.
    """
    return model(
        batch.tokens,
        view_of(batch),
        dtype=how.dtype,
        attend=attention_over(how),
        embed=functools.partial(embed_over, how.rows.mesh),
        experts=experts_over(how.rows.mesh, how.experts),
        note=note,
        remat=how.remat,
        constrain=lambda x: jax.lax.with_sharding_constraint(x, how.rows),
        dropout_key=dropout_key,
    )
