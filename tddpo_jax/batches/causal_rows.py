"""The branches of packed rows as ordinary causal rows, for kernels that know no other mask.

A kernel for causal rows of a given length cannot read a packed row, where a prompt is shared and
many branches stand in one stream. So each branch, its prompt first, gets a causal row of its own
for attention alone: queries, keys and values are gathered into it and the outputs gathered back.
Causal rows come in a few fixed widths, so that short branches cost little; `packing` sees to it
that the branches of a packed row find enough of them.

Both directions, and both of their gradients, are gathers: no sum depends on an order of writing,
so a step is repeated bit for bit.

B rows, T stream positions, N causal rows of one width W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# The widths are the longest branch's and its halves, down to a shortest that is not worth halving.
WIDTHS = 4
WIDTH_MULTIPLE = 64

# How many causal rows of each width: `((2048, 4), (1024, 6))`, widest first.
Widths = tuple[tuple[int, int], ...]


class CausalRows(NamedTuple):
    """Which token stands where in the causal rows of one width.

    A token that two branches share stands in two places: its output is read at the first, its
    key's and value's gradients are the sum over both.
    """

    position: Int[Array, "B N W"]  # the stream position of each place, T where nothing stands
    own: Int[Array, "B N W"]  # the same, and T where a token stands for the second time
    length: Int[Array, "B N"]  # tokens of each row, at least 1
    place: Int[Array, "B T"]  # each token's first place of N * W, or N * W if it is not here
    copy: Int[Array, "B T"]  # its second


def halved_widths(longest: int) -> list[int]:
    """The widths for branches of at most `longest` tokens, widest first."""
    widths = [-(-longest // 2**n // WIDTH_MULTIPLE) * WIDTH_MULTIPLE for n in range(WIDTHS)]
    return sorted({max(width, WIDTH_MULTIPLE) for width in widths}, reverse=True)


def branch_counts(lengths: Int[np.ndarray, "pairs 2"], widths: Sequence[int]) -> np.ndarray:
    """Branches of each pair that need a causal row wider than the next narrower one, `[pairs, K]`.

    Branches fit as soon as, for every width, there are at least that many causal rows of this
    width and all wider ones together.
    """
    narrower = np.array([*widths, 0])[1:]
    return (lengths[:, :, None] > narrower).sum(axis=1)


def assign(branches: Sequence[np.ndarray], length: int, widths: Widths) -> tuple[CausalRows, ...]:
    """Gives every branch of one packed row its causal row; arrays have no axis B.

    Args:
        branches: the stream positions of each, in reading order.
        length: of the packed row.
        widths: of the causal rows, and how many there are.
    """
    if not widths:
        return ()
    rows = [_empty(length, width, count) for width, count in widths]
    free = [(n, row) for n, (_, count) in enumerate(widths) for row in range(count)][::-1]
    placed = np.zeros(length, bool)
    for branch in sorted(branches, key=len):
        # The narrowest free row that is wide enough; shorter branches have theirs already.
        n, row = next(slot for slot in free if widths[slot[0]][0] >= len(branch))
        free.remove((n, row))
        here, width = rows[n], widths[n][0]
        first = ~placed[branch]
        places = row * width + np.arange(len(branch))
        here.position[row, : len(branch)] = branch
        here.own[row, : len(branch)] = np.where(first, branch, length)
        here.length[row] = len(branch)
        here.place[branch[first]] = places[first]
        here.copy[branch[~first]] = places[~first]
        placed[branch] = True
    return tuple(rows)


def _empty(length: int, width: int, count: int) -> CausalRows:
    nowhere = np.full(length, count * width, np.int32)
    nothing = np.full((count, width), length, np.int32)
    arrays: Any = nothing, nothing.copy(), np.ones(count, np.int32), nowhere, nowhere.copy()
    return CausalRows(*arrays)


def _taken(x: Float[Array, "B P *rest"], index: Int[Array, "B Q"]) -> Float[Array, "B Q *rest"]:
    """Entries along the second axis, zero where the index is beyond its end."""
    index = index.reshape(*index.shape, *(1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1, mode="fill", fill_value=0)


def _flat(rows: Float[Array, "B N W *rest"]) -> Float[Array, "B NW *rest"]:
    return rows.reshape(rows.shape[0], -1, *rows.shape[3:])


def _gathered(x: Array, position: Int[Array, "B N W"]) -> Float[Array, "B N W *rest"]:
    taken = _taken(x, position.reshape(position.shape[0], -1))
    return taken.reshape(*position.shape, *x.shape[2:])


@jax.custom_vjp
def spread(x: Float[Array, "B T *rest"], rows: CausalRows) -> Float[Array, "B N W *rest"]:
    """The stream's entries in causal rows, zeros where nothing stands."""
    return _gathered(x, rows.position)


def _spread_forward(x: Array, rows: CausalRows) -> tuple[Array, CausalRows]:
    return spread(x, rows), rows


def _spread_backward(rows: CausalRows, d_rows: Array) -> tuple[Array, None]:
    return _taken(_flat(d_rows), rows.place) + _taken(_flat(d_rows), rows.copy), None


spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def collected(y: Float[Array, "B N W *rest"], rows: CausalRows) -> Float[Array, "B T *rest"]:
    """The entries at each token's first place, zeros for tokens of other widths."""
    return _taken(_flat(y), rows.place)


def _collected_forward(y: Array, rows: CausalRows) -> tuple[Array, CausalRows]:
    return collected(y, rows), rows


def _collected_backward(rows: CausalRows, d_x: Array) -> tuple[Array, None]:
    return _gathered(d_x, rows.own), None


collected.defvjp(_collected_forward, _collected_backward)
