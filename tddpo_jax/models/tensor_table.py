"""The table of a model's tensors, with one row for each tensor.

A family writes its rows as `Tensor`s. With the sizes of a model they become `Parameter`s, one for
each array of our tree. Everything that handles weights reads this table:

    conversion                   names, transforms, packings and pieces
    placement                    axes
    adapters and quantisation    which tensors are linear layers or experts
    weight decay                 which tensors are norms and biases
    operations count and plan    shapes
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np

# `experts` are the weights of all experts of a layer, and a `router` chooses among them. Linear
# layers and experts can get adapters and can be quantised. Norms and biases have no weight decay. A
# `buffer` is never trained and never rounded. An export copies it, or writes it in float32 if the
# source holds it packed.
Kind = Literal["embedding", "linear", "norm", "bias", "experts", "router", "buffer"]


class Transform(NamedTuple):
    """A function from the checkpoint's tensor to ours, and its inverse."""

    load: Callable[[np.ndarray], np.ndarray]
    export: Callable[[np.ndarray], np.ndarray]


class Packing(NamedTuple):
    """A second form of a tensor in a checkpoint: several packed parts that give its values."""

    endings: tuple[str, ...]  # the names of the parts are the tensor's name with these endings
    dtypes: tuple[str, ...]  # safetensors' names of the parts' dtypes
    # From the shape of the checkpoint's own tensor to those of the parts.
    shapes: Callable[[tuple[int, ...]], tuple[tuple[int, ...], ...]]
    load: Callable[..., np.ndarray]  # from the parts to the checkpoint's own tensor
    # From the parts to values in few bits and their scales, both with the axes of that tensor. A
    # scale belongs to a block of values. None: there is no such form.
    quantized: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None


class TargetParameter(NamedTuple):
    """How PEFT adapts a tensor of all experts, which it calls a target parameter."""

    name: str  # of the parameter in transformers' own model; `{}` is replaced by the layer's number
    # Between PEFT's outputs on the second axis and ours; None: they are equal.
    outputs: Transform | None = None
    swapped: bool = False  # whether PEFT takes the inputs for the outputs

    @property
    def module(self) -> str:
        """The name of the module that holds the parameter."""
        return self.name.rpartition(".")[0]


class Pieces(NamedTuple):
    """A form of a tensor in a checkpoint: a tensor of its own for every index of its first axes."""

    hub_name: str  # of a piece; the layer's number and the indices' names fill its `{}`
    names: tuple[tuple[str, ...], ...]  # for each of these axes, names of the indices; (): numbers


class Tensor(NamedTuple):
    """A row of a family's table."""

    # Name in a Hugging Face checkpoint; `{}` is replaced by the layer's number. If the checkpoint
    # has pieces, this names the whole, and no file holds it.
    hub_name: str
    path: str  # path in our tree; for a layer's tensor, the path within the layer
    axes: tuple[str, ...]  # name of each dimension of our array, outputs first
    kind: Kind
    # None: our array equals the checkpoint's tensor. A tensor in pieces has no transform.
    transform: Transform | None = None
    repeated_as: str | None = None  # second name under which a checkpoint may repeat the tensor
    # The name in transformers' own model, where the checkpoint's differs.
    module_name: str | None = None
    packing: Packing | None = None  # None: the checkpoint always has it as one tensor
    # None: the checkpoint has it whole. If it has pieces, the packing is that of a piece.
    pieces: Pieces | None = None
    target: TargetParameter | None = None  # None: PEFT adapts it as a module, or not at all


