"""Which examples share a row, and how long the rows are: a step in as few tokens as possible.

A step takes exactly its examples and packs them into micro-batches of a few fixed shapes, so that a
run compiles a few times whatever its order of data. Each further shape is half as long, for the
rest of a step, where rounding up to a whole long micro-batch would cost most.
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
# What starting a micro-batch costs, as much as so many positions: of two lengths that pad alike,
# the longer wins.
MICRO_BATCH_POSITIONS = 32


class _Sizes(NamedTuple):
    """What examples need of a row."""

    lengths: Int[np.ndarray, " examples"]  # stream positions
    scores: Int[np.ndarray, " examples"]
    branches: Int[np.ndarray, "examples responses"]  # tokens of each with its prompt

    def of(self, numbers: Any) -> _Sizes:
        return _Sizes(*(size[numbers] for size in self))

    def needs(self, widths: Sequence[int]) -> Int[np.ndarray, "examples capacities"]:
        """What each example takes of each of `_capacities`."""
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


def _widths(shapes: Sequence[Shape]) -> list[int]:
    """All widths of causal rows, widest first."""
    return sorted({width for shape in shapes for width, _ in shape.causal_rows}, reverse=True)


def _capacities(shape: Shape, widths: Sequence[int]) -> Int[np.ndarray, " capacities"]:
    """Positions, scores and examples of a row, and its causal rows of each width and all wider."""
    counts = [sum(n for wide, n in shape.causal_rows if wide >= width) for width in widths]
    return np.array([shape.length, shape.scores, shape.examples, *counts])


def _micro_batches(sizes: _Sizes, shapes: Sequence[Shape]) -> list[tuple[Shape, list[list[int]]]]:
    """The least micro-batches that hold these examples, and the numbers of those of each row."""
    widths = _widths(shapes)
    needs, capacities = sizes.needs(widths), [_capacities(shape, widths) for shape in shapes]
    # Counted in the shortest shape, of which each longer one is worth twice the one behind it.
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
    """Best-fit decreasing into rows of these capacities; none if they are too few."""
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
    ref_logps: Float[np.ndarray, "examples responses"] | None = None,
    here: Callable[[int], Container[int]] = range,
) -> list[Batch]:
    """Packs examples into as many micro-batches as they need, deterministically.

    Args:
        examples: those of one step.
        shapes: the shapes a micro-batch may have, the longest first.
        ref_logps: reference log-probs of all responses, in nats; default zeros.
        here: which rows of a micro-batch of so many this host places. The other rows get only the
            numbers of their examples, which is what `unpack` needs.

    Raises:
        ValueError: an example does not fit a row of the first shape.
    """
    sizes = _sizes(examples, shapes[0].responses, shapes[0].plain)
    for example, length in zip(examples, sizes.lengths, strict=True):
        if length > shapes[0].length:
            raise ValueError(
                f"row {example.row} of the data needs {length} positions, "
                f"a row has {shapes[0].length}"
            )
    widths = _widths(shapes)
    assert (sizes.needs(widths) <= _capacities(shapes[0], widths)).all(), (
        "no row holds this example"
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
    reference = np.zeros((shape.rows, shape.examples, shape.responses), np.float32)
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
    """One value of each response of packed batches, in the order of the `count` packed examples."""
    *members, _, _, responses = values[0].shape
    out = np.full((*members, count, responses), np.nan, np.float32)
    for batch, value in zip(batches, values, strict=True):
        present = batch.example >= 0
        out[..., batch.example[present], :] = value[..., present, :]
    return out


def needed_length(example: Example, plain: bool) -> int:
    """Stream positions of the row that an example needs for itself."""
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
    """The shapes of micro-batches with the least padding over a sample of the data.

    Args:
        examples: all that will be packed; the longest decides the shortest possible row.
        batch_examples: examples of one step.
        rows: rows of a micro-batch, a multiple of the data-parallel devices.
        row_length: stream positions of a row; default: chosen.
        plain: the unshared, unpacked layout.
        causal_rows: whether the attention back-end needs every branch in a causal row.

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
    # A step smaller than the row would only pad it.
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
    """What the sample costs with this row length, in stream positions, and the shapes to do it."""
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
    # Room for rows of other orders of the data; the longest single example must fit in any case.
    places = most_examples + most_examples // 4
    shape = Shape(
        rows,
        length,
        _rounded(max(int(most_scores), int(sizes.scores.max()))),
        places,
        causal_rows=_causal_rows(sizes, length, places, widths),
        responses=responses,
    )
    # The shortest row has no half.
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

    A row of only long or only short examples needs more, and is not packed: the best fit then mixes
    lengths, which costs about a hundredth more padding. More rows would cost more than that.
    """
    if not widths:
        return ()
    needed = branch_counts(sizes.branches, widths).sum(axis=0) * length / sizes.lengths.sum()
    # Any example fits that has a place: all its branches may be among the longest.
    responses = sizes.branches.shape[1]
    at_least = np.clip(np.ceil(2 * needed).astype(int), responses, responses * places)
    counts = np.diff(at_least, prepend=0)
    return tuple((width, int(count)) for width, count in zip(widths, counts, strict=True) if count)


def padding_share(batches: Sequence[Batch]) -> float:
    """Share of stream positions that hold no token."""
    live = sum(int(np.sum(batch.key_end > batch.key_start)) for batch in batches)
    return 1.0 - live / sum(batch.tokens.size for batch in batches)
