"""The inputs of the compiled step: what it changes, what it does not, and its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int


class Frozen(NamedTuple):
    """Parameters that no step changes."""

    base: nnx.State  # parameters that are not trained
    reference: nnx.State | None  # trained parameters at the start, if a loss reads the exact KL


class TrainState(NamedTuple):
    """Everything that a step changes."""

    trainable: nnx.State
    optimizer: optax.OptState
    # False once a loss or gradient was not finite. Such a member is frozen.
    alive: Bool[Array, "*M"]

    @property
    def lasting(self) -> dict[str, Any]:
        """The content of a checkpoint; it lacks `alive`, because only living members are saved."""
        return {"trainable": self.trainable, "optimizer": self.optimizer}


class Knobs(NamedTuple):
    """Numbers that may differ between cells and between steps; no change compiles again."""

    which: Int[Array, "*M"] | int  # place of the loss in the objective
    scalars: Mapping[str, Float[Array, "*M"] | float]  # settings of the losses, by name
    learning_rate: Float[Array, "*M"] | float
    weight_decay: Float[Array, "*M"] | float


class Sums(NamedTuple):
    """Sums over the micro-batches of a step: the gradients, and every metric over examples."""

    gradients: nnx.State
    metrics: dict[str, Float[Array, ""]]
    # How often tokens choose each expert of each layer; None for a model without experts.
    choices: Float[Array, "layers E"] | None = None


class Totals(NamedTuple):
    """The divisors of a step's sums; the host knows them before the first micro-batch."""

    examples: Float[Array, ""] | float
    chosen_tokens: Float[Array, ""] | float


def stacked(trees: Sequence[Any]) -> Any:
    """Stacks the members' trees on a new leading axis; a population of one has no such axis."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def member(tree: Any, number: int, members: int) -> Any:
    """The tree of one member, the inverse of `stacked`.

    Args:
        tree: a stacked tree.
        number: number of the member.
        members: size of the population.
    """
    return tree if members == 1 else jax.tree.map(lambda leaf: leaf[number], tree)
