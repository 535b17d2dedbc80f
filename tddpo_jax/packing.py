"""Which pairs share a row, and how long the rows are: a step's pairs in as few tokens as possible.

A step takes exactly its pairs and packs them into micro-batches of one or two fixed shapes, so that
a run compiles once or twice whatever its order of data. The second, half as long, takes the last
row of a small step, where rounding up to a whole long row would cost most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tddpo_jax.layout import Batch, Pair, Row, Shape, score_count, stream_length

ROW_MULTIPLE = 64
LONGEST_DEFAULT_ROW = 8192
SAMPLE_PAIRS = 1024


def _bins(lengths: np.ndarray, scores: np.ndarray, shape: Shape) -> list[list[int]]:
    """Best-fit decreasing: the numbers of the pairs of each row, within all three capacities."""
    if shape.plain:
        return [[number] for number in range(len(lengths))]
    bins: list[list[int]] = []
    length_left = np.full(len(lengths), shape.length)
    scores_left = np.full(len(lengths), shape.scores)
    places_left = np.full(len(lengths), shape.pairs)
    for number in np.lexsort((np.arange(len(lengths)), -lengths)):
        used = len(bins)
        fits = length_left[:used] >= lengths[number]
        fits &= (scores_left[:used] >= scores[number]) & (places_left[:used] > 0)
        if fits.any():
            best = int(np.argmin(np.where(fits, length_left[:used], shape.length + 1)))
        else:
            best = used
            bins.append([])
        bins[best].append(int(number))
        length_left[best] -= lengths[number]
        scores_left[best] -= scores[number]
        places_left[best] -= 1
    return bins


def _placed(
    lengths: np.ndarray, scores: np.ndarray, shapes: Sequence[Shape]
) -> list[tuple[list[int], Shape]]:
    """The rows of a step, each in the shortest shape that holds it, longest rows first."""
    placed = []
    for numbers in _bins(lengths, scores, shapes[0]):
        need = lengths[numbers].sum(), scores[numbers].sum(), len(numbers)
        fitting = [s for s in shapes if all(np.less_equal(need, (s.length, s.scores, s.pairs)))]
        placed.append((numbers, min(fitting, key=lambda shape: shape.length)))
    return sorted(placed, key=lambda row: -row[1].length)


def pack(
    pairs: Sequence[Pair],
    shapes: Sequence[Shape],
    ref_logps: Float[np.ndarray, "pairs 2"] | None = None,
) -> list[Batch]:
    """Packs pairs into as many micro-batches as they need, deterministically.

    Args:
        pairs: the pairs of one step.
        shapes: the shapes a micro-batch may have, the longest first.
        ref_logps: reference log-probs of the pairs, chosen and rejected, in nats; default zeros.

    Raises:
        ValueError: a pair does not fit a row of the first shape.
    """
    lengths = np.array([needed_length(pair, shapes[0].plain) for pair in pairs])
    scores = np.array([score_count(pair) for pair in pairs])
    for pair, length in zip(pairs, lengths, strict=True):
        if length > shapes[0].length:
            raise ValueError(
                f"data.row_length: row {pair.row} of the data needs {length} positions, "
                f"a row has {shapes[0].length}"
            )
    placed = _placed(lengths, scores, shapes)
    batches = []
    for shape in shapes:
        rows = [numbers for numbers, its_shape in placed if its_shape == shape]
        rows += [[] for _ in range(-len(rows) % shape.rows)]
        for first in range(0, len(rows), shape.rows):
            batches.append(_batch(pairs, rows[first : first + shape.rows], shape, ref_logps))
    return batches


def _batch(
    pairs: Sequence[Pair], rows: list[list[int]], shape: Shape, ref_logps: np.ndarray | None
) -> Batch:
    filled = []
    for numbers in rows:
        row = Row(shape)
        for number in numbers:
            row.add(number, pairs[number])
        filled.append(row)
    arrays = {
        name: np.stack([getattr(row, name) for row in filled])
        for name in Batch._fields
        if name != "ref_logps"
    }
    reference = np.zeros((shape.rows, shape.pairs, 2), np.float32)
    if ref_logps is not None:
        present = arrays["pair"] >= 0
        reference[present] = ref_logps[arrays["pair"][present]]
    fields: dict[str, Any] = {**arrays, "ref_logps": reference}
    return Batch(**fields)


def unpack(
    batches: Sequence[Batch], values: Sequence[Float[np.ndarray, "*members B P 2"]], count: int
) -> Float[np.ndarray, "*members pairs 2"]:
    """Per-branch values of packed batches, in the order of the `count` pairs that were packed."""
    out = np.full((*values[0].shape[:-3], count, 2), np.nan, np.float32)
    for batch, value in zip(batches, values, strict=True):
        present = batch.pair >= 0
        out[..., batch.pair[present], :] = value[..., present, :]
    return out


def needed_length(pair: Pair, plain: bool) -> int:
    """Stream positions of the row that a pair needs for itself."""
    if plain:
        return 2 * (len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) - 1)
    return stream_length(pair)


def choose_shapes(
    pairs: Sequence[Pair],
    batch_pairs: int,
    *,
    rows: int = 1,
    row_length: int | None = None,
    plain: bool = False,
) -> tuple[Shape, ...]:
    """The shapes of micro-batches with the least padding over a sample of the data.

    Args:
        pairs: all pairs that will be packed; the longest decides the shortest possible row.
        batch_pairs: pairs of one step.
        rows: rows of a micro-batch, a multiple of the data-parallel devices.
        row_length: stream positions of a row; default: chosen.
        plain: the unshared, unpacked layout.

    Raises:
        ValueError: `row_length` is too short for the longest pair.
    """
    lengths = np.array([needed_length(pair, plain) for pair in pairs])
    scores = np.array([score_count(pair) for pair in pairs])
    longest = int(lengths.max())
    if row_length is not None and row_length < longest:
        raise ValueError(f"data.row_length: {row_length} is less than the longest pair, {longest}")
    shortest = _rounded(longest)
    if plain:
        return (Shape(rows, row_length or shortest, int(scores.max()), 1, plain=True),)
    order = np.random.default_rng(0).permutation(len(pairs))[: max(SAMPLE_PAIRS, batch_pairs)]
    steps = [order[first : first + batch_pairs] for first in range(0, len(order), batch_pairs)]
    # A step smaller than the row would only pad it.
    largest_step = _rounded(max(int(lengths[step].sum()) for step in steps))
    limit = max(shortest, min(LONGEST_DEFAULT_ROW, -(-largest_step // rows)))
    lengths_tried = [row_length] if row_length else _ladder(shortest, limit)
    choices = [_trial(lengths, scores, steps, rows, length) for length in lengths_tried]
    return min(choices, key=lambda choice: (choice[0], -choice[1][0].length))[1]


def _rounded(length: int) -> int:
    return -(-length // ROW_MULTIPLE) * ROW_MULTIPLE


def _ladder(shortest: int, limit: int) -> list[int]:
    return sorted({_rounded(int(length)) for length in np.linspace(shortest, limit, 16)})


def _trial(
    lengths: np.ndarray, scores: np.ndarray, steps: list[np.ndarray], rows: int, length: int
) -> tuple[int, tuple[Shape, ...]]:
    """Stream positions computed over the sample with this row length, and the shapes to do it."""
    unlimited = Shape(rows, length, int(scores.sum()) + 1, len(lengths))
    bins = [[step[b] for b in _bins(lengths[step], scores[step], unlimited)] for step in steps]
    most_scores = max(scores[b].sum() for step in bins for b in step)
    most_pairs = max(len(b) for step in bins for b in step)
    # Room for rows of other orders of the data; the longest single pair must fit in any case.
    shape = Shape(
        rows,
        length,
        _rounded(max(int(most_scores), int(scores.max()))),
        most_pairs + most_pairs // 4,
    )
    if rows > 1:
        return sum(-(-len(step) // rows) * rows * length for step in bins), (shape,)
    half = Shape(1, _rounded(length // 2), _rounded(shape.scores // 2), shape.pairs)
    # The shortest row has no half, and a shape that stood there twice would be packed twice.
    shapes = (shape, half) if half.length < length else (shape,)
    used = sum(row[1].length for s in steps for row in _placed(lengths[s], scores[s], shapes))
    return used, shapes


def padding_share(batches: Sequence[Batch]) -> float:
    """Share of stream positions that hold no token."""
    live = sum(int(np.sum(batch.key_end > batch.key_start)) for batch in batches)
    return 1.0 - live / sum(batch.tokens.size for batch in batches)
