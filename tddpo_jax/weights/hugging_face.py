"""Converts a Hugging Face folder to our tree and back, by one table of tensors.

Every bit is kept, except of tensors that the folder holds packed: those are written unpacked.
Tensors are read one by one from safetensors and placed straight onto their shardings. So host
memory holds one tensor and never a whole model. Each of several hosts reads only the part that lies
on its own devices. Unknown, missing and duplicate names are errors, and so are unknown config
attributes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int
from qwix import QArray
from safetensors import safe_open

from tddpo_jax.errors import UserError
from tddpo_jax.models import families
from tddpo_jax.models.architecture import DecoderConfig
from tddpo_jax.models.buffer import Buffer
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.models.tensor_table import Parameter, Tensor, hub_tensors, stored_tensors_of
from tddpo_jax.placement.mesh import check_mesh
from tddpo_jax.placement.shardings import parameter_spec, path_name
from tddpo_jax.system.agreement import agree, is_first, whole
from tddpo_jax.system.atomic import replace_folder, write_json
from tddpo_jax.system.foreign_code import not_run
from tddpo_jax.system.json_files import read_object
from tddpo_jax.weights.companions import Companions, write_companions
from tddpo_jax.weights.packed import (
    PackedTensor,
    PiecedTensor,
    expected_tensors,
    stored_whole,
    whole_tensors,
)
from tddpo_jax.weights.tensor_files import (
    WEIGHT_FILES,
    stored_dtype,
    stored_spec,
    stored_tensor,
    weight_files,
    write_tensors,
)

SHARD_BYTES = 5_000_000_000
WEIGHTS = (nnx.Param, Buffer)  # the types of variables that a checkpoint fills
# Shapes and dtypes of stored tensors, by name.
Specs = dict[str, jax.ShapeDtypeStruct]
# Takes a weight and its layer's name.
Quantize = Callable[[jax.Array, str], Any]


def read_config(folder: Path) -> DecoderConfig:
    """The shape of the model in a Hugging Face folder.

    Raises:
        UserError: `config.json` is missing, lacks an attribute, or has one that is unsupported or
            unknown.
    """
    path = folder / "config.json"
    attributes = read_object(path)
    config = families.read_config(attributes, str(path))
    if code := not_run(attributes):
        warnings.warn(f"{path}: {code}", stacklevel=2)
    return config


def checkpoint_dtype(folder: Path) -> np.dtype:
    """The dtype in which a checkpoint stores its embedding."""
    embedding = next(each for each in read_config(folder).parameters if each.path == "embed")
    return stored_dtype(folder, embedding.tensor.hub_name)


def load(
    folder: Path,
    mesh: Mesh,
    dtype: jnp.dtype | type | None = None,
    quantize: Quantize | None = None,
) -> Decoder:
    """Loads a model, sharded over the mesh.

    Args:
        folder: Hugging Face folder with `config.json` and safetensors.
        mesh: where to place the weights.
        dtype: dtype of the loaded weights; default: the checkpoint's own.
        quantize: takes a weight of a linear layer or of experts with the layer's name, and gives
            what the model holds in its place. It gets each tensor as it is read, so no unquantised
            model is ever in memory. Packed tensors keep the values and scales that are stored.

    Returns:
        The model with the folder's weights.

    Raises:
        UserError: the folder's config or tensors cannot be read; the message names the file.
    """
    config = read_config(folder)
    check_mesh(mesh, config)
    expected = hub_tensors(config.parameters)
    stored_files = weight_files(folder)
    files = whole_tensors(stored_files, expected)
    _check_names(folder, files, expected, config)
    _say_dropped(folder, files, config)
    arrays: dict[str, Any] = {}
    for name, stored in expected_tensors(stored_files, expected):
        parameter, place = expected[name]
        path, spec = parameter.path, parameter_spec(parameter)
        own_dtype = jnp.float32 if parameter.tensor.kind == "buffer" else dtype
        if place is None:
            arrays[path] = _placed(stored, parameter, NamedSharding(mesh, spec), own_dtype)
            continue
        one_layer = NamedSharding(mesh, PartitionSpec(*spec[1:]))
        if quantize is None or parameter.tensor.kind not in ("linear", "experts"):
            tensor: Any = _placed(stored, parameter, one_layer, own_dtype)
        else:
            tensor = _quantized(stored, parameter, one_layer, dtype, quantize)
        if path not in arrays:
            arrays[path] = jax.tree.map(
                functools.partial(_zeros, len(parameter.layers or ())), tensor
            )
        found, others = _dtypes(tensor), _dtypes(arrays[path])
        if found != others:
            raise UserError(f"{files[name]}: {name} is {found}, but other layers are {others}")
        arrays[path] = _with_layer(arrays[path], tensor, place)
    repeated = [each.tensor for each in config.parameters if each.tensor.repeated_as in files]
    agree(lambda: _check_repeated(folder, files, repeated))
    abstract = jax.eval_shape(lambda key: Decoder(config, key), jax.random.key(0))
    graphdef, state = nnx.split(abstract, WEIGHTS)
    filled = jax.tree_util.tree_map_with_path(lambda p, _: arrays[path_name(p)], state)
    return nnx.merge(graphdef, filled)


def _placed(stored: Any, parameter: Parameter, sharding: NamedSharding, dtype: Any) -> jax.Array:
    """Reads a tensor from its file onto its devices.

    Each host reads once the smallest block that covers the parts of all its devices. A tensor that
    needs a transform is read whole. Of one in pieces, each part is read once for all devices that
    hold it.
    """
    shape, transform = parameter.shape, parameter.tensor.transform
    if isinstance(stored, PiecedTensor):
        read_once = functools.cache(functools.partial(stored.part, dtype=dtype))
        return jax.make_array_from_callback(
            shape, sharding, lambda index: read_once(*_spans(index, shape))
        )
    parts = sharding.addressable_devices_indices_map(shape).values()
    bounds = [_spans(part, shape) for part in parts]
    first = [min(start for start, _ in axis) for axis in zip(*bounds, strict=True)]
    last = [max(stop for _, stop in axis) for axis in zip(*bounds, strict=True)]
    held = tuple(map(slice, first, last))
    read = stored[held] if transform is None else transform.load(stored[:])[held]
    read = read if dtype is None else read.astype(dtype, copy=False)

    def part(index: Any) -> np.ndarray:
        moved = zip(_spans(index, shape), first, strict=True)
        return read[tuple(slice(start - zero, stop - zero) for (start, stop), zero in moved)]

    return jax.make_array_from_callback(shape, sharding, part)


def _spans(index: Any, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The (start, stop) of an index along each axis of the shape."""
    return [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]


