"""The model against transformers, setting by setting, and against its own slower forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import torch

from tddpo_jax.models.attention.view import View
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.models.linear import linear
from tddpo_jax.models.rope import RopeScaling, rope_frequencies

TOKENS = np.random.default_rng(1).integers(0, tiny_models.CONFIG.vocabulary, (3, 37), np.int32)
# With 64 trained positions the five frequencies of a head of size 10 make 10.2, 1.6, 0.2, ... turns
# in them: one above, one between and the rest below the two factors.
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 12345.6,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPES = {
    "grouped heads": {},
    "as many key/value heads": {"num_key_value_heads": 6},
    "one key/value head": {"num_key_value_heads": 1},
    "width shared by the heads": {"head_dim": 4},
    "tied": {"tie_word_embeddings": True},
    "another theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 77.7}},
    "another epsilon": {"rms_norm_eps": 0.3},
    "llama-3 scaling": {"rope_parameters": LLAMA_3},
}


@pytest.mark.parametrize("name", SHAPES)
def test_hidden_states_and_logits_are_those_of_transformers(name, tmp_path):
    """Expected: transformers on the same file, float32."""
    theirs = tiny_models.hugging_face(**SHAPES[name])
    with torch.no_grad():
        output = theirs(torch.from_numpy(TOKENS), output_hidden_states=True)
    ours = tiny_models.load(tiny_models.save(tmp_path / "model", theirs))
    hidden = tiny_models.hidden_states(ours, TOKENS)
    logits = hidden @ ours.head_weight.T
    np.testing.assert_allclose(hidden, output.hidden_states[-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, output.logits, rtol=1e-4, atol=1e-4)


def test_llama_3_scaling_leaves_fast_frequencies_and_stretches_slow_ones():
    """A frequency f makes 64 f / 2 pi turns in the 64 original positions: above 4 it stays, below 1
    it is divided by 8, in between it is mixed: s f + (1 - s) f / 8 with s = (turns - 1) / 3."""
    scaling = RopeScaling(8.0, 1.0, 4.0, 64)
    plain = 12345.6 ** -(np.arange(0, 10, 2) / 10)
    turns = 64 * plain / (2 * np.pi)
    assert turns[0] > 4 > turns[1] > 1 > turns[2]
    mix = (turns[1] - 1) / 3
    second = plain[1] * (mix + (1 - mix) / 8)
    expected = [plain[0], second, *(plain[2:] / 8)]
    config = dataclasses.replace(tiny_models.CONFIG, rope_scaling=scaling)
    np.testing.assert_allclose(
        rope_frequencies(config.head_size, config.rope_theta, config.rope_scaling),
        expected,
        rtol=1e-6,
    )


CHANGES = {
    "vocabulary": 67,
    "width": 30,
    "layers": 2,
    "heads": 4,
    "key_value_heads": 3,
    "head_size": 8,
    "feed_forward": 41,
    "rope_theta": 500.0,
    "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64),
    "norm_epsilon": 0.1,
    "tied": True,
    "biases": True,
    "head_norms": True,
    "window": 5,
}
# The length of the trained context changes which data is accepted, not what the model computes.
ELSEWHERE = {"context"}


def test_every_field_is_tried():
    fields = {field.name for field in dataclasses.fields(tiny_models.CONFIG)}
    assert set(CHANGES) | ELSEWHERE == fields


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_is_read(field):
    """One field changed and every weight that both models have kept: other weights or outputs."""
    before, after = tiny_models.llama(), tiny_models.llama(**{field: CHANGES[field]})
    shapes = [[leaf.shape for leaf in jax.tree.leaves(model)] for model in (before, after)]
    if shapes[0] != shapes[1]:
        return
    config = dataclasses.replace(tiny_models.CONFIG, **{field: CHANGES[field]})
    leaves, _ = jax.tree.flatten(before)
    structure = jax.tree.structure(jax.eval_shape(lambda k: Decoder(config, k), jax.random.key(0)))
    after = jax.tree.unflatten(structure, leaves)
    hidden = [tiny_models.hidden_states(model, TOKENS) for model in (before, after)]
    assert np.abs(hidden[0] - hidden[1]).max() > 1e-2


def test_positions_are_read_and_storage_order_is_free():
    """A sequence stored backwards, with positions and key ranges to match, is the same sequence.

    Stored at T - 1 - t, token t sees the stored range [T - 1 - t, T)."""
    model, length = tiny_models.llama(), TOKENS.shape[1]
    expected = tiny_models.hidden_states(model, TOKENS)
    stored = np.broadcast_to(np.arange(length), TOKENS.shape)
    hidden = jax.jit(lambda model, *arguments: model(*arguments, dtype=jnp.float32)[0])
    end = np.full_like(stored, length)
    backwards = hidden(model, TOKENS[:, ::-1], View(stored, end, stored[:, ::-1]))
    np.testing.assert_allclose(backwards[:, ::-1], expected, atol=1e-4)
    view = View(np.zeros_like(stored), stored + 1, stored + stored % 2)
    shifted = hidden(model, TOKENS, view)
    assert np.abs(shifted - expected).max() > 1e-2


def test_scan_is_a_loop_over_the_layers():
    """Expected: each block taken out of the stack and applied in Python."""
    model = tiny_models.llama()
    view = tiny_models.reading_order(*TOKENS.shape)

    @jax.jit
    def loop(model):
        frequencies = rope_frequencies(
            model.config.head_size, model.config.rope_theta, model.config.rope_scaling
        )
        angle = view.position[:, :, None] * frequencies[None, None]
        x = model.embed[...][TOKENS]
        for number in range(model.config.layers):
            block = jax.tree.map(lambda leaf, number=number: leaf[number], model.layers)
            x, _ = block(
                x, angle, lambda q, k, v: (tiny_models.dense_attention(q, k, v, view), None)
            )
        return model.norm(x)

    np.testing.assert_allclose(loop(model), tiny_models.hidden_states(model, TOKENS), atol=1e-5)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 7), (7, 3)])
def test_the_gradients_of_a_linear_layer(inputs, outputs):
    """Expected: the product differentiated by JAX, whichever operand is the narrower."""
    rng = np.random.default_rng(0)
    shapes = (2, 5, inputs), (outputs, inputs), (2, 5, outputs)
    x, weight, d_out = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    out, backward = jax.vjp(linear, x, weight)
    expected, by_jax = jax.vjp(lambda x, weight: x @ weight.T, x, weight)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    for got, wanted in zip(backward(d_out), by_jax(d_out), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def remat_results():
    weight = np.random.default_rng(3).normal(size=(*TOKENS.shape, tiny_models.CONFIG.width))

    def value(model, remat):
        hidden = tiny_models.plain_states(model, jnp.asarray(TOKENS), remat=remat)
        return jnp.sum(hidden * weight.astype(np.float32))

    both = tiny_models.quick_jit(jax.value_and_grad(value), static_argnums=1)
    return {remat: both(tiny_models.llama(), remat) for remat in ("none", "full", "dots")}


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_nothing(remat, remat_results):
    """Expected: the backward pass that recomputes nothing."""
    expected, actual = remat_results["none"], remat_results[remat]
    for wanted, got in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_remat_gives_memory_for_work():
    """Of 512 tokens, what backward holds by XLA's account: all, the large products, the stream."""
    tokens = jnp.zeros((1, 512), jnp.int32)

    def total(model, remat):
        return jnp.sum(tiny_models.plain_states(model, tokens, remat=remat))

    gradient = tiny_models.quick_jit(jax.grad(total), static_argnums=1)
    held = {
        remat: gradient.lower(tiny_models.llama(), remat)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for remat in ("none", "dots", "full")
    }
    stream, products = (
        tokens.size * tiny_models.CONFIG.width * 4,
        2 * tokens.size * tiny_models.CONFIG.width * 4,
    )
    assert held["full"] + tiny_models.CONFIG.layers * products < held["dots"]
    assert held["dots"] + tiny_models.CONFIG.layers * stream < held["none"]


def test_bfloat16_is_near_float32():
    """bfloat16 rounds to 2^-9 relative; some tens of roundings follow one another here."""
    model = tiny_models.llama()
    expected = tiny_models.hidden_states(model, TOKENS)
    half = tiny_models.hidden_states(model, TOKENS, dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    error = np.abs(half.astype(np.float32) - expected)
    assert np.sqrt(np.mean(error**2)) < 0.05 * np.sqrt(np.mean(np.square(expected)))
