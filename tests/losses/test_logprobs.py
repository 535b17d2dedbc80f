"""The head's own backward pass: the values and gradients of log-softmax, for fewer products.

Expected numbers come from `jax.nn.log_softmax` over all scores at once and from JAX's own backward
pass. Sizes are odd, and the last chunk is not full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tddpo_jax.losses import logprobs

ROWS, LENGTH, SCORES, WIDTH, VOCABULARY, CHUNK = 2, 11, 17, 7, 23, 5


def plain(states, head, targets):
    logits = jnp.einsum("BSD,VD->BSV", states, head, preferred_element_type=jnp.float32)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    return jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]


def chunked(states, head, targets):
    values = logprobs._token_logps(logprobs._chunks(states), head, logprobs._chunks(targets))
    return jnp.moveaxis(values, 0, 1).reshape(ROWS, -1)[:, :SCORES]


@pytest.fixture
def numbers(monkeypatch):
    """States, head, targets and a weight per score."""
    monkeypatch.setattr(logprobs, "CHUNK", CHUNK)
    rng = np.random.default_rng(0)
    states = rng.normal(size=(ROWS, SCORES, WIDTH)).astype(np.float32)
    head = rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    targets = rng.integers(VOCABULARY, size=(ROWS, SCORES)).astype(np.int32)
    weights = rng.normal(size=(ROWS, SCORES)).astype(np.float32)
    return tuple(jnp.asarray(each) for each in (states, head, targets, weights))


def value_and_gradients(of, states, head, targets, weights):
    loss = jax.value_and_grad(lambda s, h: jnp.sum(weights * of(s, h, targets)), argnums=(0, 1))
    return jax.jit(loss)(states, head)


def test_values_and_gradients_are_those_of_log_softmax(numbers):
    value, gradients = value_and_gradients(chunked, *numbers)
    expected, wanted = value_and_gradients(plain, *numbers)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for got, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6 * np.abs(want).max())


def test_extreme_logits_have_finite_gradients(numbers):
    """At logits near 1e4 the softmax is a single word, and no slope is inf or nan."""
    states, head, targets, weights = numbers
    value, gradients = value_and_gradients(chunked, 1e4 * states, head, targets, weights)
    expected, wanted = value_and_gradients(plain, 1e4 * states, head, targets, weights)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for got, want in zip(gradients, wanted, strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("chunk", [CHUNK, SCORES])
def test_bfloat16_states_cost_only_their_own_rounding(chunk, numbers, monkeypatch):
    """The slope of a logit is rounded to bfloat16, 2^-9 relative, before the two products.

    Of a single chunk, XLA once made a product of bfloat16 that it cannot run on a CPU.
    """
    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    states, head, targets, weights = numbers
    states = jnp.asarray(states, jnp.bfloat16)
    _, gradients = value_and_gradients(chunked, states, head, targets, weights)
    _, wanted = value_and_gradients(
        plain,
        states.astype(jnp.float32),
        head.astype(jnp.bfloat16).astype(np.float32),
        targets,
        weights,
    )
    assert [each.dtype for each in gradients] == [jnp.bfloat16, jnp.float32]
    for got, want in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(got.astype(np.float32), want, atol=2**-7 * np.abs(want).max())


def test_a_frozen_head_costs_no_gradient(numbers):
    """With the head's gradient a chunk takes four products of one size, without it three."""
    states, head, targets, weights = numbers

    def operations(argnums):
        gradient = jax.grad(lambda s, h: jnp.sum(weights * chunked(s, h, targets)), argnums)
        wide = [jnp.tile(each, (1,) * (each.ndim - 1) + (40,)) for each in (states, head)]
        return jax.jit(gradient).lower(*wide).compile().cost_analysis()["flops"]

    assert operations(argnums=(0,)) < 0.8 * operations(argnums=(0, 1))


def test_a_chunk_holds_its_logits_and_their_gradient_alone():
    """More arrays of that size, such as a transposed copy of the gradient, would show."""
    vocabulary, chunk = 4096, logprobs.CHUNK
    shapes = [(1, 4 * chunk, 8), (vocabulary, 8), (1, 4 * chunk)]
    states, head = (jax.ShapeDtypeStruct(each, jnp.float32) for each in shapes[:2])
    targets = jax.ShapeDtypeStruct(shapes[2], jnp.int32)

    def loss(states, head, targets):
        logps = logprobs._token_logps(logprobs._chunks(states), head, logprobs._chunks(targets))
        return jnp.sum(logps)

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(states, head, targets).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2.5 * 4 * chunk * vocabulary


def test_populations_map_over_the_states_alone(numbers):
    states, head, targets, weights = numbers
    many = jnp.stack([states, 2 * states, -states])
    gradient = jax.grad(lambda states: jnp.sum(weights * chunked(states, head, targets)))
    mapped = jax.vmap(gradient)(many)
    for got, one in zip(mapped, many, strict=True):
        np.testing.assert_allclose(got, gradient(one), atol=1e-6)
