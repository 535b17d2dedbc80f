"""Packing: exact, deterministic, within capacity, and with little padding."""

import jax
import numpy as np
import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st

from tddpo_jax.batches.layout import Batch, Example, Shape, score_count, stream_length
from tddpo_jax.batches.packing import choose_shapes, needed_length, pack, padding_share, unpack

# The lengths of a prompt and its responses: one, two or three, the same number in a whole list.
LENGTHS = st.integers(2, 4).flatmap(
    lambda parts: st.lists(st.tuples(*[st.integers(1, 60)] * parts), min_size=1, max_size=30)
)


def empty_examples(lengths):
    """Examples of which only the lengths matter."""
    return [
        Example(n, np.zeros(prompt, np.int32), tuple(np.zeros(k, np.int32) for k in responses))
        for n, (prompt, *responses) in enumerate(lengths)
    ]


def numbers(batches):
    """The examples of all batches, as often as they stand there."""
    return sorted(int(n) for batch in batches for n in batch.example.ravel() if n >= 0)


@given(lengths=LENGTHS, rows=st.integers(1, 3), plain=st.booleans())
def test_every_example_stands_in_one_place_and_every_row_within_its_shape(lengths, rows, plain):
    examples, responses = empty_examples(lengths), len(lengths[0]) - 1
    shapes = choose_shapes(examples, 8, rows=rows, plain=plain)
    batches = pack(examples, shapes)
    assert numbers(batches) == list(range(len(examples)))
    allowed = {(s.rows, s.length, s.scores, s.examples, responses) for s in shapes}
    for batch in batches:
        places = batch.lengths.shape[1:]
        assert (*batch.tokens.shape, batch.score_branch.shape[1], *places) in allowed
        # Indices that ran over the edge of an array would have raised; what was placed is whole.
        present = batch.example >= 0
        scored = batch.score_branch < np.prod(places)
        assert scored.sum() == sum(score_count(examples[n]) for n in batch.example[present])
        if not plain:
            live = (batch.key_end > batch.key_start).sum()
            assert live == sum(stream_length(examples[n]) for n in batch.example[present])


