"""Where the time of a micro-batch goes: each piece is a program of its own, forward and backward.

The pieces are computed without rematerialisation, and the compiler fuses nothing across them, so
they need not add up to the whole. `rest` is the remaining time of the whole: norms, rotations, the
embedding, adapters, dequantising, recomputing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tddpo_jax.batches.layout import Batch, score_count, stream_length
from tddpo_jax.batches.packing import pack
from tddpo_jax.losses.logprobs import branch_logps
from tddpo_jax.models.decoder import linear_layers
from tddpo_jax.models.flops import matmul_parameters, useful_flops
from tddpo_jax.models.linear import dense
from tddpo_jax.placement.computation import computation
from tddpo_jax.placement.mesh import make_mesh
from tddpo_jax.scoring.data_sets import place_batch
from tddpo_jax.scoring.forward import attention_over, view_of
from tddpo_jax.training.state import Totals

from .case import Case, load_pairs, matmul_rate, shapes_of, timed_pairs, trained_model
from .training import Trainer


def measure_pieces(case: Case) -> list[dict[str, Any]]:
    """Seconds, share of the whole, and useful operations of each piece of one micro-batch.

    The optimiser's update happens once a step. It has a row of its own, beside the whole.
    """
    pairs = load_pairs(case)
    trainer = Trainer(case, timed_pairs(case, pairs), shapes_of(case, pairs))
    first = trainer.pairs[: case.batch_pairs]
    packed = pack(first, trainer.shapes)[0]
    held = [first[number] for number in packed.example[packed.example >= 0]]
    batch = place_batch(packed, trainer.mesh)
    frozen = case.mode != "full"
    tokens, scores = sum(map(stream_length, held)), sum(map(score_count, held))
    passes = 2 if frozen else 3
    matmuls = 2 * passes * matmul_parameters(case.model) * tokens
    head = 2 * passes * case.model.vocabulary * case.model.width * scores
    useful = sum(useful_flops(case.model, pair, frozen_base=frozen) for pair in held)
    flops = {"attention": useful - matmuls - head, "head": head, "matmuls": matmuls}
    programs = {
        "attention": _attention(case, batch),
        "head": _head(case, batch),
        "matmuls": _matmuls(case, batch),
    }
    whole, update = _whole(trainer, batch)
    seconds = {name: _seconds(program, case.steps) for name, program in programs.items()}
    seconds["rest"] = whole - sum(seconds.values())
    rate = matmul_rate(case)
    rows = {"whole": (whole, useful), **{n: (s, flops.get(n)) for n, s in seconds.items()}}
    rows["update"] = update, None
    return [
        {
            "piece": name,
            "seconds": taken,
            "share_of_whole": taken / whole,
            "useful_tflops": operations and operations / taken / 1e12,
            "useful_share": operations and operations / taken / rate,
        }
        for name, (taken, operations) in rows.items()
    ]


def _seconds(program: Callable[[], Any], steps: int) -> float:
    """Median seconds of a call. A first call compiles and does not count."""
    jax.block_until_ready(program())
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        jax.block_until_ready(program())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _whole(trainer: Trainer, batch: Batch) -> tuple[float, float]:
    """Seconds of the gradients of a micro-batch, and seconds of the update."""
    totals = Totals(1.0, 1.0)
    sums = trainer.program.zeros(trainer.state)

    def gradients() -> Any:
        nonlocal sums  # the program takes over the memory of the old sums
        sums = trainer.add_gradients(sums, batch, totals)
        return sums

    def update() -> Any:
        return trainer.update(sums, totals)

    steps = trainer.case.steps
    return _seconds(gradients, steps), _seconds(update, steps)


def _normal(number: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.random.normal(jax.random.key(number), shape, jnp.dtype(dtype))


def _attention(case: Case, batch: Batch) -> Callable[[], Any]:
    """The attention of all layers, forward and backward, one layer after another."""
    model = case.model
    attend = attention_over(computation(case.settings, make_mesh(case.mesh), model))
    counts = (model.heads, model.key_value_heads, model.key_value_heads)
    q, k, v = (
        _normal(n, (*batch.tokens.shape, count, model.head_size), case.dtype)
        for n, count in enumerate(counts)
    )

    def attended(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out = attend(q, k, v, view_of(batch))
        return jnp.sum(out.astype(jnp.float32) ** 2)

    @jax.jit
    def layers(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
        # Each layer takes its inputs from the layer before. Otherwise XLA would compute only one.
        def layer(qkv: Any, _: None) -> tuple[Any, None]:
            gradients = jax.grad(attended, (0, 1, 2))(*qkv)
            return jax.tree.map(lambda x, d: x + 1e-6 * d, qkv, gradients), None

        return jax.lax.scan(layer, (q, k, v), None, length=model.layers)[0]

    return lambda: layers(q, k, v)


def _head(case: Case, batch: Batch) -> Callable[[], Any]:
    """The log-probs of the scored tokens, forward and backward."""
    model = case.model
    hidden = _normal(0, (*batch.tokens.shape, model.width), case.dtype)
    head = _normal(1, (model.vocabulary, model.width), case.dtype)
    wanted = 0 if case.mode != "full" else (0, 1)

    @jax.jit
    def gradients(hidden: jax.Array, head: jax.Array) -> Any:
        return jax.grad(lambda h, w: jnp.sum(branch_logps(h, w, batch)), wanted)(hidden, head)

    return lambda: gradients(hidden, head)


def _matmuls(case: Case, batch: Batch) -> Callable[[], Any]:
    """The seven products of all layers, forward and backward, with nothing between them."""
    config, dtype = case.model, jnp.dtype(case.dtype)
    linears = linear_layers(trained_model(case, make_mesh(case.mesh)))
    weights = {path: linear.weight.get_value() for path, linear in linears.items()}
    widths = sorted({config.width, config.heads * config.head_size, config.feed_forward})
    inputs = {width: _normal(width, (*batch.tokens.shape, width), case.dtype) for width in widths}

    def products(weights: Any, inputs: Any) -> jax.Array:
        total = jnp.zeros(())
        for weight in weights.values():
            matrix = dense(weight).astype(dtype)
            out = jnp.einsum("BTI,OI->BTO", inputs[matrix.shape[1]], matrix)
            total = total + jnp.sum(out.astype(jnp.float32) ** 2)
        return total

    @jax.jit
    def layers(weights: Any, inputs: Any) -> Any:
        def layer(inputs: Any, weights: Any) -> tuple[Any, Any]:
            if case.mode != "full":
                gradients = jax.grad(products, 1)(weights, inputs)
                d_weights = None
            else:
                d_weights, gradients = jax.grad(products, (0, 1))(weights, inputs)
            return jax.tree.map(lambda x, d: x + 1e-6 * d, inputs, gradients), d_weights

        return jax.lax.scan(layer, inputs, weights)

    return lambda: layers(weights, inputs)
