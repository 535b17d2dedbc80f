"""Meshes and placements: the same numbers on eight devices as on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from tddpo_jax.adapters.lora import add_adapters
from tddpo_jax.batches.layout import Shape
from tddpo_jax.batches.packing import pack
from tddpo_jax.config.schema import LoraConfig, MeshConfig, TrainConfig
from tddpo_jax.losses.logprobs import branch_logps
from tddpo_jax.losses.objective import objective_of
from tddpo_jax.placement.computation import Computation
from tddpo_jax.placement.mesh import check_mesh, make_mesh, row_devices
from tddpo_jax.placement.shardings import (
    parameter_specs,
    path_name,
    place,
    row_sharding,
    tree_shardings,
)
from tddpo_jax.scoring.forward import hidden_states
from tddpo_jax.training.optimizer import make_optimizer
from tddpo_jax.training.step import StepSetting, make_program

MESHES = [(8, 1, 1), (1, 8, 1), (4, 2, 1), (2, 2, 2)]
# Divisible by eight where fsdp and tensor share it, by two where tensor alone does.
EVEN = {"vocabulary": 62, "feed_forward": 40, "head_size": 12}
LENGTHS = np.random.default_rng(0).integers(1, 40, (12, 3))


def sharded(model, mesh):
    return jax.device_put(model, tree_shardings(model, model.config, mesh))


def computation(mesh):
    return Computation(jnp.float32, "xla", "none", row_sharding(mesh), "tiles")


# ---- meshes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MeshConfig(), (1, 8, 1)),
        (MeshConfig(data=-1, fsdp=2), (4, 2, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=-1), (2, 2, 2)),
        (MeshConfig(data=8, fsdp=-1), (8, 1, 1)),
    ],
)
def test_an_open_axis_takes_the_remaining_devices(config, expected):
    mesh = make_mesh(config)
    assert tuple(mesh.shape.items()) == tuple(
        zip(("data", "fsdp", "tensor"), expected, strict=True)
    )
    assert row_devices(mesh) == expected[0] * expected[1]


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (MeshConfig(data=3), "mesh: data 3 x fsdp -1 x tensor 1 does not divide 8 devices"),
        (MeshConfig(fsdp=4), "mesh: data 1 x fsdp 4 x tensor 1 needs 4 devices; available: 8"),
        (
            MeshConfig(data=16, fsdp=1),
            "mesh: data 16 x fsdp 1 x tensor 1 needs 16 devices; ",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(config, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        make_mesh(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "changes", "problem"),
    [
        ((1, 8, 1), {"width": 28}, r"mesh\.fsdp: 8 does not divide the model's width, 28"),
        ((2, 1, 4), {}, r"mesh\.tensor: 4 does not divide the model's heads, 6"),
        ((1, 1, 2), {"key_value_heads": 3}, r"mesh\.tensor: 2 .* key/value heads, 3"),
        ((4, 1, 2), {"feed_forward": 37}, r"mesh\.fsdp x tensor: 2 .* feed-forward, 37"),
        ((2, 2, 2), {"feed_forward": 38}, r"mesh\.fsdp x tensor: 4 .* feed-forward, 38"),
        ((1, 8, 1), {"head_size": 10}, r"mesh\.fsdp x tensor: 8 .* queries, 60"),
        ((1, 8, 1), {"head_size": 12, "key_value_heads": 1}, r"fsdp x tensor: 8 .* keys, 12"),
        ((2, 2, 2), {"vocabulary": 61}, r"mesh\.tensor: 2 .* vocabulary, 61"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model_is_refused(sizes, changes, problem):
    config = tiny_models.llama(**{**EVEN, **changes}).config
    with pytest.raises(ValueError, match=problem):
        check_mesh(tiny_models.mesh_of(*sizes), config)


@pytest.mark.parametrize("sizes", MESHES)
def test_a_mesh_that_divides_is_accepted(sizes):
    check_mesh(tiny_models.mesh_of(*sizes), tiny_models.llama(**EVEN).config)


# ---- the table -----------------------------------------------------------------------------------


def names(model):
    return {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(model)}


def test_the_table_holds_every_parameter_and_no_other():
    model = tiny_models.llama()
    add_adapters(model, LoraConfig(rank=2), 0, tiny_models.one_device())
    assert names(model) == set(parameter_specs(model.config))


def test_where_llamas_parameters_lie():
    """Outputs over tensor and fsdp; where they go into the stream, outputs over fsdp and inputs
    over tensor. Vectors and adapters are whole, and so is the axis of the layers."""
    inward = PartitionSpec(None, ("tensor", "fsdp"))
    outward = PartitionSpec(None, "fsdp", "tensor")
    expected = {
        "embed": PartitionSpec("tensor", "fsdp"),
        "head": PartitionSpec("tensor", "fsdp"),
        "norm.weight": PartitionSpec(),
        "layers.attention_norm.weight": PartitionSpec(),
        "layers.mlp_norm.weight": PartitionSpec(),
        **{f"layers.{n}_proj.weight": inward for n in ("q", "k", "v", "gate", "up")},
        **{f"layers.{n}_proj.weight": outward for n in ("o", "down")},
    }
    specs = parameter_specs(tiny_models.CONFIG)
    adapters = {path: spec for path, spec in specs.items() if "adapter" in path}
    assert len(adapters) == 2 * 7
    assert set(adapters.values()) == {PartitionSpec()}
    assert {path: spec for path, spec in specs.items() if path not in adapters} == expected


def test_state_that_mirrors_no_parameter_is_an_error():
    """But for counts, which lie whole on every device."""
    mesh, config = tiny_models.one_device(), tiny_models.CONFIG
    known = {"optimizer": {"count": 3, "mu": {"layers": {"q_proj": {"weight": 1}}}}}
    assert jax.tree.leaves(tree_shardings(known, config, mesh))
    for unknown in ({"mu": {"layers": {"q_prj": {"weight": 1}}}}, {"rate": 1}, {"x": {"norm": 1}}):
        with pytest.raises(KeyError):
            tree_shardings(unknown, config, mesh)


def test_a_parameter_that_the_table_does_not_know_is_an_error():
    model = tiny_models.llama()
    model.bias = nnx.Param(jnp.zeros(3))
    with pytest.raises(KeyError, match="bias"):
        tree_shardings(model, model.config, tiny_models.one_device())


def test_parameters_are_shared_by_the_devices():
    """fsdp 4 x tensor 2: each device holds an eighth of every matrix, and the norms whole."""
    mesh = tiny_models.mesh_of(1, 4, 2)
    model = sharded(tiny_models.llama(**EVEN), mesh)
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        held = leaf.addressable_shards[0].data.size
        assert held * (1 if "norm" in path_name(path) else 8) == leaf.size, path_name(path)


def test_rows_are_spread_over_data_and_fsdp():
    """Eight rows over 2 x 2 devices: two each, the same two for both tensor-parallel devices."""
    mesh = tiny_models.mesh_of(2, 2, 2)
    rows = np.arange(24).reshape(8, 3)
    placed = place(rows, row_sharding(mesh))
    assert placed.sharding == NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    np.testing.assert_array_equal(placed, rows)
    first = sorted(int(shard.data[0, 0]) for shard in placed.addressable_shards)
    assert first == [0, 0, 6, 6, 12, 12, 18, 18]


# ---- the same numbers ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results():
    """Per mesh: log-probs, and gradients of their sum under random weights."""
    weights = np.random.default_rng(1).normal(size=(len(LENGTHS), 2)).astype(np.float32)
    pairs = tiny_models.random_examples(LENGTHS)
    (batch,) = pack(pairs, [Shape(8, 130, 120, 3)], weights)

    def on_mesh(mesh):
        def value(model, batch):
            hidden = hidden_states(model, batch, computation(mesh))
            logps = branch_logps(hidden, model.head_weight, batch)
            return jnp.sum(logps * batch.ref_logps), logps

        model = sharded(tiny_models.llama(**EVEN), mesh)
        rows = jax.tree.map(lambda x: place(x, row_sharding(mesh)), batch)
        both = tiny_models.quick_jit(jax.value_and_grad(value, has_aux=True))
        (_, logps), gradients = both(model, rows)
        return np.asarray(logps), jax.tree.map(np.asarray, gradients)

    sizes = [(1, 1, 1), *MESHES]
    return {size: on_mesh(tiny_models.mesh_of(*size)) for size in sizes}


@pytest.mark.parametrize("sizes", MESHES)
def test_eight_devices_compute_what_one_does(sizes, results):
    """Expected: one device, to 1e-5 relative: only the order of sums differs."""
    (logps, gradients), (expected_logps, expected) = results[sizes], results[1, 1, 1]
    np.testing.assert_allclose(logps, expected_logps, rtol=1e-5)
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    for (path, got), wanted in zip(leaves, jax.tree.leaves(expected), strict=True):
        error = np.linalg.norm(got - wanted)
        assert error <= 1e-5 * np.linalg.norm(wanted), path_name(path)


# ---- what training keeps -------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1)])
def test_optimiser_and_gradients_are_sharded_like_the_parameters(sizes):
    """Adam's two moments and the accumulated gradient lie where their parameter lies."""
    mesh = tiny_models.mesh_of(*sizes)
    model = sharded(tiny_models.llama(**EVEN), mesh)
    graphdef, trainable = nnx.split(model, nnx.Param)
    optimizer = make_optimizer(TrainConfig(), model.config)
    how = computation(mesh)
    objective = objective_of([{"name": "dpo"}])
    setting = StepSetting(graphdef, model.config, objective, optimizer, how)
    program = make_program(setting, trainable)
    state = program.start(trainable)
    expected = {
        path_name(path): leaf.sharding
        for path, leaf in jax.tree_util.tree_leaves_with_path(trainable)
    }
    mirrors = 0
    kept = (state, program.zeros(state).gradients)
    for path, leaf in jax.tree_util.tree_leaves_with_path(kept):
        (sharding,) = {
            sharding
            for name, sharding in expected.items()
            if f".{path_name(path)}".endswith(f".{name}") and leaf.ndim > 0
        } or {NamedSharding(mesh, PartitionSpec())}
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim), path_name(path)
        mirrors += leaf.ndim > 0
    assert mirrors == 4 * len(expected)
