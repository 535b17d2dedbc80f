"""Both forms of rotary positions, and Llama-3's stretching with nothing between its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tddpo_jax.models.rope import RopeScaling, rope_frequencies, rotate

SIZE = 6


@pytest.mark.parametrize("pairs", ["halves", "adjacent"])
def test_a_pair_turns_like_a_complex_number(pairs):
    """Expected: one feature of a pair is the real part, the other the imaginary part."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, SIZE))
    angle = jax.random.normal(jax.random.key(1), (2, 5, SIZE // 2))
    first = np.arange(SIZE // 2) if pairs == "halves" else np.arange(0, SIZE, 2)
    second = first + (SIZE // 2 if pairs == "halves" else 1)
    turned = 1.5 * (x[..., first] + 1j * x[..., second]) * np.exp(1j * angle)[:, :, None]
    found = rotate(x, angle, 1.5, pairs)
    np.testing.assert_allclose(found[..., first], turned.real, atol=1e-6)
    np.testing.assert_allclose(found[..., second], turned.imag, atol=1e-6)
    assert rotate(x.astype(jnp.bfloat16), angle, pairs=pairs).dtype == jnp.bfloat16


def test_limits_that_are_equal_are_a_step():
    """A frequency f makes 64 f / 2 pi turns in 64 positions, here 10.2, 1.0 and 0.1. Those with
    fewer turns than the limit are divided by 16, and the limit itself is not below the limit."""
    plain = 1000.0 ** -(np.arange(0, SIZE, 2) / SIZE)
    most = float(64 * jnp.float32(1) / (2 * jnp.pi))
    for limit in (2.0, most):
        found = rope_frequencies(SIZE, 1000.0, RopeScaling(16.0, limit, limit, 64))
        np.testing.assert_allclose(found, plain / [1, 16, 16], rtol=1e-6)
