"""Several adapters over one base in one batch: each row uses its own, and none is merged.

The factors of all adapters are side by side on the rank axis, so they make one wide adapter. Every
row of a batch has a gate over that axis. The gate holds the scale of the row's own adapter on that
adapter's ranks, and zero on the others. The base is read once for all rows.

Letters: N adapters, R ranks of all adapters together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from tddpo_jax.models.decoder import Decoder, adaptable_layers
from tddpo_jax.models.linear import Adapter, LoraParam
from tddpo_jax.placement.shardings import ROWS, place


@dataclasses.dataclass(frozen=True)
class AdapterSet:
    """A base with N adapters side by side, or a plain model, which counts as one adapter."""

    model: Decoder
    count: int  # number of adapters, N
    # Gates `[N + 1, R]` by the path of the layer. The last row is zero, for the base alone.
    gates: dict[str, Float[np.ndarray, "N R"]]

    def for_rows(self, index: Sequence[int], mesh: Mesh) -> Decoder:
        """The model for a batch whose row b uses adapter `index[b]`; -1 means the base alone.

        Args:
            index: number of each row's adapter, in [-1, N).
            mesh: the devices over which the rows are spread.
        """
        model = nnx.clone(self.model)
        linears = adaptable_layers(model)
        sharding = NamedSharding(mesh, PartitionSpec(None, ROWS))
        for path, gates in self.gates.items():
            rows, adapter = gates[np.asarray(index)], linears[path].adapter
            assert adapter is not None
            gate = place(np.broadcast_to(rows, (len(adapter.a[...]), *rows.shape)), sharding)
            adapter.gate = nnx.Variable(gate)
        return model


def adapter_set(models: Sequence[Decoder]) -> AdapterSet:
    """Joins models that differ only in their adapters. A model may have no adapter.

    The base of the first model serves for all.
    """
    model = nnx.clone(models[0])
    linears_of_each = [adaptable_layers(other) for other in models]
    gates = {}
    for path, linear in adaptable_layers(model).items():
        adapters = [linears[path].adapter for linears in linears_of_each]
        if any(adapters):
            gates[path] = _gates(adapters)
            linear.adapter = _side_by_side([adapter for adapter in adapters if adapter])
    return AdapterSet(model, len(models), gates)


def _gates(adapters: Sequence[Adapter | None]) -> Float[np.ndarray, "N R"]:
    ranks = [0 if adapter is None else adapter.a.shape[-2] for adapter in adapters]
    gates = np.zeros((len(adapters) + 1, sum(ranks)), np.float32)
    for number, (adapter, end) in enumerate(zip(adapters, np.cumsum(ranks), strict=True)):
        if adapter is not None:
            gates[number, end - ranks[number] : end] = adapter.scale
    return gates


def _side_by_side(adapters: Sequence[Adapter]) -> Adapter:
    joined = nnx.clone(adapters[0])
    joined.a = LoraParam(jnp.concatenate([adapter.a[...] for adapter in adapters], axis=-2))
    joined.b = LoraParam(jnp.concatenate([adapter.b[...] for adapter in adapters], axis=-1))
    joined.scale = 1.0
    return joined
