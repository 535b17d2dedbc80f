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

import numpy as np
from jaxtyping import Array, Int

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


def branch_counts(
    lengths: Int[np.ndarray, "examples responses"], widths: Sequence[int]
) -> Int[np.ndarray, "examples widths"]:
    """How many branches of each example need a causal row wider than the next narrower one.

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
