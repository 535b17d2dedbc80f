"""What a family gives the decoder, and what everybody else may ask about a model.

The layers of a model come in segments. A segment repeats a period of layers, each place of the
period with its own kind of layer: a model whose layers are all alike is one segment with a period
of one; five layers with a window and one without, eight times over, are a period of six.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Int, PRNGKeyArray

from tddpo_jax.models.attention.view import AttentionShape
from tddpo_jax.models.tensor_table import Parameter, Tensor, parameter


@dataclasses.dataclass(frozen=True)
class Layer:
    """A kind of layer, at one place of a period.

    Attributes:
        block: makes the module. Called with the stream `[B, T, D]`, the config's angles, `attend`
            and a key for dropout (or None), the module gives the new stream and what `attend`
            keeps.
        attention: its sizes and settings.
        tensors: the rows of its parameters.
        sizes: of the rows' axes, by name.
    """

    block: Callable[[PRNGKeyArray], nnx.Module]
    attention: AttentionShape
    tensors: tuple[Tensor, ...]
    sizes: Mapping[str, int]

    def size(self, tensor: Tensor) -> int:
        """Number of weights of a row."""
        return math.prod(self.sizes[axis] for axis in tensor.axes)


class Segment(NamedTuple):
    """The layers of a period, one after another, `repeats` times."""

    repeats: int
    period: tuple[Layer, ...]


@runtime_checkable  # for the tests, which check every annotation
class DecoderConfig(Protocol):
    """The shape of a model of any family."""

    @property
    def vocabulary(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def layers(self) -> int: ...

    @property
    def context(self) -> int: ...

    @property
    def tied(self) -> bool:
        """Whether the embedding is the head too."""

    @property
    def segments(self) -> tuple[Segment, ...]: ...

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """All of them, in the order in which a checkpoint is written."""

    @property
    def derived(self) -> tuple[str, ...]:
        """Endings of the names of tensors that a checkpoint may hold and that follow from this."""

    def last_norm(self) -> nnx.Module:
        """The norm behind the last layer."""

    def angles(self, positions: Int[Array, "B T"]) -> Any:
        """The rotations by position that the blocks read, made once for all layers."""


class Stack(NamedTuple):
    """The layers that stand at one place of a segment's period, stacked on a leading axis."""

    name: str  # of the decoder's attribute
    layer: Layer
    numbers: tuple[int, ...]  # of the layers in the checkpoint


def stacks(segments: tuple[Segment, ...]) -> list[list[Stack]]:
    """For every segment the stacks of its period.

    The stack of a model that has only one is called `layers`.
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


def kinds_of_layers(config: DecoderConfig) -> Iterator[tuple[int, Layer]]:
    """Every kind of layer, and how many layers are of it."""
    for segment in config.segments:
        for layer in segment.period:
            yield segment.repeats, layer
