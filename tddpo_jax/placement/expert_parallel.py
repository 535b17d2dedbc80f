"""A layer's experts, spread over the `fsdp` devices of a mesh.

The devices of an fsdp group gather their tokens, and each computes the choices of the experts that
it holds. Their sums then go back to the devices of the tokens. No device ever holds all experts of
a layer. `tensor` devices share the hidden features of every expert.

Each device loops over its own tiles, without a collective inside. Left to the compiler, these loops
would hold collectives. Two of them may run side by side, and on a CPU two devices have then waited
for ever, each in the loop that the other had not reached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from tddpo_jax.models.experts.chunks import in_parts
from tddpo_jax.models.experts.experts import Bank, Banks, ExpertsShape
from tddpo_jax.models.experts.grouped import Implementation
from tddpo_jax.models.experts.routing import Route
from tddpo_jax.placement.shardings import ROWS

# A gate and up weight is `[E, 2, F, D]`, a down weight `[E, D, F]`. The third axis is F in both,
# and in one factor of each one's adapter.
EXPERTS, HIDDEN = PartitionSpec("fsdp"), PartitionSpec("fsdp", None, "tensor")


def experts_over(
    mesh: Mesh | AbstractMesh, implementation: Implementation, rows: str | tuple[str, ...] = ROWS
) -> Callable[..., Array]:
    """A function like `routed_sum` that runs over a mesh.

    Args:
        mesh: the devices.
        implementation: of the grouped products.
        rows: the mesh axes over which the rows of tokens are spread. If fsdp is not among them, all
            devices of an fsdp group already hold the same tokens.
    """
    spread = "fsdp" in rows
    summed = ["tensor"] if spread else ["fsdp", "tensor"]

    def run(x: Array, route: Route, banks: Banks, shape: ExpertsShape) -> Array:
        def on_each(
            x: Float[Array, "B T D"],
            expert: Int[Array, "B T K"],
            weight: Float[Array, "B T K"],
            banks: Banks,
        ) -> Float[Array, "B T D"]:
            if spread:
                gates = tuple(bank.gate for bank in banks)
                x, weight, expert, gates = _gathered((x, weight, expert, gates))
                pairs = zip(banks, gates, strict=True)
                banks = Banks(*(bank._replace(gate=gate) for bank, gate in pairs))
            first = jax.lax.axis_index("fsdp") * banks.down.weight.shape[0]
            out = in_parts(
                x, Route(expert, weight), banks, shape, implementation=implementation, first=first
            )
            if spread:
                out = jax.lax.psum_scatter(out, "fsdp", scatter_dimension=0, tiled=True)
            return jax.lax.psum(out, [name for name in summed if mesh.shape[name] > 1])

        tokens = PartitionSpec(rows)
        held = Banks(
            _present(banks.gate_up, (HIDDEN, HIDDEN, EXPERTS, HIDDEN, tokens)),
            _present(banks.down, (HIDDEN, HIDDEN, HIDDEN, EXPERTS, tokens)),
        )
        over_mesh: Callable[..., Array] = jax.shard_map(
            on_each,
            mesh=mesh,
            in_specs=(tokens, tokens, tokens, held),
            out_specs=tokens,
            # JAX cannot tell over which mesh axes the outputs of kernels and loops vary.
            check_vma=False,
        )
        return over_mesh(x, route.expert, route.weight, banks)

    return run


def _gathered(rows: Any) -> Any:
    """The rows of all devices of an fsdp group, for every array of a tree.

    One array follows the other on every device. On a CPU, collectives without an order may wait for
    each other.
    """
    leaves, structure = jax.tree.flatten(rows)
    done: list[Array] = []
    for leaf in leaves:
        if done:
            done[-1], leaf = jax.lax.optimization_barrier((done[-1], leaf))
        done.append(jax.lax.all_gather(leaf, "fsdp", tiled=True))
    return jax.tree.unflatten(structure, done)


def _present(bank: Bank, places: tuple[PartitionSpec, ...]) -> Any:
    """The places of those parts that the bank has."""
    present: Any = (
        None if part is None else place for part, place in zip(bank, places, strict=True)
    )
    return Bank(*present)
