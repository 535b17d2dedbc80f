"""Safetensors files written tensor by tensor: host memory holds one tensor, never one file.

The bytes are those that `safetensors.numpy.save_file` writes when it is given all tensors at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

# Our names of what is stored -> safetensors' names.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
ALIGNMENT = 8  # bytes; the header is filled up with spaces to a multiple of it


def write_tensors(
    file: Path,
    specs: Mapping[str, jax.ShapeDtypeStruct],
    tensor: Callable[[str], np.ndarray],
) -> None:
    """Writes a safetensors file.

    Args:
        file: to write; replaced if it exists.
        specs: shape and dtype of every tensor, by name.
        tensor: gives the tensor of a name; each is asked for once, when its place has come.

    Raises:
        KeyError: a dtype that is none of `DTYPES`.

    References:
        The format: https://github.com/huggingface/safetensors#format
    """
    # safetensors' own order: the widest elements first, so that all stay aligned; then by name.
    names = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    with file.open("wb") as stream:
        stream.write(_header(specs, names))
        for name in names:
            # Kept under no name here, so that it is gone before the next one is made.
            stream.write(_raw(tensor(name), specs[name]))


def _raw(tensor: np.ndarray, spec: jax.ShapeDtypeStruct) -> memoryview:
    assert (tensor.shape, tensor.dtype) == (spec.shape, spec.dtype)
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


def _header(specs: Mapping[str, jax.ShapeDtypeStruct], names: list[str]) -> bytes:
    # transformers refuses files that do not name the framework of their layout.
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
