"""The inputs of attention besides queries, keys and values: what tokens see, and its settings."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from tddpo_jax.batches.causal_rows import CausalRows


class View(NamedTuple):
    """The keys that every token of a stream sees. All layers share it.

    A token sees a contiguous range of the stream. Within that range, positions give the reading
    order. So a layer with a window or with chunks can cut the range further by the positions alone.
    """

    key_start: Int[Array, "B T"]  # first stream position that a token sees, in [0, T)
    key_end: Int[Array, "B T"]  # one past the last stream position that a token sees, in [0, T]
    # Position of a token in its own branch, in [0, T); rope rotates by it.
    position: Int[Array, "B T"]
    causal_rows: tuple[CausalRows, ...] = ()  # the branches for kernels that need causal rows


class AttentionShape(NamedTuple):
    """The sizes and settings of a layer's attention."""

    heads: int
    key_value_heads: int
    size: int  # features of a query and of a key
    value_size: int  # features of a value and of attention's output
    window: int | None = None  # number of newest positions that a token sees, including its own
    scale: float | None = None  # factor of the scores; None: 1/sqrt(size)
    sinks: bool = False  # whether every head has a score that takes weight away from the keys
    # Positions are cut into chunks of this size, and a token sees only its own chunk; None: all.
    chunk: int | None = None
    # How many numbers a cache holds for a token in place of its keys and values; None: these.
    cached: int | None = None
    most_keys: int | None = None  # number of keys that an indexer leaves to a token; None: all

    @property
    def axes(self) -> dict[str, int]:
        """The sizes of the axes of its weights, by the names that the tensor table has for them."""
        return {
            "queries": self.heads * self.size,
            "keys": self.key_value_heads * self.size,
            "values": self.key_value_heads * self.value_size,
            "attended": self.heads * self.value_size,
            "head": self.size,
        }

    @property
    def cached_numbers(self) -> int:
        """How many numbers a cache holds for a token."""
        keys_values = self.key_value_heads * (self.size + self.value_size)
        return keys_values if self.cached is None else self.cached


def in_range(
    start: Int[Array, "*queries"], end: Int[Array, "*queries"], first: Array | int, count: int
) -> Bool[Array, "*queries count"]:
    """Whether each of some keys is in the ranges of queries, `start <= key < end`.

    Args:
        start: first stream position of every query's range.
        end: one past the last stream position of every query's range.
        first: stream position of the first key.
        count: number of keys; they follow each other in the stream.
    """
    key = jnp.expand_dims(first + jnp.arange(count), tuple(range(start.ndim)))
    return (start[..., None] <= key) & (key < end[..., None])


def oldest_position(
    position: Int[Array, "*any"], window: int | None, chunk: int | None
) -> Int[Array, "*any"]:
    """The earliest position of its branch that a token at `position` sees.

    Args:
        position: positions of tokens in their branches.
        window: number of newest positions that a token sees, including its own; None: all.
        chunk: size of the chunks into which positions are cut; None: one chunk.
    """
    oldest = jnp.zeros_like(position)
    if window is not None:
        oldest = jnp.maximum(oldest, position + 1 - window)
    if chunk is not None:
        oldest = jnp.maximum(oldest, position - position % chunk)
    return oldest
