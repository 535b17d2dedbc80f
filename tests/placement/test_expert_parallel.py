"""Experts that are spread over a mesh compute what one device computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from jax.sharding import NamedSharding, PartitionSpec

from tddpo_jax.models.experts.experts import Bank, Banks, ExpertsShape, routed_sum
from tddpo_jax.models.experts.routing import softmax_of_best
from tddpo_jax.placement.expert_parallel import HIDDEN, experts_over
from tddpo_jax.placement.shardings import ROWS

SHAPE = ExpertsShape(8, 3, 12, 10, lambda gate, up: jax.nn.silu(gate) * up)


@pytest.mark.parametrize(
    ("mesh", "rows"),
    [((1, 2, 1), ROWS), ((2, 2, 1), ROWS), ((1, 4, 2), ROWS), ((1, 4, 2), "data")],
)
def test_a_mesh_computes_what_one_device_does(mesh, rows):
    """Values and the gradients of tokens, weights and everything else; 1e-5 in float32."""
    keys = iter(jax.random.split(jax.random.key(0), 11))

    def normal(*shape):
        return 0.3 * jax.random.normal(next(keys), shape)

    adapter = normal(8, 2, 12), normal(8, 2, 10, 2), normal(8, 2)
    gate_up = Bank(normal(8, 2, 10, 12), normal(8, 2, 10), *adapter)
    down = Bank(normal(8, 12, 10), None, normal(8, 2, 10), normal(8, 12, 2), normal(8, 2))
    inputs = normal(8, 15, 12), normal(8, 15, 8), Banks(gate_up, down)

    def value(run, x, logits, banks):
        y = run(x, softmax_of_best(logits, 3), banks, SHAPE)
        return jnp.sum(jnp.sin(y)), y

    @functools.partial(tiny_models.quick_jit, static_argnums=0)
    def both(run, x, logits, banks):
        return jax.grad(functools.partial(value, run), argnums=(0, 1, 2), has_aux=True)(
            x, logits, banks
        )

    wanted = both(routed_sum, *inputs)
    devices = tiny_models.mesh_of(*mesh)
    x, logits, banks = inputs
    on_rows = NamedSharding(devices, PartitionSpec(rows))
    x, logits = jax.device_put((x, logits), on_rows)
    hidden = NamedSharding(devices, HIDDEN)
    banks = Banks(
        banks.gate_up._replace(weight=jax.device_put(gate_up.weight, hidden)),
        banks.down._replace(weight=jax.device_put(down.weight, hidden)),
    )
    found = both(experts_over(devices, "tiles", rows), x, logits, banks)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())
