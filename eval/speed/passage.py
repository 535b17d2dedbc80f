"""Importing and exporting a checkpoint in a process of its own, with its time and its memory."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from tddpo_jax.config.schema import MeshConfig
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.system.cache import use_compilation_cache
from tddpo_jax.weights import hugging_face

from .disk_rate import to_disk


@dataclasses.dataclass(frozen=True)
class Passage:
    """Memory and time of importing and exporting."""

    runtime_bytes: int  # resident after a tiny model's passage, before the first weight
    weight_bytes: int  # the sharded model, over all devices
    import_peak_bytes: int  # the most ever resident until the import was done
    peak_bytes: int  # the most ever resident
    import_seconds: float
    export_seconds: float  # until the files are on the disk


def import_and_export(folder: Path, devices: int, dtype: str) -> Passage:
    """Loads `folder`/source onto `devices` virtual CPU devices (fsdp), and writes `folder`/output.

    It must run in a fresh process, because the kernel's peak covers a process's whole life.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    use_compilation_cache()
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices, tensor=1))
    tiny = hugging_face.load(folder / "tiny", mesh, jnp.dtype(dtype))
    hugging_face.export(tiny, folder / "tiny", folder / "tiny output", jnp.bfloat16)
    runtime = _resident("VmRSS")
    start = time.perf_counter()
    model = jax.block_until_ready(hugging_face.load(folder / "source", mesh, jnp.dtype(dtype)))
    imported, import_peak = time.perf_counter(), _resident("VmHWM")
    hugging_face.export(model, folder / "source", folder / "output", jnp.bfloat16)
    for file in (folder / "output").iterdir():
        to_disk(file)
    exported = time.perf_counter()
    return Passage(
        runtime_bytes=runtime,
        weight_bytes=_device_bytes(model),
        import_peak_bytes=import_peak,
        peak_bytes=_resident("VmHWM"),
        import_seconds=imported - start,
        export_seconds=exported - imported,
    )


def _device_bytes(model: Decoder) -> int:
    """Bytes of the weights on all devices. A replicated weight counts on every device."""
    arrays = jax.tree.leaves(nnx.state(model, nnx.Param))
    return sum(shard.data.nbytes for array in arrays for shard in array.addressable_shards)


def _resident(field: str) -> int:
    """Bytes of a memory field of this process."""
    return kibibytes(Path("/proc/self/status"), field) * 1024


def kibibytes(file: Path, field: str) -> int:
    """A field of one of the kernel's files, which only Linux has."""
    lines = file.read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))
