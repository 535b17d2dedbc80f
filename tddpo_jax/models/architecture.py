"""The description of a model that a family gives to the decoder and to the rest of the package.

The layers of a model come in segments. A segment repeats a period of layers. Each place of the
period has its own kind of layer. A model whose layers are all alike is one segment with a period of
one. A model that alternates five layers with a window and one without has a period of six.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Int, PRNGKeyArray

from tddpo_jax.models.attention.view import AttentionShape
from tddpo_jax.models.experts.experts import ExpertsShape
from tddpo_jax.models.tensor_table import Parameter, Tensor, parameter


@dataclasses.dataclass(frozen=True)
class Layer:
    """A kind of layer, at one place of a period.

    Attributes:
        block: makes the module from a random key. The module takes the hidden states `[B, T, D]`,
            the config's angles, `attend` and a key for dropout (or None). It returns the new
            hidden states and what `attend` keeps. `attend` takes queries, keys and values and, by
            keyword, what such a layer has of the following: `sinks` (a score of each head),
            `latent` (a `Latent`) and `choice` (a `Choice`, or None). It gives attention's output
            and what to keep.
        attention: sizes and settings of its attention.
        tensors: the rows of the family's table that describe its parameters.
        sizes: sizes of the axes of those tensors, by the axes' names.
        experts: sizes and settings of its experts, if it has any. The module then takes another
            argument, which computes them as `experts.routed_sum` does.
    """

    block: Callable[[PRNGKeyArray], nnx.Module]
    attention: AttentionShape
    tensors: tuple[Tensor, ...]
    sizes: Mapping[str, int]
    experts: ExpertsShape | None = None

    def size(self, tensor: Tensor) -> int:
        """Number of weights of one of this layer's tensors."""
        return math.prod(self.sizes[axis] for axis in tensor.axes)


class Segment(NamedTuple):
    """A period of layers that is repeated `repeats` times."""

    repeats: int
    period: tuple[Layer, ...]


@runtime_checkable  # the tests check every annotation at run time
class DecoderConfig(Protocol):
    """The shape of a model of any family."""

    @property
    def vocabulary(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def not_text(self) -> tuple[int, ...]:
        """Token ids that stand for something else than text; data must not hold them."""

    @property
    def layers(self) -> int: ...

    @property
    def context(self) -> int: ...

    @property
    def tied(self) -> bool:
        """Whether the embedding is also the head."""

    @property
    def embedding_scale(self) -> float:
        """Factor of the embedding's output, rounded to the dtype of the computation."""

    @property
    def segments(self) -> tuple[Segment, ...]: ...

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """All parameters, in the order in which a checkpoint is written."""

    @property
    def derived(self) -> tuple[str, ...]:
        """Name endings of tensors that a checkpoint may hold and that we compute instead."""

    @property
    def carried(self) -> tuple[str, ...]:
        """Beginnings of the names of tensors that we do not compute, but copy to an export."""

    @property
    def dropped(self) -> tuple[str, ...]:
        """Beginnings of the names of tensors that we neither compute nor copy to an export.

        They are layers that predict further tokens.
        """

    def last_norm(self) -> nnx.Module:
        """The norm after the last layer."""

    def angles(self, positions: Int[Array, "B T"]) -> Any:
        """What the blocks read of the positions, such as rotations.

        It is computed once for all layers.
        """


class Stack(NamedTuple):
    """The layers at one place of a segment's period, stacked on a leading axis."""

    name: str  # name of the decoder's attribute
    layer: Layer
    numbers: tuple[int, ...]  # the layers' numbers in the checkpoint


def stacks(segments: tuple[Segment, ...]) -> list[list[Stack]]:
    """The stacks of every segment, one for each place of its period.

    If a model has only one stack, its name is `layers`.
    """
    only_one = len(segments) == 1 and len(segments[0].period) == 1
    found, first = [], 0
    for number, (repeats, period) in enumerate(segments):
        after = first + repeats * len(period)
        found.append(
            [
                Stack(
                    "layers" if only_one else f"layers_{number}_{place}",
                    layer,
                    tuple(range(first + place, after, len(period))),
                )
                for place, layer in enumerate(period)
            ]
        )
        first = after
    return found


def layer_parameters(segments: tuple[Segment, ...]) -> list[Parameter]:
    """The parameters of all layers, stack by stack."""
    return [
        parameter(tensor, stack.layer.sizes, stack.name, stack.numbers)
        for segment in stacks(segments)
        for stack in segment
        for tensor in stack.layer.tensors
    ]


def expert_layers(config: DecoderConfig) -> tuple[int, ExpertsShape] | None:
    """The number of layers with experts, and their settings; None if the model has none."""
    found = [(count, one) for count, layer in kinds_of_layers(config) if (one := layer.experts)]
    return (sum(count for count, _ in found), found[0][1]) if found else None


def kinds_of_layers(config: DecoderConfig) -> Iterator[tuple[int, Layer]]:
    """Yields every kind of layer with the number of layers that have it."""
    for segment in config.segments:
        for layer in segment.period:
            yield segment.repeats, layer