def _quantized(
    stored: Any, parameter: Parameter, sharding: NamedSharding, dtype: Any, quantize: Quantize
) -> Any:
    """A weight in few bits: as it is stored if it is packed, or else quantised."""
    parts = stored.quantized() if isinstance(stored, PackedTensor) else None
    if parts is None:
        found = quantize(_placed(stored, parameter, sharding, dtype), parameter.name)
        _check_blocks(parameter, found.scale.shape[-1], sharding)
        return found
    transform = parameter.tensor.transform
    values, scales = parts if transform is None else map(transform.load, parts)
    _check_blocks(parameter, scales.shape[-1], sharding)
    return QArray(
        *(
            jax.make_array_from_callback(part.shape, sharding, part.__getitem__)
            for part in (values, scales)
        )
    )


def _check_blocks(parameter: Parameter, blocks: int, sharding: NamedSharding) -> None:
    """Refuses experts whose blocks of inputs the devices cannot share. Linear layers are gathered.

    Args:
        parameter: the weight.
        blocks: number of blocks of its inputs.
        sharding: of one layer's weight.
    """
    devices = parameter.shape[-1] // sharding.shard_shape(parameter.shape)[-1]
    if parameter.tensor.kind == "experts" and blocks % devices:
        raise UserError(
            f"mesh.tensor: {devices} does not divide the {blocks} blocks of inputs of "
            f"{parameter.name} in four bits"
        )


