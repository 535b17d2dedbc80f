"""One host of a job that loads a checkpoint. It prints how much of each tensor it read, as JSON."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tddpo_jax.config.schema import HostsConfig, MeshConfig
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.system import hosts
from tddpo_jax.weights import hugging_face

READ: dict[str, int] = {}


class Recorded:
    """A stored tensor that counts the values read from it."""

    def __init__(self, name: str, stored: Any) -> None:
        self.name, self.stored = name, stored

    def get_shape(self) -> list[int]:
        return self.stored.get_shape()

    def get_dtype(self) -> str:
        return self.stored.get_dtype()

    def __getitem__(self, index: Any) -> np.ndarray:
        values = self.stored[index]
        READ[self.name] = READ.get(self.name, 0) + math.prod(values.shape)
        return values


def main() -> None:
    folder, coordinator, count, index = sys.argv[1:]
    hosts.join(HostsConfig(coordinator=coordinator, count=int(count), index=int(index)))
    tensors = hugging_face.expected_tensors
    hugging_face.expected_tensors = lambda files, expected: (
        (n, Recorded(n, stored)) for n, stored in tensors(files, expected)
    )
    hugging_face.load(Path(folder), make_mesh(MeshConfig(fsdp=-1)))
    print(json.dumps(READ))


if __name__ == "__main__":
    main()
