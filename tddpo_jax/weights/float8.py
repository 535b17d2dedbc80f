"""Reads stored tensors of eight-bit floats, which safetensors does not read into numpy arrays."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

FLOAT8 = "F8_E4M3"  # safetensors' name of the dtype


@dataclasses.dataclass(frozen=True)
class Float8Tensor:
    """A stored tensor that is read when it is indexed. It stands in for a `PySafeSlice`.

    References:
        The format: https://github.com/huggingface/safetensors#format
    """

    file: Path
    name: str
    shape: tuple[int, ...]

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return FLOAT8

    def __getitem__(self, index: Any) -> np.ndarray:
        begin = _starts(self.file, self.file.stat().st_mtime_ns)[self.name]
        stored = np.memmap(self.file, ml_dtypes.float8_e4m3fn, "r", begin, self.shape)
        return np.array(stored[index])  # a copy, so that nothing stays mapped into memory


# Many tensors are read from one file, one after the other.
@functools.lru_cache(maxsize=1)
def _starts(file: Path, changed: int) -> dict[str, int]:
    """Where the bytes of each tensor start.

    Args:
        file: the file.
        changed: when it was last written, so that nothing is known of an earlier content.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    return {
        name: 8 + length + entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }
