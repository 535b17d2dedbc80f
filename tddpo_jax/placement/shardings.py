"""Where arrays live: the mesh `data x fsdp x tensor` and one table from parameter to placement.

`data` devices hold copies of the weights, `fsdp` devices share every matrix, `tensor` devices share
each layer's heads and features. Rows of a batch are spread over `data` and `fsdp` together.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from tddpo_jax.models.llama.model import LINEAR_NAMES

ROWS = ("data", "fsdp")

# Every parameter of `model.Llama`, exactly once. Stacked layers have a leading axis, never sharded.
# Over fsdp it is the outputs that are shared: where it is the inputs, XLA copies the weights of all
# layers into the order in which it gathers them, for every micro-batch.
_IN_PARALLEL = PartitionSpec(None, ("tensor", "fsdp"))  # outputs over both
_OUT_PARALLEL = PartitionSpec(None, "fsdp", "tensor")  # outputs over fsdp, inputs over tensor
PARAMETER_SPECS: dict[str, PartitionSpec] = {
    "embed": PartitionSpec("tensor", "fsdp"),
    "head": PartitionSpec("tensor", "fsdp"),
    "norm.weight": PartitionSpec(),
    "layers.attention_norm.weight": PartitionSpec(),
    "layers.mlp_norm.weight": PartitionSpec(),
    "layers.q_proj.weight": _IN_PARALLEL,
    "layers.k_proj.weight": _IN_PARALLEL,
    "layers.v_proj.weight": _IN_PARALLEL,
    "layers.o_proj.weight": _OUT_PARALLEL,
    "layers.gate_proj.weight": _IN_PARALLEL,
    "layers.up_proj.weight": _IN_PARALLEL,
    "layers.down_proj.weight": _OUT_PARALLEL,
    # Adapters are small: every device holds them whole.
    **{f"layers.{name}.adapter.{f}": PartitionSpec() for name in LINEAR_NAMES for f in "ab"},
}


def parameter_shardings(params: Any, mesh: Mesh) -> Any:
    """The sharding of every parameter, as a tree like `params` (nnx.State or pure mapping).

    Raises:
        KeyError: a parameter that the table does not know.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: NamedSharding(mesh, PARAMETER_SPECS[path_name(path)]), params
    )


def tree_shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Shardings for a tree that mirrors parameters, as an optimiser's state does, and holds others.

    A leaf whose path ends in a parameter's path is placed like that parameter, any other whole.
    """

    def sharding(path: Any, _: Any) -> NamedSharding:
        keys = path_name(path).split(".")
        suffixes = (".".join(keys[first:]) for first in range(len(keys)))
        specs = (PARAMETER_SPECS[suffix] for suffix in suffixes if suffix in PARAMETER_SPECS)
        return NamedSharding(mesh, next(specs, PartitionSpec()))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def path_name(path: Any) -> str:
    """`layers.q_proj.weight` for a key path of jax.tree_util, whatever kind of tree it walks."""
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
