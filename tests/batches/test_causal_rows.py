"""Branches as causal rows: the same attention, every branch placed, nothing silently replaced."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from tddpo_jax.batches.causal_rows import assign, branch_counts, halved_widths
from tddpo_jax.batches.packing import choose_shapes, pack, padding_share
from tddpo_jax.config.reading import resolve
from tddpo_jax.config.schema import ModelConfig
from tddpo_jax.models.attention.gathers import collected, spread
from tddpo_jax.models.attention.kernels import KERNELS, causal_rows_attention, check_shape
from tddpo_jax.models.attention.ranges import attention
from tddpo_jax.models.attention.view import AttentionShape, View
from tddpo_jax.placement import computation
from tddpo_jax.scoring.forward import view_of
from tddpo_jax.system.console import Screen
from tddpo_jax.training import prepare

HEADS, KEY_VALUE_HEADS, SIZE = 6, 2, 8
# A one-token response, a one-token prompt, branches on both sides of a width.
LENGTHS = [(9, 1, 1), (1, 70, 3), (40, 30, 75), (5, 2, 60), (13, 17, 19)]
# The same with one response and with three.
ANY_NUMBER = {
    1: [each[:2] for each in LENGTHS],
    2: LENGTHS,
    3: [(*each, third) for each, third in zip(LENGTHS, (2, 66, 1, 33, 8), strict=True)],
}
lengths_of_examples = st.integers(2, 4).flatmap(
    lambda parts: st.lists(st.tuples(*(st.integers(1, 90),) * parts), min_size=1, max_size=12)
)


def batches(lengths, plain=False, rows=1):
    pairs = tiny_models.random_examples(lengths)
    return pack(pairs, choose_shapes(pairs, len(pairs), rows=rows, plain=plain, causal_rows=True))


def arrays(batch, seed=0):
    """Random queries, keys, values and an output's cotangent, zero where the row holds nothing."""
    rng = np.random.default_rng(seed)
    counts = (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS, HEADS)
    made = (rng.normal(size=(*batch.tokens.shape, count, SIZE)) for count in counts)
    return [jnp.asarray(array, jnp.float32) for array in made]


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(attend, q, k, v, cotangent, seen):
    out, backward = jax.vjp(lambda q, k, v: attend(q, k, v, seen), q, k, v)
    return out, *backward(cotangent)


def by_ranges(q, k, v, view, **settings_given):
    return attention(q, k, v, view, **settings_given)


def by_causal_rows(q, k, v, rows, **settings_given):
    return causal_rows_attention(q, k, v, rows, kernel="xla", **settings_given)


# ---- the same attention --------------------------------------------------------------------------


def test_tokamax_is_called_for_what_key_ranges_give(kernels_anywhere):
    """As below, in bfloat16, which rounds to 2^-9 relative; the kernel itself needs its GPU."""
    for batch in batches(LENGTHS):
        given_arrays = arrays(batch)
        view = view_of(batch)
        expected = value_and_gradients(by_ranges, *given_arrays, view)
        halves = (x.astype(jnp.bfloat16) for x in given_arrays)
        by_tokamax = functools.partial(causal_rows_attention, kernel="tokamax")
        actual = value_and_gradients(by_tokamax, *halves, batch.causal_rows)
        live = np.asarray(batch.key_end > batch.key_start)[..., None, None]
        for got, wanted in zip(actual, expected, strict=True):
            difference = np.where(live, got.astype(np.float32) - wanted, 0)
            assert np.abs(difference).max() <= 0.03 * np.abs(wanted).max()
    # With lengths its backward pass would not leave out what lies above the diagonal.
    wanted = {"is_causal": True, "implementation": "mosaic"}
    assert kernels_anywhere
    assert all(call == ("tokamax", wanted) for call in kernels_anywhere)


