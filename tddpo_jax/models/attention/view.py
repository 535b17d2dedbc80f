"""What attention is told beside queries, keys and values: what each token sees, and how wide."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Int

from tddpo_jax.batches.causal_rows import CausalRows


class View(NamedTuple):
    """Which keys every token of a stream sees, for all layers alike.

    A token sees a contiguous range of the stream. Within its range, positions are reading order, so
    a layer with a window needs nothing but the positions to cut the range further.
    """

    key_start: Int[Array, "B T"]  # first stream position that a token sees
    key_end: Int[Array, "B T"]  # one past the last
    position: Int[Array, "B T"]  # of a token in its own branch; rope rotates by it
    causal_rows: tuple[CausalRows, ...] = ()  # the same branches for kernels that know causal rows


class AttentionShape(NamedTuple):
    """The sizes of a layer's attention, and the settings that it is computed with."""

    heads: int
    key_value_heads: int
    size: int  # features of a query and of a key
    value_size: int  # features of a value and of what attention gives out
    window: int | None = None  # newest positions that a token sees, itself among them
    scale: float | None = None  # of the scores; None: 1/sqrt(size)
