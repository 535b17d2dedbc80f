"""Log-probabilities of whole data sets."""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from tddpo_jax.batches.layout import Batch, Example, Shape
from tddpo_jax.batches.packing import choose_shapes, pack, unpack
from tddpo_jax.losses.logprobs import branch_logps, branch_misses
from tddpo_jax.models.attention.kernels import KERNELS
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.placement.computation import Computation
from tddpo_jax.placement.mesh import row_devices
from tddpo_jax.placement.shardings import place, row_sharding, rows_here
from tddpo_jax.scoring.forward import hidden_states

GROUP_EXAMPLES = 1024  # number of examples that one call packs
IN_FLIGHT = 2  # number of micro-batches that the host may be ahead of the device
# Shapes of micro-batches are chosen as for training steps with this number of examples.
EXAMPLES_OF_A_STEP = 128

Progress = Callable[[int, int], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def ahead(
    compute: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Iterator[Iterator[Result]]:
    """Computes every item in a thread that runs ahead of its reader.

    An exception of `compute` is raised when its result is read.

    Args:
        compute: called with each item, in order.
        items: the items.
        count: number of results that the thread may be ahead.

    Yields:
        An iterator over the results, in the order of the items.
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
    """Spreads the rows of a micro-batch over the mesh. Each host places its own devices' rows."""
    return jax.tree.map(lambda x: place(x, row_sharding(mesh)), batch)


def log_probs(
    run: Callable[[Batch], tuple[Array, Array]],
    examples: Sequence[Example],
    shapes: Sequence[Shape],
    mesh: Mesh,
    progress: Progress | None = None,
) -> tuple[Float[np.ndarray, "M examples values"], Float[np.ndarray, "M examples N"]]:
    """log pi(y | x) of every response and its exact KL to the reference (or zeros), in nats.

    Args:
        run: gives the log-probs and the KLs of a placed micro-batch, `[M, B, P, N]` each.
        examples: all examples of the data set.
        shapes: the shapes that a micro-batch may have, longest first.
        mesh: the devices over which the rows of a micro-batch are spread.
        progress: called with (number of finished examples, number of all examples).

    Returns:
        The log-probs and the KLs, float32, `[M, examples, N]`: members, examples, responses. The
        log-probs of tails follow those of the responses if `run` gives them.
    """
    if not examples:
        nothing = np.zeros((1, 0, shapes[0].responses), np.float32)
        return nothing, nothing
    firsts = range(0, len(examples), GROUP_EXAMPLES)
    groups = [examples[first : first + GROUP_EXAMPLES] for first in firsts]
    here = functools.partial(rows_here, mesh)
    parts, done = [], 0
    with ahead(lambda group: pack(group, shapes, here=here), groups, 1) as packed:
        for group, batches in zip(groups, packed, strict=True):
            values: list[Any] = []
            waiting: collections.deque = collections.deque()
            for batch in batches:
                waiting.append(run(place_batch(batch, mesh)))
                if len(waiting) > IN_FLIGHT:
                    values.append(jax.device_get(waiting.popleft()))
                done += int(np.sum(batch.example >= 0))
                if progress is not None:
                    progress(done, len(examples))
            values += [jax.device_get(value) for value in waiting]
            columns = zip(*values, strict=True)
            parts.append([unpack(batches, column, len(group)) for column in columns])
    logps, kls = (np.concatenate(column, axis=-2) for column in zip(*parts, strict=True))
    return logps, kls


def example_log_probs(
    policy: Decoder,
    examples: Sequence[Example],
    how: Computation,
    mesh: Mesh,
    *,
    with_tails: bool = False,
) -> Float[np.ndarray, "examples values"]:
    """log pi(y | x) of every response of every example, in nats, float32.

    Args:
        policy: the model, whose parameters lie on `mesh`.
        examples: prompts with equally many responses.
        how: how the model is computed.
        mesh: the devices over which rows are spread.
        with_tails: whether the log-probs of the tails follow, see `branch_logps`.
    """
    if not examples:
        return np.zeros((0, 0), np.float32)
    graphdef, weights = nnx.split(policy)

    @jax.jit
    def run(weights: nnx.State, batch: Batch) -> tuple[jax.Array, jax.Array]:
        policy = nnx.merge(graphdef, weights)
        states, head = hidden_states(policy, batch, how), policy.head_weight
        logps = branch_logps(states, head, batch, with_tails=with_tails)[None]
        return logps, jnp.zeros_like(logps)

    shapes = _shapes(examples, how, mesh)
    return log_probs(functools.partial(run, weights), examples, shapes, mesh)[0][0]


def greedy_log_probs(
    model_of: Callable[[int], Decoder],
    examples: Sequence[Example],
    how: Computation,
    mesh: Mesh,
    progress: Progress | None = None,
) -> tuple[Float[np.ndarray, "examples N"], Bool[np.ndarray, "examples N"]]:
    """log pi(y | x) of every response, in nats, and whether greedy decoding gives the response.

    Args:
        model_of: gives the model for a batch of a number of rows.
        examples: prompts with equally many responses.
        how: how the model is computed.
        mesh: the devices over which rows are spread.
        progress: as for `log_probs`.
    """

    @jax.jit
    def run(model: Decoder, batch: Batch) -> tuple[jax.Array, jax.Array]:
        hidden, head = hidden_states(model, batch, how), model.head_weight
        return branch_logps(hidden, head, batch)[None], branch_misses(hidden, head, batch)[None]

    model_for = functools.cache(model_of)
    logps, misses = log_probs(
        lambda batch: run(model_for(len(batch.tokens)), batch),
        examples,
        _shapes(examples, how, mesh),
        mesh,
        progress,
    )
    return logps[0], misses[0] == 0


def _shapes(examples: Sequence[Example], how: Computation, mesh: Mesh) -> tuple[Shape, ...]:
    return choose_shapes(
        examples,
        EXAMPLES_OF_A_STEP,
        rows=row_devices(mesh),
        causal_rows=how.attention in KERNELS,
    )
