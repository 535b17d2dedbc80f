"""Ranged attention against a dense mask: values and gradients, whatever the ranges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from tddpo_jax.batches.layout import Row, Shape
from tddpo_jax.batches.packing import pack
from tddpo_jax.models.attention.choice import Choice
from tddpo_jax.models.attention.kernels import check_choice
from tddpo_jax.models.attention.mask import BLOCK
from tddpo_jax.models.attention.ranges import attention
from tddpo_jax.models.attention.view import View
from tddpo_jax.scoring.forward import view_of

SIZE = 10
# Rows, length, query heads, key/value heads; lengths below, at and above a block, no multiple.
SHAPES = {
    "grouped, three blocks": (2, 2 * BLOCK + 22, 6, 2),
    "ungrouped, part of a block": (3, 37, 3, 3),
    "one key/value head, one block": (1, BLOCK, 4, 1),
}


def heads(shape, seed=0, value_size=SIZE):
    """Random q, k, v and an output's cotangent."""
    rows, length, query_heads, key_value_heads = shape
    rng = np.random.default_rng(seed)
    counts = (query_heads, key_value_heads, key_value_heads, query_heads)
    sizes = (SIZE, SIZE, value_size, value_size)
    arrays = [
        rng.normal(size=(rows, length, count, size))
        for count, size in zip(counts, sizes, strict=True)
    ]
    return [jnp.asarray(array, jnp.float32) for array in arrays]


