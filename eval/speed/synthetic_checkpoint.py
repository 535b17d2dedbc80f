"""A checkpoint of random weights: writing one, and comparing two."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub.serialization import split_state_dict_into_shards_factory
from safetensors import safe_open

from tddpo_jax.models.architecture import DecoderConfig
from tddpo_jax.models.tensor_table import hub_tensors
from tddpo_jax.system.json_files import read_object
from tddpo_jax.weights import hugging_face
from tddpo_jax.weights.tensor_files import WEIGHT_FILES, write_tensors


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
        get_storage_size=tensor_bytes,
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


def tensor_bytes(spec: jax.ShapeDtypeStruct) -> int:
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
