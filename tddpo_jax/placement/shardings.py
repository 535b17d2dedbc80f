"""Where arrays live: the mesh `data x fsdp x tensor`, and one table from axes to devices.

`data` devices hold copies of the weights, `fsdp` devices share every matrix, `tensor` devices share
each layer's heads and features. Rows of a batch are spread over `data` and `fsdp` together.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from tddpo_jax.models.architecture import DecoderConfig
from tddpo_jax.models.tensor_table import Parameter, adapter_paths, linear_parameters

ROWS = ("data", "fsdp")

# The devices that share an axis of a matrix. An axis takes those that none before it has taken, and
# outputs come first: where fsdp shares the inputs, XLA copies the weights of all layers into the
# order in which it gathers them, for every micro-batch.
RULES: dict[str, tuple[str, ...]] = {
    "vocabulary": ("tensor",),
    "width": ("fsdp",),
    "queries": ("tensor", "fsdp"),
    "keys": ("tensor", "fsdp"),
    "values": ("tensor", "fsdp"),
    "attended": ("tensor", "fsdp"),
    "feed_forward": ("tensor", "fsdp"),
}
# The containers of training's state in which parameters are mirrored, and the parts of it that are
# no parameters and lie whole on every device.
MIRRORS = ("trainable", "optimizer", "gradients", "mu", "nu")
COUNTS = ("count", "alive", "metrics")


def axis_devices(parameter: Parameter) -> list[tuple[str, ...]]:
    """For every axis of one layer's tensor, the mesh axes that share it. Vectors are not shared."""
    taken: list[tuple[str, ...]] = []
    for axis in parameter.tensor.axes:
        before = {name for names in taken for name in names}
        taken.append(tuple(name for name in RULES[axis] if name not in before))
    return taken if len(taken) > 1 else [()]


def parameter_spec(parameter: Parameter) -> PartitionSpec:
    """The placement of a parameter. The axis of stacked layers is never shared."""
    devices = axis_devices(parameter)
    entries: list[Any] = [names[0] if len(names) == 1 else names or None for names in devices]
    while entries and entries[-1] is None:
        entries.pop()
    stacked = entries and parameter.layers is not None
    return PartitionSpec(*([None] if stacked else []), *entries)


def parameter_specs(config: DecoderConfig) -> dict[str, PartitionSpec]:
    """The placement of every parameter of a model, and of adapters on its linear layers."""
    return {
        **{each.path: parameter_spec(each) for each in config.parameters},
        # Adapters are small: every device holds them whole.
        **{
            path: PartitionSpec()
            for weight in linear_parameters(config.parameters)
            for path in adapter_paths(weight)
        },
    }


def parameter_shardings(params: Any, config: DecoderConfig, mesh: Mesh) -> Any:
    """The sharding of every parameter, as a tree like `params` (nnx.State or pure mapping).

    Raises:
        KeyError: a parameter that the model's table does not know.
    """
    specs = parameter_specs(config)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: NamedSharding(mesh, specs[path_name(path)]), params
    )


def tree_shardings(tree: Any, config: DecoderConfig, mesh: Mesh | AbstractMesh) -> Any:
    """Shardings for training's state: what mirrors a parameter is placed like it, counts whole.

    Raises:
        KeyError: a leaf that is neither.
    """
    specs = parameter_specs(config)

    def sharding(path: Any, _: Any) -> NamedSharding:
        keys = path_name(path).split(".")
        while keys and (keys[0] in MIRRORS or keys[0].startswith("[")):
            keys.pop(0)
        is_count = keys[:1] and keys[0] in COUNTS
        return NamedSharding(mesh, PartitionSpec() if is_count else specs[".".join(keys)])

    return jax.tree_util.tree_map_with_path(sharding, tree)


def path_name(path: Any) -> str:
    """`layers.mlp_norm.weight` for a key path of jax.tree_util, whatever kind of tree it walks."""
    keys = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    return ".".join(key for key in keys if key != "value")


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all data-parallel devices, everything behind them whole."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def rows_here(mesh: Mesh, rows: int) -> set[int]:
    """The rows of a batch of so many that lie on devices of this host."""
    parts = row_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return {row for part in parts if part is not None for row in range(rows)[part[0]]}


def head_sharding(mesh: Mesh) -> NamedSharding:
    """The head where it is used: its vocabulary over tensor, its width whole."""
    return NamedSharding(mesh, PartitionSpec("tensor"))


def head_parallel(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Queries, keys and values `[B, T, heads, size]`: rows over ROWS, heads over tensor."""
    return NamedSharding(mesh, PartitionSpec(ROWS, None, "tensor"))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def place(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts a host array, the same on every host, onto its sharding; each device takes its part."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