class Parameter(NamedTuple):
    """An array of our tree: one tensor of several layers, stacked, or a tensor outside them."""

    tensor: Tensor
    path: str
    shape: tuple[int, ...]  # shape of one layer's tensor
    layers: tuple[int, ...] | None  # the layers' numbers in the checkpoint; None: outside layers

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """The shape of the array in our tree."""
        return self.shape if self.layers is None else (len(self.layers), *self.shape)

    @property
    def hub_shape(self) -> tuple[int, ...]:
        """The shape of each of its tensors in the checkpoint."""
        if self.tensor.transform is None:
            return self.shape
        return self.tensor.transform.export(np.broadcast_to(np.int8(0), self.shape)).shape

    @property
    def module(self) -> str:
        """The path of the module that holds it, for example `layers.q_proj`."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The name of that module within its layer, for example `q_proj` or `experts.down`."""
        parts = 2 if self.tensor.kind == "experts" else 1
        return ".".join(self.module.split(".")[-parts:])

    def hub_names(self) -> dict[str, int | None]:
        """Maps the names of its tensors in the checkpoint to their places on the stacked axis.

        The place is None for a tensor outside the layers.
        """
        if self.layers is None:
            return {self.tensor.hub_name: None}
        return {
            self.tensor.hub_name.format(layer): place for place, layer in enumerate(self.layers)
        }

    def pieces_at(self, place: int | None) -> dict[tuple[int, ...], str]:
        """The names in the checkpoint of a tensor's pieces, by their indices.

        Args:
            place: the layer's place on the stacked axis.
        """
        pieces = self.tensor.pieces
        assert pieces is not None
        assert self.layers is not None
        assert place is not None
        axes = [
            names or tuple(map(str, range(size)))
            for names, size in zip(pieces.names, self.shape, strict=False)
        ]
        return {
            index: pieces.hub_name.format(self.layers[place], *map(tuple.__getitem__, axes, index))
            for index in itertools.product(*(range(len(names)) for names in axes))
        }

    @property
    def piece_shape(self) -> tuple[int, ...]:
        """The shape of each of its tensors in the checkpoint, or of a piece of one."""
        pieces = self.tensor.pieces
        return self.hub_shape if pieces is None else self.hub_shape[len(pieces.names) :]

    def module_names(self) -> list[str]:
        """The names of its tensors in transformers' own model, in the order of the layers."""
        name = self.tensor.module_name or self.tensor.hub_name
        return [name] if self.layers is None else [name.format(layer) for layer in self.layers]


def parameter(
    tensor: Tensor,
    sizes: Mapping[str, int],
    stack: str | None = None,
    layers: Iterable[int] | None = None,
) -> Parameter:
    """Makes the parameter of one row of the table.

    Args:
        tensor: the row.
        sizes: sizes of the axes, by name.
        stack: name of the stack of layers that the tensor belongs to; None: outside the layers.
        layers: the layers' numbers in the checkpoint.
    """
    return Parameter(
        tensor,
        tensor.path if stack is None else f"{stack}.{tensor.path}",
        tuple(sizes[axis] for axis in tensor.axes),
        None if layers is None else tuple(layers),
    )


def hub_tensors(parameters: Iterable[Parameter]) -> dict[str, tuple[Parameter, int | None]]:
    """Maps every tensor of the checkpoint to its parameter and its place on the stacked axis.

    A tensor of which the checkpoint has pieces is there once, under the name of the whole.
    """
    return {name: (each, place) for each in parameters for name, place in each.hub_names().items()}


class Stored(NamedTuple):
    """Where a tensor that a checkpoint stores belongs."""

    whole: str  # its name in `hub_tensors`
    piece: tuple[int, ...]  # its index in that tensor, if it is a piece


def stored_tensors_of(parameters: Iterable[Parameter]) -> dict[str, Stored]:
    """Maps the names under which a checkpoint stores its tensors to where they belong."""
    found = {}
    for each in parameters:
        for name, place in each.hub_names().items():
            if each.tensor.pieces is None:
                found[name] = Stored(name, ())
                continue
            pieces = each.pieces_at(place)
            found |= {piece: Stored(name, index) for index, piece in pieces.items()}
    return found


def linear_names(rows: Iterable[Tensor]) -> tuple[str, ...]:
    """The names of the linear layers among the modules that these rows belong to."""
    return tuple(row.path.split(".")[-2] for row in rows if row.kind == "linear")


def linear_parameters(parameters: Iterable[Parameter]) -> list[Parameter]:
    """The weights of all linear layers. They may get adapters or be quantised."""
    return [each for each in parameters if each.tensor.kind == "linear"]


def adaptable_parameters(parameters: Iterable[Parameter]) -> list[Parameter]:
    """The weights of all linear layers and of all experts."""
    return [each for each in parameters if each.tensor.kind in ("linear", "experts")]


def adapter_paths(weight: Parameter) -> tuple[str, str]:
    """The paths of the two factors of an adapter beside this weight."""
    return f"{weight.module}.adapter.a", f"{weight.module}.adapter.b"


def parameter_count(parameters: Iterable[Parameter]) -> int:
    """Number of weights in all these parameters together."""
    return sum(math.prod(each.stacked_shape) for each in parameters)
