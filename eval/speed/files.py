"""`python -m eval.speed.files`: imports and exports a checkpoint, bit for bit, in bounded memory.

    python -m eval.speed.files --layers 32 --fsdp 8 --folder DIR                    in bfloat16
    python -m eval.speed.files --layers 8 --fsdp 8 --folder DIR --dtype float32     as training does

The command writes a synthetic Llama (random bfloat16 weights, by default in the shape of
Llama-2-7B) as a sharded Hugging Face folder under DIR. A separate process imports it onto virtual
CPU devices and exports it again. Then the tensors are compared. The exit status is 1 if a bit
differs, or if the process held more than the sharded weights and one shard file. What it holds
after the same passage of a tiny model does not count: Python, JAX and its compiler. glibc must give
freed memory back (`GIVE_BACK`), so that the peak shows what is held. All written files are removed
again.

Memory is the kernel's `VmHWM`: the most pages that were ever resident. It includes pages of mapped
files, but not those of the file cache. With `--dtype float32` the weights are held as float32 and
exported as bfloat16. The disk's rates are those of plain files of the size of a shard. They are
written to the disk (fsync), and read after the kernel was asked to forget them. This is done before
and after the passage, and the faster rate counts. A disk with a cache of its own may look too fast.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.commands.options import Parser
from tddpo_jax.config.schema import MeshConfig
from tddpo_jax.errors import UserError
from tddpo_jax.placement.mesh import check_mesh
from tddpo_jax.planning.memory import abstract_mesh
from tddpo_jax.system.json_files import read_object
from tddpo_jax.system.paths import SHAPES
from tddpo_jax.weights import hugging_face

from .disk_rate import disk_rates, to_disk
from .passage import Passage, import_and_export, kibibytes
from .synthetic_checkpoint import (
    differing_tensor,
    tensor_bytes,
    tensor_specs,
    write_checkpoint,
    write_config,
)

LLAMA_2_7B = SHAPES / "llama-2-7b"
# These attributes make any config.json that of a tiny model.
TINY = {
    "num_hidden_layers": 1,
    "vocab_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 8,
}
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
RUNTIME_BYTES = 2**30  # more than Python, JAX and the compiled programs hold


def measure_files(
    folder: Path, attributes: dict[str, Any], devices: int, dtype: str, shard_bytes: int
) -> dict[str, Any]:
    """Writes, imports, exports and compares a checkpoint inside `folder`; returns the figures."""
    source = folder / "source"
    write_checkpoint(
        folder / "tiny", attributes | TINY | {"hidden_size": 16 * devices}, shard_bytes
    )
    write_checkpoint(source, attributes, shard_bytes)
    for file in source.iterdir():
        to_disk(file)
    shards = [file.stat().st_size for file in source.glob("*.safetensors")]
    rates = [disk_rates(folder, max(shards))]
    passage = _in_fresh_process(folder, devices, dtype)
    rates.append(disk_rates(folder, max(shards)))
    write_rate, read_rate = (max(rate) for rate in zip(*rates, strict=True))
    held = passage.peak_bytes - passage.runtime_bytes
    allowed = passage.weight_bytes + max(shards)
    return {
        "layers": attributes["num_hidden_layers"],
        "devices": devices,
        "dtype": dtype,
        "checkpoint_bytes": sum(shards),
        "shard_files": len(shards),
        "largest_shard_bytes": max(shards),
        **dataclasses.asdict(passage),
        "held_bytes": held,
        "allowed_bytes": allowed,
        "within_bound": held <= allowed,
        "disk_write_rate": write_rate,
        "disk_read_rate": read_rate,
        "import_share_of_disk": sum(shards) / passage.import_seconds / read_rate,
        "export_share_of_disk": sum(shards) / passage.export_seconds / write_rate,
        "differing_tensor": differing_tensor(source, folder / "output"),
    }


def _in_fresh_process(folder: Path, devices: int, dtype: str) -> Passage:
    os.environ.update(GIVE_BACK)  # glibc reads these when a process starts
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(import_and_export, folder, devices, dtype).result()


def _check_room(folder: Path, attributes: dict[str, Any], dtype: str, shard_bytes: int) -> None:
    """Refuses a model that memory or disk cannot hold, before anything large is written."""
    write_config(folder / "shape", attributes)
    specs = tensor_specs(hugging_face.read_config(folder / "shape"))
    elements = sum(spec.size for spec in specs.values())
    needed = elements * jnp.dtype(dtype).itemsize + RUNTIME_BYTES
    available = kibibytes(Path("/proc/meminfo"), "MemAvailable") * 1024
    if needed > available:
        layers = attributes["num_hidden_layers"]
        raise UserError(
            f"--layers: {layers} in {dtype} need {needed / 1e9:.1f} GB of memory, "
            f"{available / 1e9:.1f} GB are available"
        )
    free, wanted = shutil.disk_usage(folder).free, 2 * sum(map(tensor_bytes, specs.values()))
    if wanted + shard_bytes > free:
        raise UserError(f"--folder: {wanted / 1e9:.1f} GB needed, {free / 1e9:.1f} GB are free")


def _parser() -> Parser:
    parser = Parser(prog="eval.speed.files", description="Imports and exports a checkpoint.")
    parser.add_argument("--folder", default=".", help="folder where files are written and removed")
    parser.add_argument("--model", default=str(LLAMA_2_7B), help="folder with a config.json")
    parser.add_argument("--layers", type=int, help="layers (default: as in config.json)")
    parser.add_argument("--fsdp", type=int, default=8, help="virtual CPU devices (default 8)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--shard-bytes", type=int, default=hugging_face.SHARD_BYTES)
    parser.add_argument("--json", action="store_true", help="JSON instead of lines")
    return parser


def _command(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    for name in ("layers", "fsdp", "shard_bytes"):
        number = getattr(given, name)
        if number is not None and number < 1:
            raise UserError(f"--{name.replace('_', '-')}: must be above 0, got {number}")
    mesh = abstract_mesh(MeshConfig(data=1, fsdp=given.fsdp, tensor=1))
    check_mesh(mesh, hugging_face.read_config(Path(given.model)))
    attributes = read_object(Path(given.model) / "config.json")
    attributes["num_hidden_layers"] = given.layers or attributes["num_hidden_layers"]
    Path(given.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        _check_room(Path(folder), attributes, given.dtype, given.shard_bytes)
        figures = measure_files(
            Path(folder), attributes, given.fsdp, given.dtype, given.shard_bytes
        )
    if given.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:22} {value:.4g}" if isinstance(value, float) else f"{name:22} {value}")
    return int(not figures["within_bound"] or figures["differing_tensor"] is not None)


def main() -> int:
    """The command line."""
    return run_command(_command, sys.argv[1:], resumes=False)


if __name__ == "__main__":
    sys.exit(main())
