"""Puts the tokens into rows, expert by expert, and brings the results back.

A token chooses several experts. Each of its choices gets one row. The rows of an expert stand
together, in the order of the tokens, and fill whole tiles. The rest of its last tile is empty. No
choice is ever dropped, because there is always room for all of them. All ways are gathers, in the
backward pass as well.

Letters: N tokens, K choices of a token, E experts, R rows, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Rows(NamedTuple):
    """Where the choices are. An index beyond the end stands for nothing."""

    choice: Int[Array, " R"]  # the choice in each row, counted over all tokens; N K: none
    row: Int[Array, "N K"]  # the row of each choice; R: none, since its expert is not here
    sizes: Int[Array, " E"]  # number of rows of each expert, in whole tiles


def rows_of_experts(
    chosen: Int[Array, "N K"], experts: int, tile: int, first: Array | int = 0
) -> Rows:
    """Gives a row to every choice of the experts `first` to `first + experts - 1`.

    Args:
        chosen: the experts that each token chooses.
        experts: number of experts that are here.
        tile: number of rows of a tile.
        first: number of the first expert that is here.
    """
    choices = chosen.size
    most = (choices + min(experts, choices) * (tile - 1)) // tile * tile
    own = chosen.reshape(-1) - first
    own = jnp.where((own >= 0) & (own < experts), own, experts)
    counts = jnp.bincount(own, length=experts + 1)
    sizes = (counts[:-1] + tile - 1) // tile * tile
    begins = jnp.concatenate([jnp.zeros(1, sizes.dtype), jnp.cumsum(sizes)])
    order = jnp.argsort(own, stable=True)
    expert = own[order]
    rank = jnp.arange(choices) - (jnp.cumsum(counts) - counts)[expert]
    row = jnp.where(expert < experts, begins[expert] + rank, most)
    return Rows(
        jnp.full(most, choices).at[row].set(order, mode="drop"),
        jnp.zeros(choices, row.dtype).at[order].set(row).reshape(chosen.shape),
        sizes,
    )


def _taken(x: Array, index: Array) -> Array:
    """Entries along the first axis; an index beyond its end gives zeros."""
    return x.at[index].get(mode="fill", fill_value=0)


@jax.custom_vjp
def spread(x: Float[Array, "N D"], rows: Rows) -> Float[Array, "R D"]:
    """Copies every token into the rows of its choices; empty rows get zeros."""
    return _taken(x, rows.choice // rows.row.shape[1])


def _spread_forward(x: Array, rows: Rows) -> tuple[Array, Rows]:
    return spread(x, rows), rows


def _spread_backward(rows: Rows, d_rows: Array) -> tuple[Array, None]:
    return jnp.sum(_taken(d_rows, rows.row), axis=1), None


spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def placed(x: Float[Array, "N K *rest"], rows: Rows) -> Float[Array, " R *rest"]:
    """Moves an entry of every choice into its row; empty rows get zeros."""
    return _taken(x.reshape(-1, *x.shape[2:]), rows.choice)


def _placed_forward(x: Array, rows: Rows) -> tuple[Array, Rows]:
    return placed(x, rows), rows


def _placed_backward(rows: Rows, d_rows: Array) -> tuple[Array, None]:
    return _taken(d_rows, rows.row), None


placed.defvjp(_placed_forward, _placed_backward)


@jax.custom_vjp
def collected(y: Float[Array, " R *rest"], rows: Rows) -> Float[Array, "N K *rest"]:
    """Reads the row of every choice; a choice without a row gets zeros."""
    return _taken(y, rows.row)


def _collected_forward(y: Array, rows: Rows) -> tuple[Array, Rows]:
    return collected(y, rows), rows


def _collected_backward(rows: Rows, d_x: Array) -> tuple[Array, None]:
    return placed(d_x, rows), None


collected.defvjp(_collected_forward, _collected_backward)
