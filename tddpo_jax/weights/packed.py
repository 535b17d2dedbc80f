"""Reads tensors that a checkpoint holds in packed parts, as if they were stored whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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

    def get_dtype(self) -> str:
        return "BF16"

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.packing.load(*(part[:] for part in self.parts))[index]

    def quantized(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The values in few bits and their scales, if the packing has this form."""
        if self.packing.quantized is None:
            return None
        return self.packing.quantized(*(part[:] for part in self.parts))


def whole_tensors(files: Mapping[str, Path], expected: Expected) -> dict[str, Path]:
    """The names of a folder's tensors and their files, with one name for all parts of a tensor.

    Raises:
        UserError: a part is missing, or the tensor is also there whole.
    """
    found = dict(files)
    for name, parts in _packed(files, expected).items():
        if name in files:
            raise UserError(f"{files[name]}: tensor {name} is there twice, whole and packed")
        for part in parts:
            if part not in files:
                raise UserError(f"{files[parts[0]]}: tensor {part} is missing")
        found[name] = found[parts[0]]
        for part in parts:
            del found[part]
    return found


def with_packed(
    tensors: Iterator[tuple[str, Any]], files: Mapping[str, Path], expected: Expected
) -> Iterator[tuple[str, Any]]:
    """Yields stored tensors, and one `PackedTensor` in place of the first part of a packed one.

    Raises:
        UserError: a part has another shape or dtype than its tensor requires, or a tensor that is
            not packed has the dtype of parts.
    """
    packed = _packed(files, expected)
    names = {parts[0]: name for name, parts in packed.items()}
    others = {part for parts in packed.values() for part in parts[1:]}
    for name, stored in tensors:
        if name in names:
            yield names[name], _packed_tensor(names[name], packed[names[name]], files, expected)
        elif name not in others:
            if stored.get_dtype() in PACKED_DTYPES:
                problem = f"{name} is stored as {stored.get_dtype()}"
                raise UserError(f"{files[name]}: {problem}, but it is no part of a packed tensor")
            yield name, stored


def _packed(files: Mapping[str, Path], expected: Expected) -> dict[str, list[str]]:
    """The names of the parts of every tensor that the folder holds packed."""
    found = {}
    for name, (parameter, _) in expected.items():
        packing = parameter.tensor.packing
        if packing is not None and name + packing.endings[0] in files:
            found[name] = [name + ending for ending in packing.endings]
    return found


def _packed_tensor(
    name: str, parts: list[str], files: Mapping[str, Path], expected: Expected
) -> PackedTensor:
    parameter, _ = expected[name]
    packing, shape = parameter.tensor.packing, parameter.hub_shape
    assert packing is not None
    stored = tuple(stored_tensor(files[part], part, WHOLE_OR_PACKED) for part in parts)
    for part, one, wanted in zip(parts, stored, packing.shapes(shape), strict=True):
        if one.get_shape() != list(wanted) or one.get_dtype() not in PACKED_DTYPES:
            found = f"{one.get_shape()} of {one.get_dtype()}"
            raise UserError(
                f"{files[part]}: {part} is {found}, but config.json requires {list(wanted)} of U8"
            )
    return PackedTensor(packing, shape, stored)
