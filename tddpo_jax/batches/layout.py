"""Preference pairs packed into streams: which token stands where, what it sees, where it counts.

A pair is laid out as `[ reversed chosen | prompt | rejected ]`, its prompt once. In this order
every token sees one contiguous range of stream positions: a chosen token at i sees [i, end of
prompt), a prompt or rejected token at i sees [start of prompt, i + 1). The last token of a response
is predicted but predicts nothing, so it is a target and takes no place in the stream. Rotary
positions are given explicitly, so the storage order is free.

    chosen c1 c2 c3, prompt p1 p2, rejected r1 r2
    stream     c2 c1 p1 p2 r1
    position    3  2  0  1  2
    scored     p2 -> c1   c1 -> c2   c2 -> c3   p2 -> r1   r1 -> r2

The plain layout, `[ prompt chosen padding | prompt rejected padding ]`, one pair a row, is the
same structure with other indices; it is what most trainers compute, kept for tests and comparison.

Numpy only: no mesh, no model, no files. B rows, T stream positions, S scores, P pairs of a row.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from tddpo_jax.batches.causal_rows import CausalRows, Widths


class Pair(NamedTuple):
    """Token ids of one preference pair; responses include their end-of-turn."""

    row: int  # number in its source
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


class Batch(NamedTuple):
    """A micro-batch of packed rows, on the host (numpy) or on devices.

    Branch 2p of a row is pair p's chosen, 2p + 1 its rejected.
    """

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    key_start: Int[Array, "B T"]
    key_end: Int[Array, "B T"]
    score_position: Int[Array, "B S"]
    score_target: Int[Array, "B S"]
    score_branch: Int[Array, "B S"]  # 2P, a branch that does not exist, where nothing is scored
    lengths: Float[Array, "B P 2"]  # response tokens, chosen and rejected
    weight: Float[Array, "B P"]  # 1 for a pair, 0 for an empty place
    ref_logps: Float[Array, "B P 2"]
    pair: Int[Array, "B P"]  # number of the pair in the list that was packed, -1 for none
    causal_rows: tuple[CausalRows, ...]  # the same branches for attention, where it needs them


@dataclasses.dataclass(frozen=True)
class Shape:
    """The fixed shape of a micro-batch."""

    rows: int
    length: int
    scores: int
    pairs: int
    plain: bool = False
    causal_rows: Widths = ()  # widths and counts, for attention that needs them


def stream_length(pair: Pair) -> int:
    """Stream positions that a pair takes when packed."""
    return len(pair.prompt) + len(pair.chosen) + len(pair.rejected) - 2


def score_count(pair: Pair) -> int:
    return len(pair.chosen) + len(pair.rejected)


class Row:
    """The index arrays of one row, filled pair by pair."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        nothing = np.arange(shape.length, dtype=np.int32)
        self.tokens = np.zeros(shape.length, np.int32)
        self.positions = np.zeros(shape.length, np.int32)
        # Padding sees the empty range [i, i): it costs no attention and disturbs no block's reach.
        self.key_start, self.key_end = nothing.copy(), nothing.copy()
        self.score_position = np.zeros(shape.scores, np.int32)
        self.score_target = np.zeros(shape.scores, np.int32)
        self.score_branch = np.full(shape.scores, 2 * shape.pairs, np.int32)
        self.lengths = np.ones((shape.pairs, 2), np.float32)
        self.weight = np.zeros(shape.pairs, np.float32)
        self.pair = np.full(shape.pairs, -1, np.int32)
        # Stream positions of every branch in reading order.
        self.branches: list[np.ndarray] = []
        self.used = self.scored = self.count = 0

    def add(self, number: int, pair: Pair) -> None:
        if self.shape.plain:
            half = self.shape.length // 2
            self._branch(pair.prompt, pair.chosen, 2 * self.count, start=0)
            self._branch(pair.prompt, pair.rejected, 2 * self.count + 1, start=half)
            self.used = self.shape.length
        else:
            self._shared(pair)
        self.lengths[self.count] = len(pair.chosen), len(pair.rejected)
        self.weight[self.count] = 1.0
        self.pair[self.count] = number
        self.count += 1

    def _shared(self, pair: Pair) -> None:
        prompt_start = self.used + len(pair.chosen) - 1
        prompt_end = prompt_start + len(pair.prompt)
        chosen_at = np.arange(prompt_start - 1, self.used - 1, -1)
        self.tokens[chosen_at] = pair.chosen[:-1]
        self.positions[chosen_at] = len(pair.prompt) + np.arange(len(chosen_at))
        self.key_start[chosen_at], self.key_end[chosen_at] = chosen_at, prompt_end
        self._score(np.append(prompt_end - 1, chosen_at), pair.chosen, 2 * self.count)
        self.branches.append(np.concatenate([np.arange(prompt_start, prompt_end), chosen_at]))
        rejected_at = self._branch(pair.prompt, pair.rejected, 2 * self.count + 1, prompt_start)
        self.used = rejected_at

    def _branch(self, prompt: np.ndarray, response: np.ndarray, branch: int, start: int) -> int:
        """Writes `prompt response` in reading order; returns the position after it."""
        end = start + len(prompt) + len(response) - 1
        at = np.arange(start, end)
        self.tokens[at] = np.concatenate([prompt, response[:-1]])
        self.positions[at] = at - start
        self.key_start[at], self.key_end[at] = start, at + 1
        self._score(at[len(prompt) - 1 :], response, branch)
        self.branches.append(at)
        return end

    def _score(self, at: np.ndarray, targets: np.ndarray, branch: int) -> None:
        scored = slice(self.scored, self.scored + len(targets))
        self.score_position[scored], self.score_target[scored] = at, targets
        self.score_branch[scored] = branch
        self.scored += len(targets)
