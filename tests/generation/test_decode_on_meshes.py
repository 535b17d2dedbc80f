"""The program that generates, compiled for meshes of eight devices: what the devices exchange."""

import jax
import jax.numpy as jnp
import pytest
import tiny_models
from hlo import instructions

from tddpo_jax.generation.decode import Prompts, cache_slots, generate_rows
from tddpo_jax.generation.sampling import Sampler, row_keys
from tddpo_jax.placement.shardings import on, row_sharding, tree_shardings

# Every mesh divides the rows. Nothing but the cache has as many places as it.
ROWS, LENGTH, NEW = 16, 40, 8
SLOTS = cache_slots(LENGTH, NEW)
EXCHANGES = {"all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"}


def lowered(mesh):
    """The program for a model in float32, with the rows spread over the mesh."""

    def placed(tree):
        return on(tree, jax.tree.map(lambda _: row_sharding(mesh), tree))

    def rows(dtype, *axes):
        return jax.ShapeDtypeStruct((ROWS, *axes), dtype)

    model = jax.eval_shape(lambda: tiny_models.llama(**tiny_models.DIVISIBLE))
    prompts = Prompts(rows(jnp.int32, LENGTH), rows(jnp.int32))
    keys = jax.eval_shape(row_keys, rows(jnp.uint32, 1))
    sampler = Sampler(rows(jnp.float32), rows(jnp.int32), rows(jnp.float32), keys)
    return generate_rows.lower(
        on(model, tree_shardings(model, model.config, mesh)),
        *placed((prompts, sampler, rows(jnp.int32))),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        new=NEW,
        dtype=jnp.float32,
        mesh=mesh,
    )


@pytest.mark.parametrize("sizes", [(1, 2, 4), (1, 4, 2), (2, 2, 2)])
def test_no_cache_travels_and_no_array_is_made_whole(sizes, capfd):
    """XLA's message is that of `placement/test_partitioning`, which shows that it is heard."""
    program = lowered(tiny_models.mesh_of(*sizes))
    capfd.readouterr()
    with tiny_models.compiled_anew():
        compiled = program.compile({"xla_backend_optimization_level": 0})
    assert "Involuntary" not in capfd.readouterr().err
    made = list(instructions(compiled.as_text()))
    assert any(SLOTS in shape for one in made for shape in one.shapes)
    exchanged = [one for one in made if one.operation in EXCHANGES]
    assert exchanged
    assert not [one for one in exchanged if any(SLOTS in shape for shape in one.shapes)]
