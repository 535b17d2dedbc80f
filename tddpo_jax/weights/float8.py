"""Reads stored tensors of eight-bit floats, which safetensors does not read into numpy arrays."""

from __future__ import annotations

import dataclasses
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
        with self.file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            begin, _ = json.loads(stream.read(length))[self.name]["data_offsets"]
        stored = np.memmap(self.file, ml_dtypes.float8_e4m3fn, "r", 8 + length + begin, self.shape)
        return np.array(stored[index])  # a copy, so that nothing stays mapped into memory