def _dtypes(tensor: jax.Array | QArray) -> str:
    """The dtype, or those of values in few bits and of their scales."""
    return " and ".join(str(leaf.dtype) for leaf in jax.tree.leaves(tensor))


def _zeros(layers: int, layer: jax.Array) -> jax.Array:
    """Room for a stack of such layers."""
    assert isinstance(layer.sharding, NamedSharding)
    stacked = NamedSharding(layer.sharding.mesh, PartitionSpec(None, *layer.sharding.spec))
    return jnp.zeros((layers, *layer.shape), layer.dtype, device=stacked)


@jax.jit(donate_argnums=0)
def _with_layer(stacked: Any, layer: Any, number: Int[Array, ""]) -> Any:
    return jax.tree.map(
        lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, number, axis=0),
        stacked,
        layer,
    )


def _check_names(
    folder: Path, files: dict[str, Path], expected: Collection[str], config: DecoderConfig
) -> None:
    for name in expected:
        if name not in files:
            raise UserError(f"{folder}: tensor {name} is missing")
    repeated = {each.tensor.repeated_as for each in config.parameters}
    for name in files:
        not_read = name.endswith(config.derived) or name.startswith(config.carried + config.dropped)
        if name not in expected and name not in repeated and not not_read:
            raise UserError(f"{files[name]}: tensor {name} is unknown")
        if name.startswith(config.carried):
            stored_spec(files[name], name)  # an export could not hold another dtype


def _say_dropped(folder: Path, files: Collection[str], config: DecoderConfig) -> None:
    for beginning in config.dropped:
        if any(name.startswith(beginning) for name in files):
            warnings.warn(
                f"{folder}: {beginning}* predicts further tokens; it is not read, and exports do "
                "not hold it",
                stacklevel=3,
            )


def _check_repeated(folder: Path, files: dict[str, Path], repeated: Sequence[Tensor]) -> None:
    """Refuses a checkpoint in which the second copy of a tensor differs from the first."""
    for tensor in repeated:
        pair = []
        for name in (str(tensor.repeated_as), tensor.hub_name):
            with safe_open(files[name], "np") as tensors:
                pair.append(tensors.get_tensor(name))
        if not np.array_equal(*pair):
            problem = f"{tensor.repeated_as} must repeat {tensor.hub_name}, but differs from it"
            raise UserError(f"{folder}: {problem}")


def export(
    model: Decoder,
    source: Path,
    output: Path,
    dtype: jnp.dtype | type | None = None,
    companions: Companions | None = None,
) -> None:
    """Writes a Hugging Face folder with our weights and copies of all else that `source` holds.

    Tensors that the source holds packed are written unpacked.

    Every host must call this function, and the first one writes. The folder appears whole or not at
    all. Each file holds at most `SHARD_BYTES` of tensors. Names and index are those of
    transformers.

    Args:
        model: the weights.
        source: the Hugging Face folder from which the model was loaded.
        output: the folder to write; replaced if it exists.
        dtype: dtype of the stored tensors, except of buffers; default: the model's own.
        companions: what replaces files of `source`, and comes beside them.
    """
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model, WEIGHTS))
    arrays = {path_name(path): leaf for path, leaf in leaves}
    parameters = model.config.parameters
    ours, stored = hub_tensors(parameters), stored_tensors_of(parameters)
    carried = _carried(source, model.config)
    specs = {name: _spec(arrays, ours[of.whole][0], dtype) for name, of in stored.items()}
    specs |= {name: stored_spec(file, name) for name, file in carried.items()}

    def whole_tensor(name: str) -> np.ndarray:
        parameter, place = ours[name]
        spec = _spec(arrays, parameter, dtype)
        host = _host(arrays[parameter.path], place, spec.dtype)
        transform = parameter.tensor.transform
        return host if transform is None else transform.export(host)

    # The pieces of a layer's two tensors take turns in a file, so both stay on the host meanwhile.
    in_pieces = functools.lru_cache(maxsize=2)(whole_tensor)

    def tensor(name: str) -> np.ndarray:
        if name in carried:
            return stored_tensor(carried[name], name)[:]
        whole_name, piece = stored[name]
        return in_pieces(whole_name)[piece] if piece else whole_tensor(whole_name)

    shards = _shards(specs)
    files = [WEIGHT_FILES[0]]
    if len(shards) > 1:
        of = f"of-{len(shards):05d}.safetensors"
        files = [f"model-{number:05d}-{of}" for number in range(1, len(shards) + 1)]
    with replace_folder(output) if is_first() else contextlib.nullcontext() as folder:
        if folder is not None:
            for companion in companion_files(source):
                shutil.copyfile(companion, folder / companion.name)
            _describe(folder / "config.json")
            if companions is not None:
                write_companions(companions, folder)
        for file, shard in zip(files, shards, strict=True):
            path = Path(os.devnull) if folder is None else folder / file
            # All hosts take part in gathering each tensor, in the same order.
            write_tensors(path, shard, tensor)
        if folder is not None and len(shards) > 1:
            _write_index(folder / WEIGHT_FILES[1], files, shards)


