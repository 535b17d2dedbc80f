"""Useful floating-point operations: no credit for padding, repeated prompts or rematerialisation.

A product of a weight with one token costs two operations per parameter, backward twice as much,
or once as much where the weight is frozen and needs no gradient. The head counts at scored
positions only, attention over the true key ranges.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

from tddpo_jax.batches.layout import Pair, score_count, stream_length
from tddpo_jax.models.architecture import DecoderConfig, Layer, kinds_of_layers
from tddpo_jax.system.devices import PEAK_RATES


def layer_matmul_parameters(layer: Layer) -> int:
    """Parameters of one layer's products."""
    return sum(layer.size(tensor) for tensor in layer.tensors if tensor.kind == "linear")


def matmul_parameters(config: DecoderConfig) -> int:
    """Parameters of the products of all layers."""
    return sum(count * layer_matmul_parameters(layer) for count, layer in kinds_of_layers(config))


def attended_keys(pair: Pair, window: int | None = None) -> int:
    """Sum over the pair's stream positions of the keys each one sees."""
    prompt, chosen, rejected = len(pair.prompt), len(pair.chosen) - 1, len(pair.rejected) - 1

    def seen_by_first(tokens: int) -> int:
        """Keys that the first tokens of a branch see: one more each, up to the window."""
        growing = tokens if window is None else min(tokens, window)
        return growing * (growing + 1) // 2 + (tokens - growing) * growing

    branches = seen_by_first(prompt + chosen) + seen_by_first(prompt + rejected)
    return branches - seen_by_first(prompt)


def useful_flops(config: DecoderConfig, pair: Pair, *, frozen_base: bool) -> int:
    """Operations of one training step that this pair needs, forward and backward."""
    passes = 2 if frozen_base else 3
    # Attention needs twice as much backward with a frozen base too.
    return passes * _products(config, pair) + 3 * _attention(config, pair)


def forward_flops(config: DecoderConfig, pair: Pair) -> int:
    """Operations that the log-probs of this pair need."""
    return _products(config, pair) + _attention(config, pair)


def _products(config: DecoderConfig, pair: Pair) -> int:
    layers = 2 * matmul_parameters(config) * stream_length(pair)
    return layers + 2 * config.vocabulary * config.width * score_count(pair)


def _attention(config: DecoderConfig, pair: Pair) -> int:
    """Scores and mixing."""
    shapes = [(count, layer.attention) for count, layer in kinds_of_layers(config)]
    return sum(
        2 * count * heads * (size + value_size) * attended_keys(pair, window)
        for count, (heads, _, size, value_size, window, _) in shapes
    )


def matmul_rate(dtype: jnp.dtype | type) -> float:
    """Operations per second of one device: the data sheet's, or measured where there is none."""
    kind = jax.devices()[0].device_kind
    for name, rate in PEAK_RATES.items():
        if kind.startswith(name):
            return rate
    return measured_matmul_rate(dtype)


def measured_matmul_rate(dtype: jnp.dtype | type, size: int = 1024, repeats: int = 5) -> float:
    """Operations per second of the best of a few square products on one device."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
