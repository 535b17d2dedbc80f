"""What a step changes, what it does not, and its numbers that may change without compiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int


class Frozen(NamedTuple):
    """What no step changes: the base beside adapters, and the reference if the loss needs it."""

    base: nnx.State
    reference: nnx.State | None  # as trainable started, if a loss reads the exact KL


class TrainState(NamedTuple):
    """What a step changes."""

    trainable: nnx.State
    optimizer: optax.OptState
    alive: Bool[Array, "*M"]  # no step had a number that is not finite; the dead learn nothing more

    @property
    def lasting(self) -> dict[str, Any]:
        """What a checkpoint holds: only the living are saved."""
        return {"trainable": self.trainable, "optimizer": self.optimizer}


class Knobs(NamedTuple):
    """What may change from cell to cell and from step to step without compiling again."""

    which: Int[Array, "*M"] | int  # the loss, as its place in the objective
    scalars: Mapping[str, Float[Array, "*M"] | float]  # what the losses read, by name
    learning_rate: Float[Array, "*M"] | float


class Sums(NamedTuple):
    """What micro-batches add up: gradients, and per metric the sum over examples."""

    gradients: nnx.State
    metrics: dict[str, Float[Array, ""]]


class Totals(NamedTuple):
    """What a step's sums are divided by, known on the host before its first micro-batch."""

    examples: Float[Array, ""] | float
    chosen_tokens: Float[Array, ""] | float


def stacked(trees: Sequence[Any]) -> Any:
    """One tree per member, stacked on a new leading axis; a population of one has no such axis."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def member(tree: Any, number: int, members: int) -> Any:
    """The tree of one member."""
    return tree if members == 1 else jax.tree.map(lambda leaf: leaf[number], tree)