def _describe(path: Path) -> None:
    """Gives an export's `config.json` what differs from that of its source."""
    attributes = read_object(path)
    exported = families.exported_attributes(attributes)
    if exported != attributes:
        write_json(path, exported)


def _carried(source: Path, config: DecoderConfig) -> dict[str, Path]:
    """The tensors that an export copies from its source, each with its file.

    Buffers are among them, unless the source holds them packed.
    """
    buffers = hub_tensors(each for each in config.parameters if each.tensor.kind == "buffer")
    if not buffers and not config.carried:
        return {}  # the source may be a config alone
    files = weight_files(source)
    copied = stored_whole(files, buffers)
    return {
        name: file
        for name, file in files.items()
        if name in copied or name.startswith(config.carried)
    }


def companion_files(source: Path) -> list[Path]:
    """The files of a Hugging Face folder that hold no weights: config, tokenizer, template."""
    kept = (".json", ".model", ".jinja", ".txt")
    weights = (".safetensors.index.json", ".bin.index.json")
    return [
        file
        for file in sorted(source.iterdir())
        if file.is_file() and file.name.endswith(kept) and not file.name.endswith(weights)
    ]


def _host(array: jax.Array, place: int | None, dtype: np.dtype) -> np.ndarray:
    """A tensor of the checkpoint on the host, before its transform."""
    part = array if place is None else array[place]
    if not part.is_fully_addressable:
        return whole(part).astype(dtype, copy=False)
    host = np.empty(part.shape, dtype)
    for shard in part.addressable_shards:
        if shard.replica_id == 0:
            # A JAX array keeps its host copy once fetched. So fetch from copies of the model's own.
            host[shard.index] = shard.data.copy() if place is None else shard.data
    return host


def _spec(arrays: dict[str, jax.Array], parameter: Parameter, dtype: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a tensor, or of a piece of one, as the checkpoint stores it."""
    is_own = dtype is None or parameter.tensor.kind == "buffer"
    stored = arrays[parameter.path].dtype if is_own else dtype
    return jax.ShapeDtypeStruct(parameter.piece_shape, stored)


def _bytes(spec: jax.ShapeDtypeStruct) -> int:
    return spec.size * spec.dtype.itemsize


def _shards(specs: Specs) -> list[Specs]:
    shards: list[Specs] = [{}]
    filled = 0
    for name, spec in specs.items():
        size = _bytes(spec)
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = spec
        filled += size
    return shards


def _write_index(path: Path, files: list[str], shards: list[Specs]) -> None:
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    total = sum(_bytes(spec) for shard in shards for spec in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2) + "\n")
