"""The time of a decode step, beside the time that the device needs to read what a step reads.

Every new token reads all weights once, and the cached keys and values of its row. Nothing else is
large. The device's bandwidth is measured in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tddpo_jax.adapters.adapter_set import adapter_set
from tddpo_jax.config.schema import MeshConfig
from tddpo_jax.errors import UserError
from tddpo_jax.generation.batching import cached_numbers, continue_prompts
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.placement.shardings import bytes_of_device

from .case import Case, random_model

READ_SHAPE = (16384, 8192)  # 512 MiB of float32
LEAST_BYTES = 256 * 2**20
REPEATS = 5  # timed calls, of which the fastest counts


def measured_bandwidth(shape: tuple[int, int] = READ_SHAPE) -> float:
    """Bytes read per second: the best of a few products of a large matrix with a vector.

    A copy would also measure the first touch of new memory, which decoding does not do.
    """
    matrix, vector = jnp.ones(shape, jnp.float32), jnp.ones(shape[1], jnp.float32)
    product = jax.jit(lambda matrix, vector: matrix @ vector)
    return matrix.nbytes / _best(lambda: product(matrix, vector))


def copy_bandwidth(shape: tuple[int, int] = READ_SHAPE) -> float:
    """Bytes read and written per second: the best of a few changes of an array in place."""
    negative = jax.jit(jnp.negative, donate_argnums=0)
    array = jnp.ones(shape, jnp.float32)

    def change() -> jax.Array:
        nonlocal array
        array = negative(array)
        return array

    return 2 * array.nbytes / _best(change)


def _best(program: Callable[[], jax.Array]) -> float:
    """Seconds of the fastest call. A first call compiles and does not count."""
    program().block_until_ready()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        program().block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure_decoding(
    case: Case, rows: int, prompt: int, new_tokens: int, read_shape: tuple[int, int] = READ_SHAPE
) -> dict[str, Any]:
    """Tokens per second of `rows` prompts, and the share of the memory-bandwidth limit.

    A second run that stops after one token shows the time of the prefill, which is subtracted.

    Args:
        case: the model.
        rows: prompts decoded together.
        prompt: tokens of a prompt.
        new_tokens: new tokens of a prompt, at least 2.
        read_shape: the matrix that measures the bandwidth.

    Raises:
        UserError: no time is left after subtracting the prefill.
    """
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    dtype = jnp.dtype(case.dtype)
    model = random_model(case, mesh, case.dtype)
    adapters = adapter_set([model])
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, case.model.vocabulary, prompt, np.int32) for _ in range(rows)]
    keys = [(0, row) for row in range(rows)]

    def seconds(count: int) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            sampling = [Sampling(max_new_tokens=count)] * rows
            continue_prompts(
                adapters, prompts, sampling, keys, stop_ids=(), bos=None, mesh=mesh, dtype=dtype
            )
            best = min(best, time.perf_counter() - start)
        return best

    decode = (seconds(new_tokens) - seconds(1)) / (new_tokens - 1)
    if decode <= 0:
        raise UserError(f"--new-tokens: {new_tokens} take no longer than 1; give more")
    weights = bytes_of_device(model)
    per_token = cached_numbers(case.model) * dtype.itemsize
    read = weights + rows * per_token * (prompt + new_tokens / 2)
    bandwidth = measured_bandwidth(read_shape)
    return {
        "rows": rows,
        "decode_step_seconds": decode,
        "tokens_per_second": rows / decode,
        "bytes_read_per_step": read,
        "bandwidth_bytes_per_second": bandwidth,
        # Bytes that fit a processor's cache say nothing about its memory, so there is no share.
        "bandwidth_share": read / decode / bandwidth if read >= LEAST_BYTES else None,
    }
