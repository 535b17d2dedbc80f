"""Runs many prompts through one compiled program, in as few batches as the memory allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from tddpo_jax.adapters.adapter_set import AdapterSet
from tddpo_jax.errors import UserError
from tddpo_jax.generation.decode import Prompts, cache_slots, generate_rows
from tddpo_jax.generation.sampling import (
    Sampler,
    Sampling,
    check,
    check_keys,
    room_for_prompt,
    row_keys,
)
from tddpo_jax.models.architecture import DecoderConfig, kinds_of_layers
from tddpo_jax.placement.mesh import row_devices
from tddpo_jax.placement.shardings import place, row_sharding
from tddpo_jax.system.agreement import agree

SHORTEST_BUCKET = 32  # tokens
CPU_CACHE_BYTES = 2_000_000_000  # size of the cache on a CPU, where JAX reports no memory
# The cache's share of an accelerator's free memory. The prompts' activations need the rest.
CACHE_SHARE = 0.6


class Continuation(NamedTuple):
    """The new tokens of one prompt, including the end of turn if the model produced it."""

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    prompt_cut: bool  # True if the prompt did not fit and lost its beginning


def continue_prompts(
    models: AdapterSet,
    prompts: Sequence[Int[np.ndarray, " _"]],
    sampling: Sequence[Sampling],
    keys: Sequence[tuple[int, ...]],
    adapters: Sequence[int] | None = None,
    *,
    stop_ids: Sequence[int],
    bos: int | None,
    mesh: Mesh,
    dtype: Any,
) -> list[Continuation]:
    """Continues every prompt, in as few batches as the memory allows.

    If a prompt leaves too little room for its new tokens in the context, it loses its beginning but
    keeps its `bos`. The result flags it.

    Args:
        models: `adapter_set([model])`, or several adapters; the parameters lie on `mesh`.
        prompts: token ids of each prompt.
        sampling: settings of each prompt.
        keys: numbers that make the random key of each prompt, for example (seed, question, turn).
        adapters: number of each prompt's adapter, -1 for the base alone; default: the first.
        stop_ids: token ids that end an answer.
        bos: token id of the beginning of sequence; a prompt that is cut keeps it at its front.
        mesh: the devices; rows are spread over the axes data and fsdp.
        dtype: dtype of the computation.

    Returns:
        One continuation for each prompt, in the order of the prompts.

    Raises:
        UserError: a prompt is empty or holds an id that the model does not have; a setting is out
            of range; `max_new_tokens` leaves no room for a prompt in the context.
        ValueError: an adapter does not exist, or the keys are invalid.
    """
    requests = [
        _request(models, number, *one)
        for number, one in enumerate(
            zip(prompts, sampling, keys, adapters or [0] * len(prompts), strict=True)
        )
    ]
    check_keys(keys)
    if not requests:
        return []
    fitting = [_cut(request, models.model.config.context, bos) for request in requests]
    order = sorted(range(len(fitting)), key=lambda number: len(fitting[number].prompt))
    slots = cache_slots(*_shape(fitting))
    # The hosts' devices may have different amounts of free memory.
    capacity = agree(lambda: _rows_that_fit(models.model.config, slots, dtype, mesh))
    results: dict[int, Continuation] = {}
    for numbers in np.array_split(order, math.ceil(len(order) / capacity)):
        batch = [fitting[number] for number in numbers]
        answers = _continue(models, batch, stop_ids, mesh, dtype)
        results.update(zip(numbers.tolist(), answers, strict=True))
    return [
        results[number]._replace(prompt_cut=len(fitted.prompt) < len(request.prompt))
        for number, (fitted, request) in enumerate(zip(fitting, requests, strict=True))
    ]


class _Request(NamedTuple):
    prompt: Int[np.ndarray, " T"]
    sampling: Sampling
    key: tuple[int, ...]
    adapter: int


def _request(
    models: AdapterSet,
    number: int,
    prompt: Int[np.ndarray, " T"],
    sampling: Sampling,
    key: tuple[int, ...],
    adapter: int,
) -> _Request:
    config = models.model.config
    check(sampling)
    if not len(prompt):
        raise UserError(f"prompt {number} is empty")
    for token in (np.min(prompt), np.max(prompt)):
        if not 0 <= token < config.vocabulary:
            raise UserError(
                f"prompt {number} holds the id {token}, but the model's ids are 0 to "
                f"{config.vocabulary - 1}; a tokenizer of another model gives such ids"
            )
    if not -1 <= adapter < models.count:
        raise ValueError(f"prompt {number}: there is no adapter {adapter}")
    return _Request(prompt, sampling, key, adapter)


def _cut(request: _Request, context: int, bos: int | None) -> _Request:
    """The request with its prompt cut at the front until it fits the context."""
    prompt, room = request.prompt, room_for_prompt(context, request.sampling.max_new_tokens)
    if len(prompt) <= room:
        return request
    first = prompt[: int(prompt[0] == bos)]
    end = prompt[len(prompt) - (room - len(first)) :]
    return request._replace(prompt=np.concatenate([first, end]))


def _continue(
    models: AdapterSet, batch: list[_Request], stop_ids: Sequence[int], mesh: Mesh, dtype: Any
) -> list[Continuation]:
    """Runs one batch through the compiled program."""
    length, new = _shape(batch)
    # Rows that pad the batch copy the first one and get no new tokens.
    blank = batch[0]._replace(sampling=batch[0].sampling._replace(max_new_tokens=0))
    rows = batch + [blank] * (_row_bucket(len(batch), mesh) - len(batch))

    def put(values: Sequence[Any], kind: type) -> jax.Array:
        return place(np.asarray(values, kind), row_sharding(mesh))

    padded = [np.pad(row.prompt, (length - len(row.prompt), 0)) for row in rows]
    tokens, counts = generate_rows(
        models.for_rows([row.adapter for row in rows], mesh),
        Prompts(put(padded, np.int32), put([len(row.prompt) for row in rows], np.int32)),
        Sampler(
            temperature=put([row.sampling.temperature for row in rows], np.float32),
            top_k=put([row.sampling.top_k for row in rows], np.int32),
            top_p=put([row.sampling.top_p for row in rows], np.float32),
            key=row_keys(put([row.key for row in rows], np.uint32)),
        ),
        put([row.sampling.max_new_tokens for row in rows], np.int32),
        # Pad with -1, which is not a token, so that the program compiles for few numbers of stops.
        np.pad(np.asarray(stop_ids, np.int32), (0, -len(stop_ids) % 8), constant_values=-1),
        new=new,
        dtype=dtype,
        mesh=mesh,
    )
    found = zip(np.asarray(tokens)[: len(batch)], np.asarray(counts), strict=False)
    answers = [ids[:count].tolist() for ids, count in found]
    return [
        Continuation(ids, "stop" if ids[-1] in stop_ids else "length", False) for ids in answers
    ]


def _shape(batch: Sequence[_Request]) -> tuple[int, int]:
    """The number of places for prompt tokens and for new tokens."""
    longest = max(len(row.prompt) for row in batch)
    return _bucket(longest), _bucket(max(row.sampling.max_new_tokens for row in batch))


def _bucket(length: int) -> int:
    """The smallest of 32, 48, 64, 96, 128, … that is not below the length.

    So a program compiles for few lengths, and padding adds at most a half to a length above 32.
    """
    size = SHORTEST_BUCKET
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def _row_bucket(rows: int, mesh: Mesh) -> int:
    """The number of rows to compile for, at least `rows`.

    It is a power of two up to 4 and a multiple of 8 above, rounded up until the mesh's row devices
    share it evenly.
    """
    size = 8 * math.ceil(rows / 8) if rows > 4 else 2 ** (rows - 1).bit_length()
    devices = row_devices(mesh)
    return devices * math.ceil(size / devices)


def cached_numbers(config: DecoderConfig) -> int:
    """How many numbers the caches of all layers hold for one token."""
    return sum(count * layer.attention.cached_numbers for count, layer in kinds_of_layers(config))


def _rows_that_fit(config: DecoderConfig, slots: int, dtype: Any, mesh: Mesh) -> int:
    """The largest number of rows whose cache fits the devices, rounded as by `_row_bucket`."""
    row_bytes = cached_numbers(config) * slots * jnp.dtype(dtype).itemsize
    stats = mesh.local_devices[0].memory_stats()
    # Every tensor device holds latents whole. Keys and values of heads are shared.
    latent = any(layer.attention.cached is not None for _, layer in kinds_of_layers(config))
    devices = row_devices(mesh) if latent else mesh.size
    free = CPU_CACHE_BYTES // mesh.size
    if stats is not None:
        free = int(CACHE_SHARE * (stats["bytes_limit"] - stats["bytes_in_use"]))
    rows = max(free * devices // row_bytes, row_devices(mesh))
    return next(size for size in range(rows, 0, -1) if _row_bucket(size, mesh) <= rows)
