"""Packing decides which examples share a row and how long the rows are.

It aims at as few tokens per step as possible. A step packs exactly its own examples into
micro-batches of a few fixed shapes, so a run compiles only a few times whatever the order of its
data. Each further shape is half as long as the one before it. The short shapes hold the rest of a
step, where a whole long micro-batch would be mostly padding.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from tddpo_jax.batches.causal_rows import Widths, assign, branch_counts, halved_widths
from tddpo_jax.batches.layout import Batch, Example, Row, Shape, score_count, stream_length
from tddpo_jax.errors import UserError

ROW_MULTIPLE = 64
LONGEST_DEFAULT_ROW = 8192
SAMPLE_EXAMPLES = 1024
# Starting a micro-batch costs about as much as computing this many positions. Therefore the longer
# of two row lengths wins if both need equal padding.
MICRO_BATCH_POSITIONS = 32


class _Sizes(NamedTuple):
    """The room that each example needs in a row."""

    lengths: Int[np.ndarray, " examples"]  # stream positions
    scores: Int[np.ndarray, " examples"]  # predicted tokens
    branches: Int[np.ndarray, "examples responses"]  # tokens of each response with its prompt

    def of(self, numbers: Any) -> _Sizes:
        return _Sizes(*(size[numbers] for size in self))

    def needs(self, widths: Sequence[int]) -> Int[np.ndarray, "examples capacities"]:
        """The amount of each of `_capacities` that an example takes, in the same order."""
        columns = np.stack([self.lengths, self.scores, np.ones_like(self.lengths)], axis=1)
        return np.hstack([columns, branch_counts(self.branches, widths)])


def _sizes(examples: Sequence[Example], responses: int, plain: bool) -> _Sizes:
    assert all(len(example.responses) == responses for example in examples)
    prompts = np.array([len(example.prompt) for example in examples], int)
    lengths = np.array([list(map(len, example.responses)) for example in examples], int)
    return _Sizes(
        np.array([needed_length(example, plain) for example in examples], int),
        np.array([score_count(example) for example in examples], int),
        prompts[:, None] + lengths.reshape(-1, responses) - 1,
    )


def widths_of(shapes: Sequence[Shape]) -> list[int]:
    """All widths of causal rows, widest first."""
    return sorted({width for shape in shapes for width, _ in shape.causal_rows}, reverse=True)


def _capacities(shape: Shape, widths: Sequence[int]) -> Int[np.ndarray, " capacities"]:
    """The room in one row: positions, scores, examples, and causal rows.

    There is one count of causal rows for each width, and it includes all wider ones.
    """
    counts = [sum(n for wide, n in shape.causal_rows if wide >= width) for width in widths]
    return np.array([shape.length, shape.scores, shape.examples, *counts])


def _micro_batches(sizes: _Sizes, shapes: Sequence[Shape]) -> list[tuple[Shape, list[list[int]]]]:
    """The smallest set of micro-batches that holds these examples.

    Returns:
        For each micro-batch its shape, and for each of its rows the numbers of its examples.
    """
    widths = widths_of(shapes)
    needs, capacities = sizes.needs(widths), [_capacities(shape, widths) for shape in shapes]
    # A unit is one micro-batch of the shortest shape. Each longer shape is worth two of the next.
    units = -(-int(needs[:, 0].sum()) // (shapes[-1].rows * shapes[-1].length))
    while True:
        numbers, rest = [], units
        for number in range(len(shapes)):
            count, rest = divmod(rest, 2 ** (len(shapes) - 1 - number))
            numbers += [number] * count
        rows = np.repeat(numbers, [shapes[number].rows for number in numbers]).astype(int)
        filled = _filled(needs, [capacities[number] for number in rows])
        if filled is not None:
            break
        units += 1
    its_rows = iter(filled)
    return [
        (shapes[number], list(itertools.islice(its_rows, shapes[number].rows)))
        for number in numbers
    ]


def _filled(
    needs: Int[np.ndarray, "examples capacities"], capacities: list[np.ndarray]
) -> list[list[int]] | None:
    """Fills rows of these capacities by best-fit decreasing; None if the rows are too few."""
    left = np.array(capacities)
    filled: list[list[int]] = [[] for _ in capacities]
    for number in np.lexsort((np.arange(len(needs)), -needs[:, 0])):
        after = left - needs[number]
        fits = (after >= 0).all(axis=1)
        if not fits.any():
            return None
        best = int(np.argmin(np.where(fits, after[:, 0], np.iinfo(int).max)))
        filled[best].append(int(number))
        left[best] = after[best]
    return filled


def pack(
    examples: Sequence[Example],
    shapes: Sequence[Shape],
    ref_logps: Float[np.ndarray, "examples values"] | None = None,
    here: Callable[[int], Container[int]] = range,
) -> list[Batch]:
    """Packs examples into as many micro-batches as they need, deterministically.

    Args:
        examples: the examples of one step.
        shapes: the shapes that a micro-batch may have, longest first.
        ref_logps: reference log-probs of all responses, and of their tails if a loss reads those,
            in nats; default: zeros.
        here: takes the number of rows of a micro-batch and gives the rows that this host places.
            The other rows get only the numbers of their examples, because `unpack` needs those.

    Returns:
        The micro-batches, on the host.

    Raises:
        ValueError: an example does not fit a row of the first shape.
    """
    sizes = _sizes(examples, shapes[0].responses, shapes[0].plain)
    for example, length in zip(examples, sizes.lengths, strict=True):
        if length > shapes[0].length:
            raise ValueError(
                f"row {example.place} of the data needs {length} positions, "
                f"but a packed row has {shapes[0].length}"
            )
    widths = widths_of(shapes)
    assert (sizes.needs(widths) <= _capacities(shapes[0], widths)).all(), (
        "an example needs more scores or causal rows than a row of the first shape has"
    )
    return [
        _batch(examples, rows, shape, ref_logps, here(shape.rows))
        for shape, rows in _micro_batches(sizes, shapes)
    ]


def _batch(
    examples: Sequence[Example],
    rows: list[list[int]],
    shape: Shape,
    ref_logps: np.ndarray | None,
    here: Container[int],
) -> Batch:
    filled = []
    for place, numbers in enumerate(rows):
        row = Row(shape)
        row.example[: len(numbers)] = numbers
        for number in numbers if place in here else ():
            row.add(number, examples[number])
        filled.append(row)
    arrays = {
        name: np.stack([getattr(row, name) for row in filled])
        for name in Batch._fields
        if name not in ("ref_logps", "causal_rows")
    }
    rows_of = [assign(row.branches, shape.length, shape.causal_rows) for row in filled]
    causal_rows = jax.tree.map(lambda *arrays: np.stack(arrays), *rows_of)
    width = shape.responses if ref_logps is None else ref_logps.shape[1]
    reference = np.zeros((shape.rows, shape.examples, width), np.float32)
    if ref_logps is not None:
        present = arrays["example"] >= 0
        reference[present] = ref_logps[arrays["example"][present]]
    fields: dict[str, Any] = {**arrays, "ref_logps": reference, "causal_rows": causal_rows}
    return Batch(**fields)


def empty_batch(shape: Shape) -> Batch:
    """A micro-batch of this shape that holds no example."""
    return _batch([], [[] for _ in range(shape.rows)], shape, None, ())


def unpack(
    batches: Sequence[Batch], values: Sequence[Float[np.ndarray, "*members B P N"]], count: int
) -> Float[np.ndarray, "*members examples N"]:
    """Brings values of packed responses back into the order of the examples that were packed.

    Args:
        batches: the micro-batches from `pack`.
        values: one value for each response of each micro-batch.
        count: number of examples that were packed.

    Returns:
        The values by example, float32; nan for an example that no micro-batch holds.
    """
    *members, _, _, responses = values[0].shape
    out = np.full((*members, count, responses), np.nan, np.float32)
    for batch, value in zip(batches, values, strict=True):
        present = batch.example >= 0
        out[..., batch.example[present], :] = value[..., present, :]
    return out


def needed_length(example: Example, plain: bool) -> int:
    """Length of the shortest row that holds this one example, in stream positions."""
    if plain:
        longest = max(map(len, example.responses))
        return len(example.responses) * (len(example.prompt) + longest - 1)
    return stream_length(example)


def choose_shapes(
    examples: Sequence[Example],
    batch_examples: int,
    *,
    rows: int = 1,
    row_length: int | None = None,
    plain: bool = False,
    causal_rows: bool = False,
) -> tuple[Shape, ...]:
    """Chooses the shapes of micro-batches that need the least padding over a sample of the data.

    Args:
        examples: all examples that will be packed; the longest decides the shortest possible row.
        batch_examples: number of examples in one step.
        rows: number of rows of a micro-batch, a multiple of the data-parallel devices.
        row_length: stream positions of a row; default: the best of several lengths.
        plain: whether to use the plain layout, with one example in a row and nothing shared.
        causal_rows: whether the attention back-end needs every branch in a causal row.

    Returns:
        The shapes, longest first.

    Raises:
        UserError: `row_length` is too short for the longest example.
    """
    responses = len(examples[0].responses)
    sizes = _sizes(examples, responses, plain)
    longest = int(sizes.lengths.max())
    if row_length is not None and row_length < longest:
        raise UserError(
            f"data.row_length: {row_length} is less than the longest example, {longest}"
        )
    shortest = _rounded(longest)
    widths = halved_widths(int(sizes.branches.max())) if causal_rows else []
    if plain:
        most_scores = int(sizes.scores.max())
        of_each = tuple((width, responses) for width in widths[:1])
        return (Shape(rows, row_length or shortest, most_scores, 1, True, of_each, responses),)
    sampled = max(SAMPLE_EXAMPLES, batch_examples)
    order = np.random.default_rng(0).permutation(len(examples))[:sampled]
    firsts = range(0, len(order), batch_examples)
    steps = [order[first : first + batch_examples] for first in firsts]
    # A row that is longer than the largest step would hold only more padding.
    largest_step = _rounded(max(int(sizes.lengths[step].sum()) for step in steps))
    limit = max(shortest, min(LONGEST_DEFAULT_ROW, -(-largest_step // rows)))
    lengths_tried = [row_length] if row_length else _ladder(shortest, limit)
    choices = [_trial(sizes, steps, rows, length, widths) for length in lengths_tried]
    return min(choices, key=lambda choice: (choice[0], -choice[1][0].length))[1]


def _rounded(length: int) -> int:
    return -(-length // ROW_MULTIPLE) * ROW_MULTIPLE


def _ladder(shortest: int, limit: int) -> list[int]:
    return sorted({_rounded(int(length)) for length in np.linspace(shortest, limit, 16)})


def _trial(
    sizes: _Sizes, steps: list[np.ndarray], rows: int, length: int, widths: list[int]
) -> tuple[int, tuple[Shape, ...]]:
    """The cost of the sample with rows of this length, in stream positions, and its shapes."""
    count, responses = sizes.branches.shape
    unlimited = Shape(rows, length, int(sizes.scores.sum()) + 1, count, responses=responses)
    filled = [
        step[numbers]
        for step in steps
        for _, of_batch in _micro_batches(sizes.of(step), (unlimited,))
        for numbers in of_batch
    ]
    most_scores = max(sizes.scores[numbers].sum() for numbers in filled)
    most_examples = max(map(len, filled))
    # Other orders of the data may put more examples into a row, so leave room for a quarter more.
    places = most_examples + most_examples // 4
    shape = Shape(
        rows,
        length,
        # Any single example must fit.
        _rounded(max(int(most_scores), int(sizes.scores.max()))),
        places,
        causal_rows=_causal_rows(sizes, length, places, widths),
        responses=responses,
    )
    # `_half` returns the shortest possible row itself, and the dict removes such repetitions.
    half = _half(shape, sizes, widths)
    shapes = tuple(dict.fromkeys((shape, half, _half(half, sizes, widths))))
    used = sum(
        each.rows * each.length + MICRO_BATCH_POSITIONS
        for step in steps
        for each, _ in _micro_batches(sizes.of(step), shapes)
    )
    return used, shapes


def _half(shape: Shape, sizes: _Sizes, widths: list[int]) -> Shape:
    length = _rounded(shape.length // 2)
    if length == shape.length:
        return shape
    causal_rows = _causal_rows(sizes, length, shape.examples, widths)
    scores = _rounded(shape.scores // 2)
    return dataclasses.replace(shape, length=length, scores=scores, causal_rows=causal_rows)


def _causal_rows(sizes: _Sizes, length: int, places: int, widths: list[int]) -> Widths:
    """Twice as many causal rows of each width as a packed row of average examples needs.

    A row of only long or only short examples would need more. Packing then mixes lengths instead,
    which costs about one percent more padding. More causal rows would cost more than that.
    """
    if not widths:
        return ()
    needed = branch_counts(sizes.branches, widths).sum(axis=0) * length / sizes.lengths.sum()
    # One example must always fit, and all its branches may be as long as the longest.
    responses = sizes.branches.shape[1]
    at_least = np.clip(np.ceil(2 * needed).astype(int), responses, responses * places)
    counts = np.diff(at_least, prepend=0)
    return tuple((width, int(count)) for width, count in zip(widths, counts, strict=True) if count)


def padding_share(batches: Sequence[Batch]) -> float:
    """The share of stream positions that hold no token, in [0, 1]."""
    live = sum(int(np.sum(batch.key_end > batch.key_start)) for batch in batches)
    return 1.0 - live / sum(batch.tokens.size for batch in batches)
