"""Finds, reads and writes the safetensors of a Hugging Face folder, one tensor at a time.

Host memory holds one tensor, never a whole file. The written bytes equal those of
`safetensors.numpy.save_file`, which needs all tensors at once. The hashes identify the weights of a
folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from tddpo_jax.errors import UserError
from tddpo_jax.system.json_files import read_object
from tddpo_jax.weights.float8 import FLOAT8, Float8Tensor

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
# Our names of the dtypes that may be stored -> safetensors' names.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# Dtypes of the parts of packed tensors, which are only read.
PACKED_DTYPES = ("U8", FLOAT8)
WHOLE_OR_PACKED = (*DTYPES.values(), *PACKED_DTYPES)
ALIGNMENT = 8  # bytes; spaces pad the header to a multiple of it


# ---- reading -------------------------------------------------------------------------------------


def weight_files(folder: Path) -> dict[str, Path]:
    """Maps the name of every tensor of a Hugging Face folder to the file that holds it.

    Raises:
        UserError: the folder has no safetensors, a file is not whole, or the index does not match
            the files.
    """
    single, index = (folder / name for name in WEIGHT_FILES)
    # If a folder has both, transformers reads the single file.
    if single.exists():
        files = dict.fromkeys(_names_in(single), single)
    elif index.exists():
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{index}: weight_map is missing")
        for name, file in weight_map.items():
            if not isinstance(file, str):
                raise UserError(f"{index}: weight_map: {name} must name a file, got {file!r}")
        files = {name: folder / file for name, file in weight_map.items()}
    else:
        raise UserError(f"{folder}: holds neither {WEIGHT_FILES[0]} nor {WEIGHT_FILES[1]}")
    held: dict[str, Path] = {}
    for file in sorted(set(files.values())):
        for name in _names_in(file):
            if name in held:
                raise UserError(f"{folder}: tensor {name} is in more than one file")
            if name not in files:
                raise UserError(f"{index}: tensor {name} is not in weight_map")
            held[name] = file
    for name, file in files.items():
        if held.get(name) != file:
            raise UserError(f"{file}: tensor {name} is missing")
    return files


def _names_in(file: Path) -> list[str]:
    try:
        with safe_open(file, "np") as tensors:
            return list(tensors.keys())
    except UnicodeError:  # a file name of the index
        raise UserError(f"{str(file)!r}: no file can have this name") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a whole safetensors file: {error}") from None


def stored_tensors(files: dict[str, Path]) -> Iterator[tuple[str, Any]]:
    """Yields every name of `weight_files` with its `PySafeSlice`, which reads only when indexed.

    Raises:
        UserError: a tensor is stored in a dtype that is in neither `DTYPES` nor `PACKED_DTYPES`.
    """
    for file in sorted(set(files.values())):
        for name in _names_in(file):
            yield name, stored_tensor(file, name, WHOLE_OR_PACKED)


def stored_tensor(file: Path, name: str, dtypes: Collection[str] = tuple(DTYPES.values())) -> Any:
    """The `PySafeSlice` of a tensor; see `stored_tensors`.

    Args:
        file: the file that holds it.
        name: of the tensor.
        dtypes: safetensors' names of the dtypes that it may have.

    Raises:
        UserError: it is stored in another dtype.
    """
    # Open the file anew for each tensor, because everything read from an open file stays mapped
    # into memory.
    with safe_open(file, "np") as tensors:
        stored = tensors.get_slice(name)
    dtype = stored.get_dtype()
    if dtype not in dtypes:
        raise UserError(
            f"{file}: {name} is stored as {dtype}, but must be one of {', '.join(DTYPES)}"
        )
    return Float8Tensor(file, name, tuple(stored.get_shape())) if dtype == FLOAT8 else stored


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """All tensors of one small file, by name.

    Raises:
        UserError: the file is not whole, or a tensor is stored in a dtype that is not in `DTYPES`.
    """
    return {name: np.asarray(stored_tensor(file, name)[:]) for name in _names_in(file)}


# ---- what a folder holds -------------------------------------------------------------------------


def content_hash(folder: Path) -> str:
    """sha256 (hex) of the config and the weights, on which all outputs of the model depend."""
    return files_hash([folder / "config.json", *sorted(set(weight_files(folder).values()))])


def fingerprint(folder: Path) -> str:
    """sha256 (hex) of every tensor's name, shape, dtype and first row.

    It reads very little of a large checkpoint. Weights that were trained differently have a
    different fingerprint.
    """
    rows = [
        f"{name} {stored.get_shape()} {stored.get_dtype()} {_first_row(stored).hex()}"
        for name, stored in stored_tensors(weight_files(folder))
    ]
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()


def _first_row(stored: Any) -> bytes:
    shape = stored.get_shape()
    return np.asarray(stored[:1]).tobytes() if shape and all(shape) else b""


def files_hash(files: Iterable[Path]) -> str:
    """sha256 (hex) over the sha256 of each file's content, in this order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def stored_dtype(folder: Path, name: str) -> np.dtype:
    """The dtype in which the tensor of this name is stored.

    Raises:
        UserError: it is not in `DTYPES`.
    """
    return stored_spec(weight_files(folder)[name], name).dtype


def stored_spec(file: Path, name: str) -> jax.ShapeDtypeStruct:
    """The shape and the dtype of a stored tensor.

    Raises:
        UserError: the dtype is not in `DTYPES`.
    """
    stored = stored_tensor(file, name)
    dtype = next(ours for ours, theirs in DTYPES.items() if theirs == stored.get_dtype())
    return jax.ShapeDtypeStruct(stored.get_shape(), jnp.dtype(dtype))


# ---- writing -------------------------------------------------------------------------------------


def write_tensors(
    file: Path,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    tensor: Callable[[str], np.ndarray],
) -> None:
    """Writes a safetensors file.

    Args:
        file: the file to write; replaced if it exists.
        specs: shape and dtype of every tensor, by name.
        tensor: gives the tensor of a name; it is called once for each tensor, just before the
            tensor is written.

    Raises:
        KeyError: a dtype is not in `DTYPES`.

    References:
        The format: https://github.com/huggingface/safetensors#format
    """
    # This is safetensors' own order: first by element size, widest first, so that all tensors stay
    # aligned, then by name.
    names = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    with file.open("wb") as stream:
        stream.write(_header(specs, names))
        for name in names:
            # No variable holds the tensor, so its memory is free before the next one is made.
            stream.write(_raw(tensor(name), specs[name]))


def _raw(tensor: np.ndarray, spec: jax.ShapeDtypeStruct) -> memoryview:
    assert (tensor.shape, tensor.dtype) == (spec.shape, spec.dtype)
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


def _header(specs: Mapping[str, jax.ShapeDtypeStruct], names: list[str]) -> bytes:
    # transformers refuses files whose metadata does not name a framework.
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        spec, start = specs[name], end
        end += spec.size * spec.dtype.itemsize
        entries[name] = {
            "dtype": DTYPES[spec.dtype.name],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
