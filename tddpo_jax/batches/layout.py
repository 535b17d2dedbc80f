"""Examples packed into streams: the position of each token, what it sees, and what it predicts.

An example is a prompt with one or more responses. A preference pair has two responses. Supervised
data and sampled answers have one. All examples of a data set have the same number of responses.

A stream holds two responses around one copy of their prompt:
`[ reversed first | prompt | second ]`. In this order every token sees one contiguous range of
stream positions. A token of the first response at position i sees [i, end of prompt). A token of
the prompt or of the second response at position i sees [start of prompt, i + 1). A prompt has only
two sides, so it is copied for each further two responses. A single response, or the last of an odd
number, follows its prompt: `[ prompt | response ]`. The last token of a response is predicted but
predicts nothing, so it is a target and has no place in the stream. Rotary positions are explicit,
so tokens may be stored in any order. A response may hold tokens that the policy did not write, such
as the result of a tool. The tokens behind them see them, but nothing predicts them.

    chosen c1 c2 c3, prompt p1 p2, rejected r1 r2
    stream     c2 c1 p1 p2 r1
    position    3  2  0  1  2
    scored     p2 -> c1   c1 -> c2   c2 -> c3   p2 -> r1   r1 -> r2

The plain layout is `[ prompt first padding | prompt second padding ]`. It puts one example in a row
and gives each response an equal part of the row. It has the same structure with other indices. Most
trainers use this layout. We keep it for tests and comparison.

This module uses numpy only and knows no mesh, no model and no files.

Letters: B rows, T stream positions, S scores, P examples of a row, N responses of an example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from tddpo_jax.batches.causal_rows import CausalRows, Widths


class Example(NamedTuple):
    """Token ids of a prompt and of its responses.

    Each response includes its end of turn. The responses of a preference pair are
    (chosen, rejected).
    """

    row: int  # number of the row in the source file
    prompt: np.ndarray
    responses: tuple[np.ndarray, ...]
    source: str = ""  # name of the data set, where there are several
    # Which tokens of each response the policy writes, bool; None: all.
    scored: tuple[np.ndarray, ...] | None = None

    @property
    def place(self) -> int | str:
        """Where the row is, for messages: its number, and its data set where there are several."""
        return f"{self.row} of {self.source}" if self.source else self.row

    @property
    def scores(self) -> tuple[np.ndarray, ...]:
        """Which tokens of each response are predicted, bool."""
        return self.scored or tuple(np.ones(len(each), bool) for each in self.responses)


class Batch(NamedTuple):
    """A micro-batch of packed rows, on the host (numpy) or on devices.

    Branch N * p + n of a row is response n of example p.
    """

    tokens: Int[Array, "B T"]  # token ids; 0 at padding
    positions: Int[Array, "B T"]  # rotary position of each token in its own branch
    key_start: Int[Array, "B T"]  # first stream position that a token sees, in [0, T)
    key_end: Int[Array, "B T"]  # one past the last stream position that a token sees, in [0, T]
    uses: Int[Array, "B T"]  # number of branches that a token belongs to; 0 at padding
    score_position: Int[Array, "B S"]  # stream position that predicts a target, in [0, T)
    score_target: Int[Array, "B S"]  # token id to predict
    score_branch: Int[Array, "B S"]  # branch of each score, in [0, N * P]; N * P: an unused score
    lengths: Float[Array, "B P N"]  # number of predicted tokens in each response
    weight: Float[Array, "B P"]  # 1 for an example, 0 for an empty place
    # Reference log-prob of each response, in nats, and of each tail if a loss reads those.
    ref_logps: Float[Array, "B P values"]
    example: Int[Array, "B P"]  # index into the packed list of examples; -1: an empty place
    causal_rows: tuple[CausalRows, ...]  # the branches as causal rows; () if attention needs none


@dataclasses.dataclass(frozen=True)
class Shape:
    """The fixed shape of a micro-batch."""

    rows: int
    length: int
    scores: int
    examples: int
    plain: bool = False
    causal_rows: Widths = ()  # widths and counts of the causal rows; () if attention needs none
    responses: int = 2  # number of responses of each example


def stream_length(example: Example) -> int:
    """Number of stream positions that an example takes when it is packed."""
    prompts = -(-len(example.responses) // 2)  # copies of the prompt, one for every two responses
    said = sum(map(len, example.responses))
    return prompts * len(example.prompt) + said - len(example.responses)


def score_count(example: Example) -> int:
    """Number of tokens of an example that are predicted: those of its responses."""
    return sum(score_counts(example))


def score_counts(example: Example) -> list[int]:
    """Number of tokens of each response that are predicted."""
    if example.scored is None:
        return list(map(len, example.responses))
    return [int(scored.sum()) for scored in example.scored]


class Row:
    """The index arrays of one packed row, which `add` fills example by example."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        nothing = np.arange(shape.length, dtype=np.int32)
        self.tokens = np.zeros(shape.length, np.int32)
        self.positions = np.zeros(shape.length, np.int32)
        # Padding sees the empty range [i, i). It costs no attention and widens no block's range.
        self.key_start, self.key_end = nothing.copy(), nothing.copy()
        self.uses = np.zeros(shape.length, np.int32)
        self.score_position = np.zeros(shape.scores, np.int32)
        self.score_target = np.zeros(shape.scores, np.int32)
        self.score_branch = np.full(shape.scores, shape.responses * shape.examples, np.int32)
        self.lengths = np.ones((shape.examples, shape.responses), np.float32)
        self.weight = np.zeros(shape.examples, np.float32)
        self.example = np.full(shape.examples, -1, np.int32)
        # The stream positions of every branch, in reading order.
        self.branches: list[np.ndarray] = []
        self.used = self.scored = self.count = 0

    def add(self, number: int, example: Example) -> None:
        """Appends an example behind those that the row already holds. It must fit.

        Args:
            number: index of the example in the list that is packed.
            example: its tokens.
        """
        branch = self.shape.responses * self.count
        responses = list(zip(example.responses, example.scores, strict=True))
        if self.shape.plain:
            part = self.shape.length // self.shape.responses
            for n, (response, scored) in enumerate(responses):
                self._branch(example.prompt, response, scored, branch + n, start=n * part)
            self.used = self.shape.length
        else:
            for n in range(0, len(responses), 2):
                self._around(example.prompt, responses[n : n + 2], branch + n)
        self.lengths[self.count] = score_counts(example)
        self.weight[self.count] = 1.0
        self.example[self.count] = number
        self.count += 1

    def _around(
        self, prompt: np.ndarray, responses: Sequence[tuple[np.ndarray, np.ndarray]], branch: int
    ) -> None:
        """Writes two responses around their prompt, or a single response behind it."""
        start = self.used
        if len(responses) == 2:
            start = self._reversed(prompt, *responses[0], branch)
            branch += 1
        self.used = self._branch(prompt, *responses[-1], branch, start)

    def _reversed(
        self, prompt: np.ndarray, response: np.ndarray, scored: np.ndarray, branch: int
    ) -> int:
        """Writes a response backwards in front of its prompt, and returns the prompt's start."""
        prompt_start = self.used + len(response) - 1
        prompt_end = prompt_start + len(prompt)
        at = np.arange(prompt_start - 1, self.used - 1, -1)
        self.tokens[at] = response[:-1]
        self.positions[at] = len(prompt) + np.arange(len(at))
        self.key_start[at], self.key_end[at] = at, prompt_end
        self._score(np.append(prompt_end - 1, at), response, scored, branch)
        self._use(np.concatenate([np.arange(prompt_start, prompt_end), at]))
        return prompt_start

    def _branch(
        self,
        prompt: np.ndarray,
        response: np.ndarray,
        scored: np.ndarray,
        branch: int,
        start: int,
    ) -> int:
        """Writes a prompt and its response in reading order, and returns the next free position."""
        end = start + len(prompt) + len(response) - 1
        at = np.arange(start, end)
        self.tokens[at] = np.concatenate([prompt, response[:-1]])
        self.positions[at] = at - start
        self.key_start[at], self.key_end[at] = start, at + 1
        self._score(at[len(prompt) - 1 :], response, scored, branch)
        self._use(at)
        return end

    def _use(self, branch: np.ndarray) -> None:
        """Notes a branch, given by the stream positions of its tokens in reading order."""
        self.branches.append(branch)
        self.uses[branch] += 1

    def _score(self, at: np.ndarray, targets: np.ndarray, scored: np.ndarray, branch: int) -> None:
        end = self.scored + int(scored.sum())
        places = slice(self.scored, end)
        self.score_position[places], self.score_target[places] = at[scored], targets[scored]
        self.score_branch[places] = branch
        self.scored = end