def ranges(rows, length, seed):
    """Any ranges at all, another kind in every row: some empty, some whole, some backwards."""
    rng = np.random.default_rng(seed)
    start, end = rng.integers(0, length + 1, (2, rows, length))
    at = np.arange(length)
    for row, kind in enumerate(rng.integers(0, 4, rows)):
        if kind == 1:
            start[row], end[row] = 0, at + 1
        if kind == 2:
            start[row], end[row] = np.maximum(at - 5, 0), at + 1
        if kind == 3:
            start[row], end[row] = at, at
            start[row, length // 2], end[row, length // 2] = 0, length
    position = rng.integers(0, length, (rows, length))
    return View(*(jnp.asarray(x, jnp.int32) for x in (start, end, position)))


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(attend, q, k, v, cotangent, view):
    out, backward = jax.vjp(lambda q, k, v: attend(q, k, v, view), q, k, v)
    return out, *backward(cotangent)


def assert_same(arrays, view, **settings):
    actual, expected = (
        value_and_gradients(functools.partial(attend, **settings), *arrays, view)
        for attend in (attention, tiny_models.dense_attention)
    )
    for got, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients_are_those_of_a_dense_mask(name):
    """Expected: every score computed, masked and normalised, differentiated by JAX."""
    rows, length, *_ = SHAPES[name]
    arrays = heads(SHAPES[name])
    assert_same(arrays, ranges(rows, length, seed=1))
    assert_same(arrays, tiny_models.reading_order(rows, length))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_any_ranges(seed):
    """Expected: as above, over ranges of every kind."""
    shape = SHAPES["grouped, three blocks"]
    assert_same(heads(shape, seed), ranges(*shape[:2], seed))


SETTINGS = {
    "one token": {"window": 1},
    "a window within a block": {"window": 13},
    "a window of more than a block": {"window": BLOCK + 7},
    "a window of all": {"window": 10_000},
    "a scale": {"scale": 0.7},
    "both": {"window": 29, "scale": 0.05},
}


@pytest.mark.parametrize("value_size", [SIZE, 7, 16])
@pytest.mark.parametrize("name", SETTINGS)
def test_windows_scales_and_other_values(name, value_size):
    """Any ranges and any positions; expected: as above."""
    shape = SHAPES["grouped, three blocks"]
    arrays = heads(shape, value_size=value_size)
    assert_same(arrays, ranges(*shape[:2], seed=1), **SETTINGS[name])


WINDOWS = ("one token", "a window within a block", "a window of more than a block", "both")
PACKED = {**{name: SETTINGS[name] for name in WINDOWS}, "chunks": {"chunk": 29}}


@pytest.mark.parametrize("name", PACKED)
def test_windows_over_packed_rows(name):
    """A chosen token near the prompt sees two ranges: its newest neighbours, and the prompt's end.

    Expected: every branch by itself, in reading order, where a window is a band and chunks are
    triangles."""
    row, arrays = Row(Shape(1, 470, 300, 3)), heads((1, 470, 4, 2), value_size=7)
    for number, pair in enumerate(
        tiny_models.random_examples([(150, 90, 4), (1, 33, 70), (40, 1, 66)])
    ):
        row.add(number, pair)
    view = View(*(jnp.asarray(x)[None] for x in (row.key_start, row.key_end, row.positions)))
    assert_same(arrays, view, **PACKED[name])
    found = jax.jit(functools.partial(attention, **PACKED[name]))(*arrays[:3], view)
    alone = jax.jit(functools.partial(tiny_models.dense_attention, **PACKED[name]))
    for branch in row.branches:
        own = [x[:, branch] for x in arrays[:3]]
        expected = alone(*own, tiny_models.reading_order(1, len(branch)))
        np.testing.assert_allclose(found[:, branch], expected, atol=2e-5)


def test_blocks_before_a_window_are_not_visited():
    """Chosen, prompt and rejected of three blocks each, a window of one: nan at the prompt's
    beginning would reach what computes with it. Who is far enough from it, on either side, gets
    what he gets without it; so do the gradients of their queries."""
    length = 3 * BLOCK
    lengths = [(length, length + 1, length + 1)]
    (batch,) = pack(tiny_models.random_examples(lengths), [Shape(1, 3 * length, 1000, 1)])
    view, (q, k, v, d_out) = view_of(batch), heads((1, 3 * length, 2, 1))
    far = view.position[0] >= 3 * BLOCK
    assert far.sum() == 2 * length
    d_out = jnp.where(far[:, None, None], d_out, 0)
    attend = functools.partial(attention, window=BLOCK)
    poisoned = (x.at[:, length : length + BLOCK].set(jnp.nan) for x in (k, v))
    found = value_and_gradients(attend, q, *poisoned, d_out, view)
    expected = value_and_gradients(attend, q, k, v, d_out, view)
    for got, wanted in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_array_equal(got[:, far], wanted[:, far])


def best_keys(choice, view):
    """The keys that remain, query by query. Keys that no head likes have equal scores of zero."""
    rows, length = view.key_start.shape
    products = np.einsum("BTIf,BSf->BTIS", choice.queries, np.asarray(choice.keys)[:, :, 0])
    scores = np.einsum("BTIS,BTI->BTS", np.maximum(products, 0), choice.weights)
    remain = np.zeros((rows, length, length), bool)
    for row, query in np.ndindex(rows, length):
        seen = np.arange(view.key_start[row, query], view.key_end[row, query])
        own = scores[row, query, seen]
        last = np.sort(own)[-choice.most :][:1]
        remain[row, query, seen] = own >= last if len(own) else False
    return remain


def choice_of(shape, most):
    rng = np.random.default_rng(7)
    rows, length = shape[:2]
    sizes = (rows, length, 5, 6), (rows, length, 1, 6), (rows, length, 5)
    return Choice(*(jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes), most)


def test_an_indexer_leaves_the_best_keys():
    """Expected: as above, with a mask that is made query by query; and for an indexer that leaves
    as many keys as a query sees at most, the same bits as without one."""
    shape = SHAPES["grouped, three blocks"]
    arrays, view = heads(shape, value_size=7), ranges(*shape[:2], seed=1)
    choice = choice_of(shape, 9)
    remain = jnp.asarray(best_keys(choice, view))
    found = value_and_gradients(functools.partial(attention, choice=choice), *arrays, view)
    dense = functools.partial(tiny_models.dense_attention, allowed=remain)
    for got, wanted in zip(found, value_and_gradients(dense, *arrays, view), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)
    few = View(jnp.maximum(view.key_start, view.key_end - 9), view.key_end, view.position)
    found = value_and_gradients(functools.partial(attention, choice=choice), *arrays, few)
    plain = value_and_gradients(attention, *arrays, few)
    for got, wanted in zip(found, plain, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_kernel_is_refused_only_where_an_indexer_would_choose():
    check_choice("cudnn", 2048, 2048)
    check_choice("xla", 2048, 2049)
    check_choice("cudnn", None, 10**6)
    with pytest.raises(
        ValueError, match=r"model.attention: cudnn cannot choose keys, .* 2048 to a"
    ):
        check_choice("cudnn", 2048, 2112)


def test_a_query_without_keys_gets_zeros_and_gives_no_gradient():
    """An empty sum is 0, and a constant has no gradient; nothing may be nan."""
    shape = SHAPES["ungrouped, part of a block"]
    arrays = heads(shape)
    at = jnp.broadcast_to(jnp.arange(shape[1]), shape[:2])
    for result in value_and_gradients(attention, *arrays, View(at, at, at)):
        np.testing.assert_array_equal(result, 0)


def test_a_key_outside_every_range_changes_nothing():
    """The last keys are seen by no query: whatever stands there, no bit of the output changes."""
    q, k, v, _ = heads(SHAPES["ungrouped, part of a block"])
    at = jnp.broadcast_to(jnp.arange(37), (3, 37))
    view = View(jnp.zeros_like(at), jnp.minimum(at + 1, 30), at)
    changed = (x.at[:, 30:].set(1e6) for x in (k, v))
    expected = jax.jit(attention)(q, k, v, view)
    np.testing.assert_array_equal(jax.jit(attention)(q, *changed, view), expected)


def test_blocks_that_no_query_reaches_are_not_visited():
    """Two documents of two blocks each: nan in one would reach what computes with it, if masked."""
    length, half = 4 * BLOCK, 2 * BLOCK
    arrays = heads((1, length, 2, 1))
    at = jnp.arange(length)[None]
    view = View(jnp.where(at < half, 0, half), at + 1, at)
    expected = value_and_gradients(attention, *arrays, view)
    for mine, other in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        poisoned = [x.at[:, other].set(jnp.nan) for x in arrays]
        found = value_and_gradients(attention, *poisoned, view)
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(got[:, mine], wanted[:, mine])


def test_under_vmap():
    """Expected: one member after another, each with ranges of its own."""
    shape, members = SHAPES["ungrouped, part of a block"], 2
    each = [(*heads(shape, seed), ranges(*shape[:2], seed)) for seed in range(members)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *each)
    mapped = jax.vmap(functools.partial(value_and_gradients, attention))(*stacked)
    for number, one in enumerate(each):
        for got, wanted in zip(mapped, value_and_gradients(attention, *one), strict=True):
            np.testing.assert_allclose(got[number], wanted, atol=2e-5)


def test_bfloat16_is_near_float32():
    """Inputs, weights and outputs are rounded to 2^-9 relative; sums stay float32."""
    shape = SHAPES["ungrouped, part of a block"]
    q, k, v, cotangent = heads(shape)
    view = ranges(*shape[:2], seed=1)
    expected = value_and_gradients(tiny_models.dense_attention, q, k, v, cotangent, view)
    half = (x.astype(jnp.bfloat16) for x in (q, k, v, cotangent))
    for got, wanted in zip(value_and_gradients(attention, *half, view), expected, strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(np.float32), wanted, atol=0.03 * np.abs(wanted).max())


def test_an_unknown_implementation_is_refused():
    q, k, v, _ = heads((1, 3, 2, 1))
    at = jnp.broadcast_to(jnp.arange(3), (1, 3))
    with pytest.raises(ValueError, match=r"attention 'dense' is not available"):
        attention(q, k, v, View(at, at + 1, at), implementation="dense")
