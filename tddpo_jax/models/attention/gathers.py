"""Moves entries from packed rows to causal rows and back. Both directions are gathers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tddpo_jax.batches.causal_rows import CausalRows


def _taken(x: Float[Array, "B P *rest"], index: Int[Array, "B Q"]) -> Float[Array, "B Q *rest"]:
    """Entries along the second axis; an index beyond its end gives zero."""
    index = index.reshape(*index.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1, mode="fill", fill_value=0)


def _flat(rows: Float[Array, "B N W *rest"]) -> Float[Array, "B NW *rest"]:
    return rows.reshape(rows.shape[0], -1, *rows.shape[3:])


def _gathered(x: Array, position: Int[Array, "B N W"]) -> Float[Array, "B N W *rest"]:
    taken = _taken(x, position.reshape(position.shape[0], -1))
    return taken.reshape(*position.shape, *x.shape[2:])


@jax.custom_vjp
def spread(x: Float[Array, "B T *rest"], rows: CausalRows) -> Float[Array, "B N W *rest"]:
    """Copies the stream's entries into causal rows; empty places get zeros."""
    return _gathered(x, rows.position)


def _spread_forward(x: Array, rows: CausalRows) -> tuple[Array, CausalRows]:
    return spread(x, rows), rows


def _spread_backward(rows: CausalRows, d_rows: Array) -> tuple[Array, None]:
    return _taken(_flat(d_rows), rows.place) + _taken(_flat(d_rows), rows.copy), None


spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def collected(y: Float[Array, "B N W *rest"], rows: CausalRows) -> Float[Array, "B T *rest"]:
    """Reads each token's entry at its first place; tokens without a place here get zeros."""
    return _taken(_flat(y), rows.place)


def _collected_forward(y: Array, rows: CausalRows) -> tuple[Array, CausalRows]:
    return collected(y, rows), rows


def _collected_backward(rows: CausalRows, d_x: Array) -> tuple[Array, None]:
    return _gathered(d_x, rows.own), None


collected.defvjp(_collected_forward, _collected_backward)
