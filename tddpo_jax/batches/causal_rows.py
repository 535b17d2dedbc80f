"""The branches of packed rows as ordinary causal rows, for kernels that know no other mask.

A kernel for causal rows cannot read a packed row, because a packed row holds many branches that
share prompts. So attention gives each branch a causal row of its own, which starts with the prompt.
It gathers queries, keys and values into the causal rows and gathers the outputs back. Causal rows
come in a few fixed widths, so that short branches cost little. `packing` makes sure that there are
enough of them for the branches of a packed row.

Both directions and both of their gradients are gathers. No sum depends on the order of writing, so
a step can be repeated bit for bit.

B rows, T stream positions, N causal rows of one width W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Int

# The widest causal rows hold the longest branch. Each further width is half of the one before it.
# Widths are multiples of WIDTH_MULTIPLE, which is also the shortest.
WIDTHS = 4
WIDTH_MULTIPLE = 64

# Pairs of a width and the number of causal rows that have it, widest first:
# `((2048, 4), (1024, 6))`.
Widths = tuple[tuple[int, int], ...]


class CausalRows(NamedTuple):
    """The places of the tokens in the causal rows of one width.

    A token that two branches share has two places. Its output is read at the first place. The
    gradients of its key and value are summed over both.
    """

    position: Int[Array, "B N W"]  # stream position of the token at each place; T: empty place
    own: Int[Array, "B N W"]  # the same as `position`, but T also at a token's second place
    length: Int[Array, "B N"]  # number of tokens in each causal row, at least 1
    place: Int[Array, "B T"]  # each token's first place, in [0, N * W); N * W: no place
    copy: Int[Array, "B T"]  # each token's second place, in [0, N * W); N * W: no second place


def halved_widths(longest: int) -> list[int]:
    """Widths of causal rows for branches of at most `longest` tokens, widest first."""
    widths = [-(-longest // 2**n // WIDTH_MULTIPLE) * WIDTH_MULTIPLE for n in range(WIDTHS)]
    return sorted({max(width, WIDTH_MULTIPLE) for width in widths}, reverse=True)


def branch_counts(
    lengths: Int[np.ndarray, "examples responses"], widths: Sequence[int]
) -> Int[np.ndarray, "examples widths"]:
    """For each width, how many branches of each example do not fit any narrower causal row.

    All branches fit if, for every width, at least that many causal rows have this width or a
    wider one.

    Args:
        lengths: tokens of each branch, with its prompt.
        widths: widths of causal rows, widest first.
    """
    narrower = np.array([*widths, 0])[1:]
    return (lengths[:, :, None] > narrower).sum(axis=1)


def assign(branches: Sequence[np.ndarray], length: int, widths: Widths) -> tuple[CausalRows, ...]:
    """Gives every branch of one packed row its causal row.

    Args:
        branches: the stream positions of each branch, in reading order.
        length: stream positions of the packed row.
        widths: the widths of the causal rows and how many there are of each.

    Returns:
        One `CausalRows` for each width, whose arrays lack the axis B.
    """
    if not widths:
        return ()
    rows = [_empty(length, width, count) for width, count in widths]
    free = [(n, row) for n, (_, count) in enumerate(widths) for row in range(count)][::-1]
    placed = np.zeros(length, bool)
    for branch in sorted(branches, key=len):
        # Take the narrowest free row that is wide enough. Shorter branches already have rows.
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
