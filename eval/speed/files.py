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
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from huggingface_hub.serialization import split_state_dict_into_shards_factory
from safetensors import safe_open

from tddpo_jax.commands.exit_status import run_command
from tddpo_jax.commands.options import Parser
from tddpo_jax.config.schema import MeshConfig
from tddpo_jax.errors import UserError
from tddpo_jax.models.architecture import DecoderConfig
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.models.tensor_table import hub_tensors
from tddpo_jax.placement.mesh import check_mesh, make_mesh
from tddpo_jax.planning.memory import abstract_mesh
from tddpo_jax.system.cache import use_compilation_cache
from tddpo_jax.system.json_files import read_object
from tddpo_jax.system.paths import SHAPES
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.tensor_files import WEIGHT_FILES, write_tensors

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
BLOCK = 2**24  # bytes written or read at once while the disk is measured
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
RUNTIME_BYTES = 2**30  # more than Python, JAX and the compiled programs hold


# ---- the synthetic checkpoint --------------------------------------------------------------------


def write_checkpoint(folder: Path, attributes: dict[str, Any], shard_bytes: int) -> None:
    """Writes a Hugging Face folder of random bfloat16 weights. Memory holds one tensor at a time.

    Args:
        folder: the folder to make.
        attributes: the attributes of its `config.json`.
        shard_bytes: the largest size of the tensors in one file, as transformers' `max_shard_size`.
    """
    write_config(folder, attributes)
    specs = tensor_specs(hugging_face.read_config(folder))
    # The hub's own rule says which tensor goes to which file, and how the files are called.
    split = split_state_dict_into_shards_factory(
        specs,
        get_storage_size=_bytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    rng = np.random.default_rng(0)
    for file, names in split.filename_to_tensors.items():
        held = {name: specs[name] for name in names}
        write_tensors(folder / file, held, lambda name: _random_bfloat16(rng, specs[name].shape))
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / WEIGHT_FILES[1]).write_text(json.dumps(index, indent=2) + "\n")


def write_config(folder: Path, attributes: dict[str, Any]) -> None:
    """Makes a folder with a `config.json`."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(attributes, indent=2) + "\n")


def tensor_specs(config: DecoderConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """The tensors of a bfloat16 checkpoint by their Hugging Face names, in our table's order."""
    return {
        name: jax.ShapeDtypeStruct(parameter.hub_shape, jnp.bfloat16)
        for name, (parameter, _) in hub_tensors(config.parameters).items()
    }


def _bytes(spec: jax.ShapeDtypeStruct) -> int:
    return spec.size * spec.dtype.itemsize


def _random_bfloat16(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random finite numbers of either sign, from 2^-15 to 2 in size.

    Sign, mantissa and four exponent bits are random. Random bits are much quicker than random
    numbers. None may be a NaN, because its bits need not survive float32.
    """
    words = rng.integers(0, 2**64, -(-math.prod(shape) // 4), np.uint64)
    bits = words.view(np.uint16)[: math.prod(shape)]
    bits &= 0x87FF
    bits |= 0x3800
    return bits.view(jnp.bfloat16).reshape(shape)


# ---- in and out, in a process of its own ---------------------------------------------------------


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
    return _kibibytes(Path("/proc/self/status"), field) * 1024


def _kibibytes(file: Path, field: str) -> int:
    """A field of one of the kernel's files, which only Linux has."""
    lines = file.read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def differing_tensor(folder: Path, other: Path) -> str | None:
    """The first tensor that differs between two folders in any bit; None if none does."""
    files, others = (_files_of_tensors(path) for path in (folder, other))
    for name in sorted(files.keys() | others.keys()):
        if name not in files or name not in others:
            return name
        first, second = (_tensor(path[name], name) for path in (files, others))
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return name
        if not np.array_equal(first.view(np.uint16), second.view(np.uint16)):
            return name
    return None


def _files_of_tensors(folder: Path) -> dict[str, Path]:
    index = folder / WEIGHT_FILES[1]
    if index.exists():
        weight_map = read_object(index)["weight_map"]
        return {name: folder / file for name, file in weight_map.items()}
    file = folder / WEIGHT_FILES[0]
    with safe_open(file, "np") as tensors:
        return dict.fromkeys(tensors.keys(), file)


def _tensor(file: Path, name: str) -> np.ndarray:
    with safe_open(file, "np") as tensors:
        return tensors.get_tensor(name)


# ---- the disk ------------------------------------------------------------------------------------


def to_disk(file: Path) -> None:
    """Waits until a file is on the disk, and asks the kernel to forget its pages."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rates(folder: Path, size: int) -> tuple[float, float]:
    """Bytes per second of writing and of reading one plain file of `size` bytes."""
    file, block = folder / "rate", np.random.default_rng(0).bytes(BLOCK)
    start = time.perf_counter()
    with file.open("wb") as stream:
        for _ in range(-(-size // BLOCK)):
            stream.write(block)
    to_disk(file)
    written = time.perf_counter()
    buffer = bytearray(BLOCK)
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
    read = time.perf_counter()
    size = file.stat().st_size
    file.unlink()
    return size / (written - start), size / (read - written)


# ---- the measurement -----------------------------------------------------------------------------


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


# ---- the command line ----------------------------------------------------------------------------


def _check_room(folder: Path, attributes: dict[str, Any], dtype: str, shard_bytes: int) -> None:
    """Refuses a model that memory or disk cannot hold, before anything large is written."""
    write_config(folder / "shape", attributes)
    specs = tensor_specs(hugging_face.read_config(folder / "shape"))
    elements = sum(spec.size for spec in specs.values())
    needed = elements * jnp.dtype(dtype).itemsize + RUNTIME_BYTES
    available = _kibibytes(Path("/proc/meminfo"), "MemAvailable") * 1024
    if needed > available:
        layers = attributes["num_hidden_layers"]
        raise UserError(
            f"--layers: {layers} in {dtype} need {needed / 1e9:.1f} GB of memory, "
            f"{available / 1e9:.1f} GB are available"
        )
    free, wanted = shutil.disk_usage(folder).free, 2 * sum(map(_bytes, specs.values()))
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
    return run_command(_command, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
