"""The two forms of latent attention: with keys and values, and with latents in their place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tddpo_jax.adapters.lora import SecondAdapter
from tddpo_jax.models.deepseek.latent_attention import LatentAttention, LatentShape
from tddpo_jax.models.linear import Adapter, LoraParam

SHAPE = LatentShape(
    width=20, heads=3, query_latent=9, key_latent=7, plain_size=5, rotated_size=4, value_size=6
)


def adapter(seed, rank, scale):
    outputs = SHAPE.axes["keys_values"]
    made = Adapter(SHAPE.key_latent, outputs, rank, scale, 0.0, jax.random.key(seed))
    made.b = LoraParam(jax.random.normal(jax.random.key(seed + 1), (outputs, rank)))
    return made


def gated(made):
    """Rows of a batch with different adapters."""
    made.gate = nnx.Variable(jnp.array([[1.0, 0.0, 0.5], [0.0, 2.0, 0.0]]))
    return made


ADAPTERS = {
    "no adapter": lambda: None,
    "an adapter": lambda: adapter(0, 3, 0.7),
    "adapters by row": lambda: gated(adapter(0, 3, 1.0)),
    "an adapter on another one": lambda: SecondAdapter(adapter(0, 2, 0.7), adapter(5, 3, 1.3)),
    "adapters by row on another one": lambda: SecondAdapter(
        adapter(0, 2, 0.7), gated(adapter(5, 3, 1.0))
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_latents_stand_for_keys_and_values(name):
    """Expected: the scores of queries with the keys, and the weighted sums of the values."""
    layer = LatentAttention(SHAPE, 1.1, jax.random.key(0))
    layer.kv_b_proj.weight[...] = jax.random.normal(jax.random.key(1), (33, 7))
    layer.kv_b_proj.adapter = ADAPTERS[name]()
    given = {}

    def attend(q, k, v, *, latent, choice):
        given.update(q=q, k=k, v=v, latent=latent)
        return jnp.zeros((*q.shape[:3], SHAPE.value_size)), None

    x = jax.random.normal(jax.random.key(2), (2, 8, SHAPE.width))
    layer(x, jax.random.normal(jax.random.key(3), (2, 8, 2)), attend, [None] * 5)
    q, k, v, latent = (given[key] for key in ("q", "k", "v", "latent"))
    assert latent.vector.shape == (2, 8, 1, SHAPE.axes["compressed"])
    found = jnp.einsum("BTHL,BSkL->BHTS", latent.absorb(q), latent.vector)
    wanted = jnp.einsum("BTHs,BSHs->BHTS", q, k)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    weights = jax.nn.softmax(100 * wanted, axis=-1)
    found = latent.expand(jnp.einsum("BHTS,BSkL->BTHL", weights, latent.vector))
    wanted = jnp.einsum("BHTS,BSHv->BTHv", weights, v)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
