"""The embedding of tokens, where the table and the rows are spread over a mesh."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from tddpo_jax.placement.shardings import ROWS


def embed_over(
    mesh: Mesh | AbstractMesh, table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: Any
) -> Float[Array, "B T D"]:
    """The table's entry for every token, in `dtype`, with the rows over ROWS.

    Each device looks up the features that it holds, for the rows of all fsdp devices; then these
    devices trade features for rows. The way back is the same for the gradient. Left to the
    compiler, some meshes would hold the result for all rows, or the table, whole on every device.
    """

    def placed(x: Array, *axes: Any) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))

    # The gradient has the table's placement as well, and its sum is not made whole to add to it.
    table, tokens = placed(table, "tensor", "fsdp"), placed(tokens, "data")
    return placed(placed(table[tokens].astype(dtype), "data", None, "fsdp"), ROWS)