@pytest.mark.parametrize("responses", ANY_NUMBER)
@pytest.mark.parametrize("plain", [False, True])
def test_causal_rows_give_what_key_ranges_give(plain, responses):
    """Values and gradients; expected: attention over the packed rows themselves."""
    for batch in batches(ANY_NUMBER[responses], plain):
        given_arrays = arrays(batch)
        view = view_of(batch)
        expected = value_and_gradients(by_ranges, *given_arrays, view)
        actual = value_and_gradients(by_causal_rows, *given_arrays, batch.causal_rows)
        for got, wanted in zip(actual, expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("value_size", [SIZE, 5, 11])
@pytest.mark.parametrize("settings_given", [{}, {"window": 13}, {"window": 1, "scale": 0.3}])
def test_windows_scales_and_other_values(plain, value_size, settings_given):
    """Expected: attention over the packed rows themselves, which has the same settings."""
    both = [functools.partial(attend, **settings_given) for attend in (by_ranges, by_causal_rows)]
    for batch in batches(LENGTHS, plain):
        q, k, *rest = arrays(batch)
        v, cotangent = (jnp.resize(x, (*x.shape[:3], value_size)) for x in rest)
        seen = view_of(batch), batch.causal_rows
        expected, actual = (
            value_and_gradients(attend, q, k, v, cotangent, what)
            for attend, what in zip(both, seen, strict=True)
        )
        for got, wanted in zip(actual, expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_chunks_are_rows_of_their_own():
    """Of 20 positions, which divide no width; expected: attention over the packed row itself."""
    (batch,) = batches(LENGTHS)
    seen = view_of(batch), batch.causal_rows
    expected, actual = (
        value_and_gradients(functools.partial(attend, chunk=20, window=13), *arrays(batch), what)
        for attend, what in zip((by_ranges, by_causal_rows), seen, strict=True)
    )
    for got, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_cudnn_is_given_the_window_and_the_scale(kernels_anywhere):
    """cuDNN counts the tokens to the left of a token: one fewer than the window."""
    (batch,) = batches(LENGTHS[3:])
    q, k, v, _ = arrays(batch)
    attend = functools.partial(causal_rows_attention, window=13, scale=0.3, kernel="cudnn")
    jax.eval_shape(attend, q, k, v, batch.causal_rows)
    assert kernels_anywhere
    for name, options in kernels_anywhere:
        assert name == "cudnn"
        assert (options["local_window_size"], options["scale"]) == ((12, 0), 0.3)


def test_tokamax_refuses_windows():
    with pytest.raises(ValueError, match=r"model\.attention: tokamax .* window.* 13 tokens"):
        check_shape("tokamax", AttentionShape(6, 2, 8, 8, window=13), "NVIDIA H100")
    check_shape("cudnn", AttentionShape(6, 2, 8, 8, window=13), "NVIDIA A100")


def test_values_that_there_is_no_kernel_for():
    with pytest.raises(
        ValueError,
        match=r"cudnn on NVIDIA A100 needs a head size .* multiple of 8 and at most 128, .* 12;",
    ):
        check_shape("cudnn", AttentionShape(6, 2, 8, 12), "NVIDIA A100")


def test_wide_heads_need_a_hopper_gpu():
    """cuDNN's limit in JAX: 128, and 256 from compute capability 9.0 on."""
    wide = AttentionShape(4, 1, 256, 256, window=512)
    for kind in ("NVIDIA H100 80GB HBM3", "NVIDIA B200"):
        check_shape("cudnn", wide, kind)
    for name, kind in (("cudnn", "NVIDIA A100-SXM4-80GB"), ("tokamax", "NVIDIA H100")):
        with pytest.raises(ValueError, match=f"{name} on {kind} .* at most 128, .* 256"):
            check_shape(name, wide._replace(window=None), kind)


def test_under_vmap():
    """A population maps queries, keys and values, and shares the rows of the batch."""
    (batch,) = batches(LENGTHS[3:], rows=2)
    q, k, v, _ = arrays(batch)
    mapped = jax.jit(jax.vmap(by_causal_rows, in_axes=(0, 0, 0, None)))
    both = mapped(*(jnp.stack([x, -2 * x]) for x in (q, k, v)), batch.causal_rows)
    one = jax.jit(by_causal_rows)
    for got, factor in zip(both, (1, -2), strict=True):
        wanted = one(*(factor * x for x in (q, k, v)), batch.causal_rows)
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_lengths_are_mapped_too():
    """cuDNN's rule for vmap wants one length for every causal row of every member."""
    (batch,) = batches(LENGTHS[3:])
    q, k, v, _ = (jnp.stack([x, x]) for x in arrays(batch))
    seen = []

    def kernel(*given_arrays, query_seq_lengths, **_):
        seen.append(type(query_seq_lengths).__name__)
        return given_arrays[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, "dot_product_attention", kernel)
        mapped = jax.vmap(by_causal_rows, in_axes=(0, 0, 0, None))
        jax.eval_shape(mapped, q, k, v, batch.causal_rows)
    assert set(seen) == {"BatchTracer"}


# ---- every token has its place -------------------------------------------------------------------


@given(lengths=lengths_of_examples)
@settings(max_examples=40)
def test_every_branch_reads_as_it_was_written(lengths):
    """Each causal row holds a whole branch, prompt first, and each token is read exactly once."""
    pairs = tiny_models.random_examples(lengths)
    written = [
        [*pair.prompt.tolist(), *response[:-1].tolist()]
        for pair in pairs
        for response in pair.responses
    ]
    read = []
    for batch in batches(lengths):
        (tokens,), times_read = batch.tokens, np.zeros(batch.tokens.shape[1], int)
        for rows in batch.causal_rows:
            for at, size in zip(rows.position[0], rows.length[0], strict=True):
                if at[0] < len(tokens):
                    read.append(tokens[at[:size]].tolist())
            stands = rows.place[0] < rows.position[0].size
            there = rows.position[0].reshape(-1)[rows.place[0][stands]]
            np.testing.assert_array_equal(there, np.flatnonzero(stands))
            times_read += stands
        np.testing.assert_array_equal(times_read, batch.key_end[0] > batch.key_start[0])
    assert sorted(read) == sorted(written)


def test_a_shared_prompt_is_read_once_and_its_keys_gradients_are_summed():
    """Derived: a prompt of 2 in two rows; ones flow back twice to it and once to the others."""
    (batch,) = batches([(2, 3, 2)])
    (rows,) = jax.tree.map(jnp.asarray, batch.causal_rows)
    ones = jnp.ones((*rows.position.shape, 1))
    x = jnp.zeros((*batch.tokens.shape, 1))
    (flowed_back,) = jax.vjp(lambda x: spread(x, rows), x)[1](ones)
    np.testing.assert_array_equal(flowed_back[0, :5, 0], [1, 1, 2, 2, 1])
    np.testing.assert_array_equal(collected(ones, rows)[0, :6, 0], [1, 1, 1, 1, 1, 0])


def test_widths_halve_down_to_one_block():
    assert halved_widths(2048) == [2048, 1024, 512, 256]
    assert halved_widths(1500) == [1536, 768, 384, 192]
    assert halved_widths(100) == [128, 64]
    assert halved_widths(1) == [64]


def test_branches_are_counted_by_the_width_they_need():
    """Of widths 128 and 64: 100 needs the first; all need one of the two."""
    counts = branch_counts(np.array([[100, 64], [5, 65], [128, 128]]), [128, 64])
    np.testing.assert_array_equal(counts, [[1, 2], [1, 2], [2, 2]])
    assert branch_counts(np.array([[100, 64]]), []).shape == (1, 0)


def test_without_widths_there_are_no_rows():
    assert assign([np.arange(5)], 9, ()) == ()


def test_padding_stays_small():
    """Five steps of 128 pairs with dpo-mix-7k's lengths: at most 3 % of the rows is padding."""
    rng = np.random.default_rng(0)
    columns = [
        np.clip(rng.gamma(shape, mean / shape, 640).astype(int), 2, 1024)
        for mean, shape in ((431, 0.8), (313, 2.0), (339, 2.0))
    ]
    pairs = tiny_models.random_examples(list(zip(*columns, strict=True)))
    shapes = choose_shapes(pairs, 128, causal_rows=True)
    packed = [batch for first in range(0, 640, 128) for batch in pack(pairs[first:][:128], shapes)]
    assert padding_share(packed) <= 0.03


# ---- which back-end ------------------------------------------------------------------------------


def on(kind, monkeypatch):
    device = types.SimpleNamespace(device_kind=kind)
    monkeypatch.setattr(computation.jax, "devices", lambda: [device])


@pytest.mark.parametrize(
    ("kind", "settings_given", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", {"dtype": "bfloat16"}, "cudnn"),
        ("NVIDIA H100 80GB HBM3", {"dtype": "float32"}, "xla"),
        ("NVIDIA A100-SXM4-80GB", {"dtype": "bfloat16", "attention": "xla"}, "xla"),
        ("cpu", {"dtype": "bfloat16"}, "xla"),
        ("NVIDIA H200", {"dtype": "bfloat16", "attention": "tokamax"}, "tokamax"),
        ("NVIDIA GH200 480GB", {"attention": "tokamax"}, "tokamax"),
    ],
)
def test_the_rule(kind, settings_given, expected, monkeypatch):
    on(kind, monkeypatch)
    assert computation.attention_implementation(ModelConfig(**settings_given)) == expected


@pytest.mark.parametrize(
    ("kind", "settings_given", "problem"),
    [
        ("cpu", {"attention": "cudnn"}, r"model\.attention: cudnn needs an NVIDIA GPU"),
        (
            "NVIDIA H100",
            {"attention": "cudnn", "dtype": "float32"},
            "and bfloat16, but this run uses NVIDIA",
        ),
        ("NVIDIA A100", {"attention": "tokamax"}, "tokamax needs a Hopper GPU and bfloat16, but"),
        ("NVIDIA H100", {"attention": "tokamax", "dtype": "float32"}, "tokamax needs a Hopper GPU"),
    ],
)
def test_what_cannot_be_done_is_refused(kind, settings_given, problem, monkeypatch):
    on(kind, monkeypatch)
    with pytest.raises(ValueError, match=problem):
        computation.attention_implementation(ModelConfig(**settings_given))


def test_tokamax_that_is_not_installed_is_asked_for(monkeypatch):
    on("NVIDIA H100", monkeypatch)
    monkeypatch.setattr(computation.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"tokamax is not installed: pip install '\.\[tokamax\]'"):
        computation.attention_implementation(ModelConfig(attention="tokamax"))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("size", "dtype", "problem"),
    [(10, jnp.bfloat16, "multiple of 8"), (264, jnp.bfloat16, "264"), (8, jnp.float32, "float32")],
)
def test_heads_and_dtypes_that_there_is_no_kernel_for(kernel, size, dtype, problem):
    (batch,) = batches(LENGTHS[:1])
    q = jnp.zeros((*batch.tokens.shape, 1, size), dtype)
    with pytest.raises(ValueError, match=rf"{kernel} .*{problem}"):
        causal_rows_attention(q, q, q, batch.causal_rows, kernel=kernel)


def test_such_heads_are_refused_before_a_run_reads_its_data(tmp_path, monkeypatch):
    model = tiny_models.save(tmp_path / "model", tiny_models.hugging_face())
    monkeypatch.setattr(computation, "attention_implementation", lambda _, model: "cudnn")
    config = resolve({"model": {"path": str(model)}, "data": {"path": "missing.jsonl"}})
    problem = r"cudnn on cpu needs a head size that is a multiple of 8 and at most 128, .* 10;"
    with pytest.raises(ValueError, match=problem):
        prepare.prepare([config], Screen(quiet=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_without_causal_rows(kernel):
    q, at = jnp.zeros((1, 3, 1, 8), jnp.bfloat16), jnp.zeros((1, 3), jnp.int32)
    with pytest.raises(ValueError, match=f"{kernel} needs the causal rows"):
        attention(q, q, q, View(at, at, at), implementation=kernel)
