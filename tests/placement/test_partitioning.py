"""Every mesh of eight devices: what XLA's partitioner says of the step, and the embedding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from jax.sharding import NamedSharding, PartitionSpec

from tddpo_jax.batches.layout import Shape
from tddpo_jax.config.reading import resolve
from tddpo_jax.models.decoder import look_up
from tddpo_jax.placement.embedding import embed_over
from tddpo_jax.placement.shardings import place, row_sharding
from tddpo_jax.planning.abstract import abstract_step
from tddpo_jax.planning.compiler import lower_gradients
from tddpo_jax.scoring import forward

MESHES = [
    (data, fsdp, 8 // (data * fsdp))
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    if data * fsdp <= 8
]
# With adapters no gradient comes back to the embedding, so little differs between meshes.
CASES = [
    *(("full", sizes) for sizes in MESHES),
    *((mode, sizes) for mode in ("lora", "qlora") for sizes in ((2, 2, 2), (2, 4, 1))),
]


@pytest.fixture
def compiled_anew():
    """A program that comes out of the cache has no messages."""
    with tiny_models.compiled_anew():
        yield


def said_of_the_step(mode, sizes, capfd):
    """What XLA writes to stderr while it compiles the gradients' program."""
    config = resolve({"train": {"mode": mode}, "model": {"remat": "none"}})
    mesh, shape = tiny_models.mesh_of(*sizes), Shape(8, 130, 120, 3)
    model = tiny_models.llama(**tiny_models.DIVISIBLE).config
    step = abstract_step(config, model, mesh, shape, "xla", jnp.dtype("float32"))
    capfd.readouterr()
    lower_gradients(step).compile({"xla_backend_optimization_level": 0})
    return capfd.readouterr().err


@pytest.mark.parametrize(("mode", "sizes"), CASES)
def test_no_array_is_made_whole_for_want_of_a_way(mode, sizes, compiled_anew, capfd):
    """XLA writes "Involuntary full rematerialization" to stderr when it knows no other way from
    one placement to the next than to hold the whole array on every device."""
    assert "Involuntary" not in said_of_the_step(mode, sizes, capfd)


def test_an_array_that_is_made_whole_is_heard(compiled_anew, capfd, monkeypatch):
    """With a plain look-up in the embedding, XLA knows no way. So the test above can fail."""
    monkeypatch.setattr(
        forward, "embed_over", lambda mesh, table, tokens, dtype: look_up(table, tokens, dtype)
    )
    assert "Involuntary full rematerialization" in said_of_the_step("full", (2, 2, 2), capfd)


@pytest.mark.parametrize("sizes", MESHES)
def test_the_embedding_is_the_tables_entry(sizes):
    """Bit for bit: no mesh rounds anything."""
    mesh, rng = tiny_models.mesh_of(*sizes), np.random.default_rng(0)
    table = rng.normal(size=(64, 24)).astype(np.float32)
    tokens = rng.integers(0, 64, (16, 5)).astype(np.int32)
    placed = place(table, NamedSharding(mesh, PartitionSpec("tensor", "fsdp")))
    rows = place(tokens, row_sharding(mesh))
    found = jax.jit(embed_over, static_argnums=(0, 3))(mesh, placed, rows, jnp.bfloat16)
    assert found.sharding.is_equivalent_to(row_sharding(mesh), 3)
    np.testing.assert_array_equal(found, table[tokens].astype(jnp.bfloat16))
