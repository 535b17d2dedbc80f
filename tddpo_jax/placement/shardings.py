"""Where arrays live on the mesh `data x fsdp x tensor`, by one table from axes to devices.

`data` devices hold copies of the weights. `fsdp` devices share every matrix. `tensor` devices share
each layer's heads and features. The rows of a batch are spread over `data` and `fsdp` together.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from tddpo_jax.models.architecture import DecoderConfig
from tddpo_jax.models.tensor_table import Parameter, adaptable_parameters, adapter_paths

ROWS = ("data", "fsdp")
VECTOR_OF_HEADS = PartitionSpec("tensor")

# The mesh axes that share each axis of a matrix. An axis of a matrix takes only those that no
# earlier axis of the same matrix has taken. Outputs come first, so fsdp shares outputs. If fsdp
# shared inputs, XLA would copy the weights of all layers into the order in which it gathers them,
# for every micro-batch.
RULES: dict[str, tuple[str, ...]] = {
    "vocabulary": ("tensor",),
    "width": ("fsdp",),
    "queries": ("tensor", "fsdp"),
    "keys": ("tensor", "fsdp"),
    "values": ("tensor", "fsdp"),
    "attended": ("tensor", "fsdp"),
    "feed_forward": ("tensor", "fsdp"),
    "shared_feed_forward": ("tensor", "fsdp"),
    "keys_values": ("tensor", "fsdp"),
    # A latent is short, and all heads need it whole.
    "query_latent": ("fsdp",),
    "key_latent": ("fsdp",),
    "compressed": ("fsdp",),
    "index_queries": ("fsdp",),
    "index_key": ("fsdp",),
    "index_heads": ("fsdp",),
    "head": (),
    "heads": (),
    # Each fsdp device has experts of its own. All devices have the whole router.
    "experts": ("fsdp",),
    "halves": (),
    "routes": (),
    "routed": (),
}
# MIRRORS: the parts of the training state whose leaves mirror parameters. COUNTS: the parts that
# every device holds whole.
MIRRORS = ("trainable", "optimizer", "gradients", "mu", "nu")
COUNTS = ("count", "alive", "metrics", "choices")


def axis_devices(parameter: Parameter) -> list[tuple[str, ...]]:
    """For each axis of one layer's tensor, the mesh axes that share it. Vectors are not shared."""
    taken: list[tuple[str, ...]] = []
    for axis in parameter.tensor.axes:
        before = {name for names in taken for name in names}
        taken.append(tuple(name for name in RULES[axis] if name not in before))
    return taken if len(taken) > 1 else [()]


def parameter_spec(parameter: Parameter) -> PartitionSpec:
    """The placement of a parameter. The axis of stacked layers is never shared."""
    entries = _entries(parameter)
    while entries and entries[-1] is None:
        entries.pop()
    stacked = entries and parameter.layers is not None
    return PartitionSpec(*([None] if stacked else []), *entries)


def _entries(parameter: Parameter) -> list[Any]:
    """The entry of a `PartitionSpec` for each axis of one layer's tensor."""
    devices = axis_devices(parameter)
    return [names[0] if len(names) == 1 else names or None for names in devices]


def parameter_specs(config: DecoderConfig) -> dict[str, PartitionSpec]:
    """The placements of all parameters of a model and of adapters on its linear layers, by path."""
    return {
        **{each.path: parameter_spec(each) for each in config.parameters},
        **{
            path: spec
            for weight in adaptable_parameters(config.parameters)
            for path, spec in zip(adapter_paths(weight), adapter_specs(weight), strict=True)
        },
    }


def adapter_specs(weight: Parameter) -> tuple[PartitionSpec, PartitionSpec]:
    """The placements of both factors of an adapter beside this weight.

    Those of linear layers are small, so every device holds them whole. Those of experts lie beside
    the experts.
    """
    if weight.tensor.kind != "experts":
        return PartitionSpec(), PartitionSpec()
    experts, *outputs, inputs = _entries(weight)
    a, b = (experts, None, inputs), (experts, *outputs, None)
    return PartitionSpec(None, *a), PartitionSpec(None, *b)


def tree_shardings(tree: Any, config: DecoderConfig, mesh: Mesh | AbstractMesh) -> Any:
    """The sharding of every leaf of a training state.

    A leaf that mirrors a parameter is placed like it. Every device holds the counts whole.

    Args:
        tree: the training state, or a part of it.
        config: the model's shape.
        mesh: the devices.

    Returns:
        A tree like `tree`.

    Raises:
        KeyError: a leaf is neither a mirror of a parameter nor a count.
    """
    specs = parameter_specs(config)

    def sharding(path: Any, _: Any) -> NamedSharding:
        keys = path_name(path).split(".")
        while keys and (keys[0] in MIRRORS or keys[0].startswith("[")):
            keys.pop(0)
        is_count = keys[:1] and keys[0] in COUNTS
        return NamedSharding(mesh, PartitionSpec() if is_count else specs[".".join(keys)])

    return jax.tree_util.tree_map_with_path(sharding, tree)


def on(tree: Any, shardings: Any) -> Any:
    """Gives every shape of a tree the sharding at the same place of the other tree."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        tree,
        shardings,
    )


def bytes_of_device(tree: Any) -> int:
    """Bytes of a tree of arrays, or shapes with shardings, on each device.

    A number in four bits counts as half a byte.
    """

    def size(leaf: jax.ShapeDtypeStruct | jax.Array) -> float:
        assert leaf.sharding is not None
        small = leaf.dtype.name.endswith(("int4", "float4_e2m1fn"))
        bits = 4 if small else 8 * leaf.dtype.itemsize
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * bits / 8

    return round(sum(size(leaf) for leaf in jax.tree.leaves(tree)))


def path_name(path: Any) -> str:
    """The dotted name of a key path of jax.tree_util, for example `layers.norm.weight`.

    The name is the same for every kind of tree.
    """
    keys = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    return ".".join(key for key in keys if key != "value")


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Spreads rows over all data-parallel devices and keeps the other axes whole."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def rows_here(mesh: Mesh, rows: int) -> set[int]:
    """The rows on the devices of this host.

    Args:
        mesh: the devices.
        rows: number of rows of the batch.
    """
    parts = row_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return {row for part in parts if part is not None for row in range(rows)[part[0]]}


def head_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding in which the head is used: vocabulary over tensor, width whole."""
    return NamedSharding(mesh, PartitionSpec("tensor"))


def head_parallel(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of queries, keys and values `[B, T, heads, size]`: heads over tensor."""
    return NamedSharding(mesh, PartitionSpec(ROWS, None, "tensor"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the array whole."""
    return NamedSharding(mesh, PartitionSpec())


def place(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts a host array onto devices; each device takes its part. All hosts pass the same array."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
