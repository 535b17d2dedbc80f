"""Reads tensors that a checkpoint holds in parts or in pieces, as if they were stored whole.

The parts of a packed tensor together give its values. The pieces of a tensor are its values for
each index of its first axes, and each piece may be packed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tddpo_jax.errors import UserError
from tddpo_jax.models.tensor_table import Packing, Parameter
from tddpo_jax.weights.tensor_files import PACKED_DTYPES, WHOLE_OR_PACKED, stored_tensor

# The tensors of the checkpoint, by name, with their parameters.
Expected = Mapping[str, tuple[Parameter, int | None]]


@dataclasses.dataclass(frozen=True)
class PackedTensor:
    """A tensor that reads its parts when it is indexed. It stands in for a `PySafeSlice`."""

    packing: Packing
    shape: tuple[int, ...]
    parts: tuple[Any, ...]

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.packing.load(*(part[:] for part in self.parts))[index]

    def quantized(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The values in few bits and their scales, if the packing has this form."""
        if self.packing.quantized is None:
            return None
        return self.packing.quantized(*(part[:] for part in self.parts))


@dataclasses.dataclass(frozen=True)
class PiecedTensor:
    """A tensor that reads those pieces that a part of it needs."""

    shape: tuple[int, ...]
    pieces: Mapping[tuple[int, ...], str]  # the pieces' names by their indices
    read: Callable[[str], Any]  # gives the stored tensor of a name

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def part(self, *spans: tuple[int, int], dtype: Any) -> np.ndarray:
        """The part in a span for each axis. Only one piece at a time has another dtype.

        Args:
            *spans: the (start, stop) along each axis.
            dtype: of the result; None: the pieces' own.
        """
        axes = [range(*span) for span in spans]
        first = len(next(iter(self.pieces)))
        within = tuple(slice(*span) for span in spans[first:])
        names = [self.pieces[each] for each in itertools.product(*axes[:first])]
        found: np.ndarray | None = None
        for number, name in enumerate(names):
            piece = self.read(name)[within]
            if found is None:
                found = np.empty((len(names), *piece.shape), dtype or piece.dtype)
            elif dtype is None and piece.dtype != found.dtype:
                raise UserError(f"{name} is {piece.dtype}, but other pieces are {found.dtype}")
            found[number] = piece
        assert found is not None
        return found.reshape([len(axis) for axis in axes])


class _Leaf(NamedTuple):
    """A tensor, or a piece of one, that a checkpoint has as one tensor or as packed parts."""

    owner: str  # the tensor that it is, or is a piece of
    shape: tuple[int, ...]
    packing: Packing | None

    def parts(self, name: str) -> list[str]:
        """The names of its parts, if it is packed."""
        return [name + ending for ending in self.packing.endings] if self.packing else []


def whole_tensors(files: Mapping[str, Path], expected: Expected) -> dict[str, Path]:
    """The names of a folder's tensors and their files, with one name for all parts or pieces.

    Raises:
        UserError: a part or a piece is missing, or a tensor in parts or pieces is also there whole.
    """
    found, leaves = dict(files), _leaves(expected)
    pieces: dict[str, list[str]] = {}
    for name, leaf in leaves.items():
        if _is_packed(name, leaf, files):
            _fold(found, name, leaf.parts(name))
        if name != leaf.owner:
            pieces.setdefault(leaf.owner, []).append(name)
    for name, members in pieces.items():
        if any(member in found for member in members):
            _fold(found, name, members)
    return found


def _fold(found: dict[str, Path], name: str, members: list[str]) -> None:
    """Puts one name, with the file of its first member, in place of the names of its members."""
    if name in found and name not in members:
        raise UserError(f"{found[name]}: tensor {name} is there twice, whole and in parts")
    first = next(found[member] for member in members if member in found)
    for member in members:
        if member not in found:
            raise UserError(f"{first}: tensor {member} is missing")
    for member in members:
        del found[member]
    found[name] = first


def stored_whole(files: Mapping[str, Path], expected: Expected) -> set[str]:
    """The names of those tensors, and pieces of tensors, that a folder does not hold packed."""
    leaves = _leaves(expected).items()
    return {name for name, leaf in leaves if name in files and not _is_packed(name, leaf, files)}


def expected_tensors(files: Mapping[str, Path], expected: Expected) -> Iterator[tuple[str, Any]]:
    """Yields the expected tensors that a folder holds, each with what reads it when it is indexed.

    Raises:
        UserError: a tensor, a part or a piece has another shape or dtype than is required, or a
            tensor that is not packed has the dtype of parts; and as for `whole_tensors`.
    """
    leaves = _leaves(expected)

    def read(name: str) -> Any:
        leaf = leaves[name]
        if _is_packed(name, leaf, files):
            return _packed_tensor(name, leaf, files)
        stored = _plain(name, stored_tensor(files[name], name, WHOLE_OR_PACKED), files)
        _check_shape(name, stored, leaf, files)
        return stored

    for name in whole_tensors(files, expected):
        if name in expected:
            yield name, _whole(name, *expected[name], read)


def _whole(name: str, parameter: Parameter, place: int | None, read: Callable[[str], Any]) -> Any:
    """The tensor of this name, or one that reads its pieces."""
    if parameter.tensor.pieces is None:
        return read(name)
    return PiecedTensor(parameter.hub_shape, parameter.pieces_at(place), read)


def _leaves(expected: Expected) -> dict[str, _Leaf]:
    """Everything that a checkpoint has as one tensor or packed."""
    found: dict[str, _Leaf] = {}
    for name, (parameter, place) in expected.items():
        tensor = parameter.tensor
        names = [name] if tensor.pieces is None else parameter.pieces_at(place).values()
        found |= dict.fromkeys(names, _Leaf(name, parameter.piece_shape, tensor.packing))
    return found


def _is_packed(name: str, leaf: _Leaf, files: Mapping[str, Path]) -> bool:
    """Whether the folder holds it packed.

    A part with the tensor's own name does not show that, but the others do.
    """
    return any(part in files and part != name for part in leaf.parts(name))


def _plain(name: str, stored: Any, files: Mapping[str, Path]) -> Any:
    """A tensor that is stored whole."""
    if stored.get_dtype() in PACKED_DTYPES:
        problem = f"{name} is stored as {stored.get_dtype()}"
        raise UserError(f"{files[name]}: {problem}, but it is no part of a packed tensor")
    return stored


def _packed_tensor(name: str, leaf: _Leaf, files: Mapping[str, Path]) -> PackedTensor:
    packing, parts = leaf.packing, leaf.parts(name)
    assert packing is not None
    stored = tuple(stored_tensor(files[part], part, WHOLE_OR_PACKED) for part in parts)
    for part, one, wanted, dtype in zip(
        parts, stored, packing.shapes(leaf.shape), packing.dtypes, strict=True
    ):
        found, required = (one.get_shape(), one.get_dtype()), (list(wanted), dtype)
        if found != required:
            problem = "{} is {} of {}, but config.json requires {} of {}"
            raise UserError(f"{files[part]}: {problem.format(part, *found, *required)}")
    return PackedTensor(packing, leaf.shape, stored)


def _check_shape(name: str, stored: Any, leaf: _Leaf, files: Mapping[str, Path]) -> None:
    found, wanted = stored.get_shape(), list(leaf.shape)
    if found != wanted:
        raise UserError(
            f"{files[name]}: {name} has shape {found}, but config.json requires {wanted}"
        )