@given(lengths=LENGTHS, rows=st.integers(1, 3))
def test_packing_is_a_function_of_its_input(lengths, rows):
    examples = empty_examples(lengths)
    shapes = choose_shapes(examples, 8, rows=rows)
    assert shapes == choose_shapes(examples, 8, rows=rows)
    first, second = pack(examples, shapes), pack(examples, shapes)
    assert len(first) == len(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@given(lengths=LENGTHS, members=st.integers(1, 3))
def test_unpack_is_the_inverse(lengths, members):
    """Reference log-probs are packed beside their examples: unpacking them gives them back."""
    examples, responses = empty_examples(lengths), len(lengths[0]) - 1
    values = np.random.default_rng(0).normal(size=(len(lengths), responses)).astype(np.float32)
    batches = pack(examples, choose_shapes(examples, 8), values)
    back = unpack(batches, [batch.ref_logps for batch in batches], len(examples))
    np.testing.assert_array_equal(back, values)
    stacked = [np.stack([batch.ref_logps + m for m in range(members)]) for batch in batches]
    for number, back in enumerate(unpack(batches, stacked, len(examples))):
        np.testing.assert_array_equal(back, values + np.float32(number))


def test_a_pair_that_does_not_fit_is_refused_by_its_row():
    nine = np.zeros(9, np.int32)
    pairs = [Example(4711, nine, (nine, nine))]
    problem = r"row 4711 of the data needs 25 positions, but a packed row has 20"
    with pytest.raises(ValueError, match=problem):
        pack(pairs, [Shape(1, 20, 99, 1)])


def test_a_row_length_below_the_longest_pair_is_refused():
    with pytest.raises(ValueError, match=r"data\.row_length: 24 is less than .* example, 25"):
        choose_shapes(empty_examples([(9, 9, 9), (1, 1, 1)]), 2, row_length=24)


def test_a_given_row_length_is_kept():
    pairs = empty_examples([(9, 9, 9)] * 5)
    assert choose_shapes(pairs, 5, row_length=101)[0].length == 101


def test_no_pairs_make_no_batches():
    assert pack([], [Shape(1, 20, 9, 1)]) == []


def test_plain_rows_hold_both_branches_and_their_prompt_twice():
    """2 x (prompt + longer response - 1): 2 x (5 + 7 - 1) = 22."""
    (pair,) = empty_examples([(5, 7, 3)])
    assert needed_length(pair, plain=True) == 22
    assert needed_length(pair, plain=False) == 13


def test_causal_rows_hold_the_branches_of_any_number_of_responses():
    """Three responses to a prompt of 5: branches of 10, 7 and 11 tokens, which one width holds."""
    examples = tiny_models.random_examples([(5, 6, 3, 7)])
    (shape,) = set(choose_shapes(examples, 1, causal_rows=True))
    (batch,) = pack(examples, (shape,))
    (rows,) = batch.causal_rows
    assert sorted(rows.length[rows.position[..., 0] < shape.length]) == [7, 10, 11]


def test_a_shape_is_for_one_number_of_responses():
    with pytest.raises(AssertionError):
        pack(empty_examples([(3, 2)]), [Shape(1, 20, 9, 1)])


# ---- padding -------------------------------------------------------------------------------------


def drawn_like_preferences(count):
    """Pairs of lengths like dpo-mix-7k's: log-normal with its means of 431, 313 and 339 tokens, a
    branch cut to 2,048 and its prompt to 1,024. A log-normal of mean m has median m exp(-s^2/2)."""
    rng = np.random.default_rng(0)
    spread = 0.8
    means = np.array([431, 313, 339])
    lengths = means * np.exp(spread * rng.normal(size=(count, 3)) - spread**2 / 2)
    prompt, chosen, rejected = np.maximum(lengths.astype(int), 1).T
    prompt = np.minimum(prompt, 1024)
    responses = (np.minimum(side, 2048 - prompt) for side in (chosen, rejected))
    return empty_examples(np.stack([prompt, *responses], axis=1))


@pytest.mark.parametrize(
    ("batch_pairs", "rows", "most"), [(128, 1, 0.03), (16, 1, 0.08), (128, 8, 0.05)]
)
@pytest.mark.parametrize("causal_rows", [False, True])
def test_padding(batch_pairs, rows, most, causal_rows):
    """The share of positions without a token, over ten steps in an order that the choice of shapes
    has not seen; also where cuDNN's causal rows are to be filled."""
    pairs = drawn_like_preferences(2500)
    shapes = choose_shapes(pairs, batch_pairs, rows=rows, causal_rows=causal_rows)
    order = np.random.default_rng(1).permutation(len(pairs))
    batches: list[Batch] = []
    for first in range(0, 10 * batch_pairs, batch_pairs):
        batches += pack([pairs[n] for n in order[first : first + batch_pairs]], shapes)
    assert padding_share(batches) <= most


def test_the_rest_of_a_step_takes_a_shorter_shape():
    """Seven pairs of 16 positions: 4 in a row of 64, 2 in one of 32, 1 in one of 16."""
    pairs = empty_examples([(8, 5, 5)] * 7)
    shapes = [Shape(1, length, 64, 4) for length in (64, 32, 16)]
    assert [batch.tokens.shape for batch in pack(pairs, shapes)] == [(1, 64), (1, 32), (1, 16)]


def test_padding_share_counts_positions():
    """Pairs of 13 and 4 positions in a row of 20: 3 of 20 hold no token."""
    pairs = tiny_models.random_examples([(5, 7, 3), (2, 3, 1)])
    assert padding_share(pack(pairs, [Shape(1, 20, 14, 2)])) == pytest.approx(3 / 20)
