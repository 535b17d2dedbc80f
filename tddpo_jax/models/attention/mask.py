"""The mask of attention: which keys a query sees, and which blocks of keys hold any of them.

A query sees the keys of its range, `key_start <= j < key_end`. With a window it sees only those of
them whose position is less than `window` before its own, and with chunks only those of its own
chunk of positions. If an indexer chooses, it sees only the best of these. `attention/view.py` has
the tests of a range, a window and a chunk, and `attention/choice.py` has the choice.

A response that is stored reversed before its prompt sees two ranges of the stream if there is a
window: its own newest tokens and the end of the prompt. With chunks it is the same. So each block
of queries then has a list of the key blocks that it visits.

Letters: B rows, T stream positions, N blocks, C keys of a block, Q queries of a block. The queries
of a block are those of all heads that share a key/value head, one head after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from tddpo_jax.models.attention.choice import Choice, chosen_keys
from tddpo_jax.models.attention.view import View, in_range, oldest_position

Carry = TypeVar("Carry")

BLOCK = 64


class Window(NamedTuple):
    """The limits that a window or chunks add to the ranges of every block of queries."""

    oldest: Int[Array, "N B Q"]  # a query sees only keys with this position or a greater one
    blocks: Int[Array, "N N"]  # all key blocks; those in which a query may see a key come first
    visits: Int[Array, " N"]  # number of key blocks in which a query may see a key


class Seen(NamedTuple):
    """The keys that the queries of every block see."""

    start: Int[Array, "N B Q"]  # first stream position that a query sees
    end: Int[Array, "N B Q"]  # one past the last stream position that a query sees
    window: Window | None
    # Which keys of the whole stream an indexer leaves to a query; None: all.
    chosen: Bool[Array, "N B Q S"] | None = None


def seen_keys(
    view: View, window: int | None, chunk: int | None, shared: int
) -> tuple[Seen, Int[Array, "N B C"] | None]:
    """The keys that queries see, and the keys' own positions if these limit what is seen.

    No position reaches the length of the stream, so longer windows and chunks limit nothing.
    """
    rows, length = view.key_start.shape

    def blocks(x: Int[Array, "B T"], beyond: int) -> Int[Array, "N B C"]:
        padded = jnp.pad(x, ((0, 0), (0, -length % BLOCK)), constant_values=beyond)
        return padded.reshape(rows, -1, BLOCK).swapaxes(0, 1)

    def queries(x: Int[Array, "N B C"]) -> Int[Array, "N B Q"]:
        return jnp.tile(x, (1, 1, shared))

    start, end = blocks(view.key_start, length), blocks(view.key_end, length)
    if min(window or length, chunk or length) >= length:
        return Seen(queries(start), queries(end), None), None
    position = blocks(view.position, 0)
    oldest = oldest_position(position, window, chunk)
    visited = _may_see(start, end, oldest, position)
    order = jnp.argsort(~visited, axis=1, stable=True)
    cut = Window(queries(oldest), order, jnp.sum(visited, axis=1))
    return Seen(queries(start), queries(end), cut), position


def _may_see(
    start: Int[Array, "N B C"],
    end: Int[Array, "N B C"],
    oldest: Int[Array, "N B C"],
    position: Int[Array, "N B C"],
) -> Bool[Array, "N N"]:
    """Whether a block of queries (first axis) may see a key of a block of keys, in any row.

    It may if its ranges together reach into the block of keys, and if that block holds a position
    that is late enough for one of its queries.
    """
    live, far = end > start, jnp.iinfo(start.dtype).max
    first, earliest = (jnp.min(jnp.where(live, x, far), axis=2)[:, None] for x in (start, oldest))
    last = jnp.max(jnp.where(live, end, 0), axis=2)[:, None]
    latest = jnp.max(position, axis=2)[None]
    key = BLOCK * jnp.arange(len(start))[None, :, None]
    return jnp.any((first < key + BLOCK) & (key < last) & (earliest <= latest), axis=2)


def block_at(blocks: Array, j: Array) -> Array:
    """The block number j of an array of blocks."""
    return jax.lax.dynamic_index_in_dim(blocks, j, keepdims=False)


def visit_blocks(seen: Seen, visit: Callable[[Array, Carry], Carry], carry: Carry) -> Carry:
    """Calls `visit` for every key block that one block of queries needs, over all rows."""
    start, end, window, _ = seen
    if window is not None:
        return jax.lax.fori_loop(
            jnp.zeros_like(window.visits),
            window.visits,
            lambda n, carry: visit(block_at(window.blocks, n), carry),
            carry,
        )
    first = jnp.min(start) // BLOCK
    last = (jnp.max(jnp.where(end > start, end, 0)) + BLOCK - 1) // BLOCK
    return jax.lax.fori_loop(first, last, visit, carry)


def visible_keys(
    seen: Seen, position: Int[Array, "N B C"] | None, j: Array
) -> Bool[Array, "B Q C"]:
    """The keys of block j that each query of one block of queries sees.

    Args:
        seen: the limits of one block of queries.
        position: positions of all keys, if these limit what is seen.
        j: number of the block of keys.
    """
    start, end, window, chosen = seen
    visible = in_range(start, end, j * BLOCK, BLOCK)
    if window is not None and position is not None:
        visible &= window.oldest[:, :, None] <= block_at(position, j)[:, None]
    if chosen is not None:
        visible &= jax.lax.dynamic_slice_in_dim(chosen, j * BLOCK, BLOCK, axis=2)
    return visible


def with_choice(seen: Seen, choice: Choice, view: View, shared: int) -> Seen:
    """Leaves out what an indexer does not choose.

    Choosing takes time, so it is left out if no token sees more keys than the indexer leaves.

    Args:
        seen: what the queries see without the indexer.
        choice: what the indexer makes of every token.
        view: as for `seen_keys`.
        shared: as for `seen_keys`.
    """
    rows, length = view.key_start.shape
    if length <= choice.most:
        return seen
    beyond = jnp.any(view.key_end - view.key_start > choice.most)

    def all_keys(_: Choice, view: View) -> Bool[Array, "B T T"]:
        return in_range(view.key_start, view.key_end, 0, length)

    chosen = jax.lax.cond(beyond, chosen_keys, all_keys, choice, view)
    more = -length % BLOCK
    chosen = jnp.pad(chosen, ((0, 0), (0, more), (0, more)))
    blocks = chosen.reshape(rows, -1, BLOCK, length + more).swapaxes(0, 1)
    return seen._replace(chosen=jnp.tile(blocks, (1, 1, shared, 1)))
