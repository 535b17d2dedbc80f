"""The table of a model's tensors: one row a tensor, read by everything that handles weights.

A family writes its rows as `Tensor`s. With the sizes of a model they become `Parameter`s, one for
each array of our tree. Conversion reads their names and transforms, placement their axes, adapters
and quantisation which of them are linear layers, weight decay which are norms, the operations count
and the plan their shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np

# A linear layer can get an adapter and be quantised; norms are not pulled to zero by weight decay.
Kind = Literal["embedding", "linear", "norm"]


class Transform(NamedTuple):
    """How a tensor of the checkpoint becomes ours, and the inverse of that."""

    load: Callable[[np.ndarray], np.ndarray]
    export: Callable[[np.ndarray], np.ndarray]


class Tensor(NamedTuple):
    """A row of a family's table."""

    hub_name: str  # in a Hugging Face checkpoint; `{}` stands for the number of the layer
    path: str  # in our tree; that of a layer's tensor begins at its layer
    axes: tuple[str, ...]  # what each dimension of ours is, outputs first
    kind: Kind
    transform: Transform | None = None  # None: the checkpoint's tensor is ours
    repeated_as: str | None = None  # a second name under which a checkpoint may hold it again


class Parameter(NamedTuple):
    """An array of our tree: a tensor outside the layers, or one of several layers, stacked."""

    tensor: Tensor
    path: str
    shape: tuple[int, ...]  # of one layer
    layers: tuple[int, ...] | None  # checkpoint's numbers of the stacked layers; None: outside them

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        return self.shape if self.layers is None else (len(self.layers), *self.shape)

    @property
    def hub_shape(self) -> tuple[int, ...]:
        """The shape of one of its tensors in the checkpoint."""
        if self.tensor.transform is None:
            return self.shape
        return self.tensor.transform.export(np.broadcast_to(np.int8(0), self.shape)).shape

    @property
    def module(self) -> str:
        """The path of the module that holds it: `layers.q_proj` for `layers.q_proj.weight`."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The name of that module within its layer, `q_proj`: the name of a linear layer."""
        return self.module.rpartition(".")[2]

    def hub_names(self) -> dict[str, int | None]:
        """Its tensors in the checkpoint -> their places on the stacked axis, None without one."""
        if self.layers is None:
            return {self.tensor.hub_name: None}
        return {
            self.tensor.hub_name.format(layer): place for place, layer in enumerate(self.layers)
        }


def parameter(
    tensor: Tensor,
    sizes: Mapping[str, int],
    stack: str | None = None,
    layers: Iterable[int] | None = None,
) -> Parameter:
    """The parameter of a row.

    Args:
        tensor: the row.
        sizes: of its axes, by name.
        stack: where in our tree the layers are that it belongs to, if it belongs to any.
        layers: their numbers in the checkpoint.
    """
    return Parameter(
        tensor,
        tensor.path if stack is None else f"{stack}.{tensor.path}",
        tuple(sizes[axis] for axis in tensor.axes),
        None if layers is None else tuple(layers),
    )


def hub_tensors(parameters: Iterable[Parameter]) -> dict[str, tuple[Parameter, int | None]]:
    """Every tensor of the checkpoint -> its parameter, and its place on the stacked axis."""
    return {name: (each, place) for each in parameters for name, place in each.hub_names().items()}


def linear_parameters(parameters: Iterable[Parameter]) -> list[Parameter]:
    """The weights of the layers' linear layers, which may get adapters and four bits."""
    return [each for each in parameters if each.tensor.kind == "linear"]


def adapter_paths(weight: Parameter) -> tuple[str, str]:
    """Where the two factors of an adapter beside this weight are."""
    return f"{weight.module}.adapter.a", f"{weight.module}.adapter.b"


def parameter_count(parameters: Iterable[Parameter]) -> int:
    return sum(math.prod(each.stacked_shape) for each in parameters)
