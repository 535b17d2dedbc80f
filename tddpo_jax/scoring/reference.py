"""Log-probabilities of whole data sets, and those of the reference, computed once and kept.

The reference is the policy before its first step, run through the same compiled program. What it
says depends on no loss, beta, tau or seed, so a whole grid shares one pass, and no second model
stays in memory.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from tddpo_jax.batches.layout import Batch, Pair, Shape
from tddpo_jax.batches.packing import pack, unpack
from tddpo_jax.placement.shardings import place, row_sharding, rows_here
from tddpo_jax.system.hosts import agree, first_only
from tddpo_jax.training.step import Frozen

# Pairs packed together, and micro-batches the host may be ahead of the device.
GROUP_PAIRS = 1024
IN_FLIGHT = 2

Progress = Callable[[int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def ahead(
    compute: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Iterator[Iterator[Result]]:
    """`compute` of every item, in order, by a thread that keeps `count` results ready.

    What `compute` raises is raised where its result is asked for.
    """

    def results() -> Iterator[Result]:
        futures: collections.deque[Future[Result]] = collections.deque()
        for item in items:
            futures.append(pool.submit(compute, item))
            if len(futures) > count:
                yield futures.popleft().result()
        for future in futures:
            yield future.result()

    pool = ThreadPoolExecutor(max_workers=1)
    try:
        yield results()
    finally:
        pool.shutdown(cancel_futures=True)


def place_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Spreads the rows of a micro-batch over the mesh; each host places those of its devices."""
    return jax.tree.map(lambda x: place(x, row_sharding(mesh)), batch)


def log_probs(
    run: Callable[[nnx.State, Frozen, Batch], tuple[Array, Array]],
    trainable: nnx.State,
    frozen: Frozen,
    pairs: Sequence[Pair],
    shapes: Sequence[Shape],
    mesh: Mesh,
    progress: Progress | None = None,
) -> tuple[Float[np.ndarray, "M pairs 2"], Float[np.ndarray, "M pairs 2"]]:
    """log pi(y | x) and the exact KL to the reference (or zeros) of every branch, in nats, float32.

    Args:
        run: `Program.log_probs`, or its form for one member.
        progress: told (pairs done, all pairs).

    Returns:
        log-probs and KLs, each `[M, pairs, 2]`: members, pairs, (chosen, rejected).
    """
    if not pairs:
        return np.zeros((1, 0, 2), np.float32), np.zeros((1, 0, 2), np.float32)
    groups = [pairs[first : first + GROUP_PAIRS] for first in range(0, len(pairs), GROUP_PAIRS)]
    here = functools.partial(rows_here, mesh)
    parts, done = [], 0
    with ahead(lambda group: pack(group, shapes, here=here), groups, 1) as packed:
        for group, batches in zip(groups, packed, strict=True):
            values: list[Any] = []
            waiting: collections.deque = collections.deque()
            for batch in batches:
                waiting.append(run(trainable, frozen, place_batch(batch, mesh)))
                if len(waiting) > IN_FLIGHT:
                    values.append(jax.device_get(waiting.popleft()))
                done += int(np.sum(batch.pair >= 0))
                if progress is not None:
                    progress(done, len(pairs))
            values += [jax.device_get(value) for value in waiting]
            columns = zip(*values, strict=True)
            parts.append([unpack(batches, column, len(group)) for column in columns])
    logps, kls = (np.concatenate(column, axis=-2) for column in zip(*parts, strict=True))
    return logps, kls


def reference_log_probs(
    compute: Callable[[], Float[np.ndarray, "pairs 2"]], cache: Path, **depends_on: Any
) -> Float[np.ndarray, "pairs 2"]:
    """The reference's log-probs from the cache, or computed and put there.

    Args:
        compute: runs the reference pass.
        cache: folder of the cache.
        depends_on: everything the values depend on, as plain data; its hash is their name.
    """
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    path = cache / "reference" / f"{key}.npy"
    values = agree(lambda: _stored(path))
    if values is None:
        values = compute()
        _store(path, values)
    return values


def _stored(path: Path) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, BadZipFile):
        warnings.warn(f"{path} is damaged; computing the reference again", stacklevel=2)
        return None


@first_only
def _store(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.save(file, values)
    partial.replace(path)
