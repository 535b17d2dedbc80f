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

from tddpo_jax.batches.layout import Example, score_count
from tddpo_jax.models.architecture import DecoderConfig, Layer, kinds_of_layers
from tddpo_jax.system.devices import data_sheet_rate


def layer_matmul_parameters(layer: Layer) -> int:
    """Parameters of one layer's products."""
    return sum(layer.size(tensor) for tensor in layer.tensors if tensor.kind == "linear")


def matmul_parameters(config: DecoderConfig) -> int:
    """Parameters of the products of all layers."""
    return sum(count * layer_matmul_parameters(layer) for count, layer in kinds_of_layers(config))


def distinct_tokens(example: Example) -> int:
    """Tokens that predict another one, the prompt counted once."""
    return len(example.prompt) + score_count(example) - len(example.responses)


def attended_keys(example: Example, window: int | None = None) -> int:
    """Sum over these tokens of the keys each one sees."""
    prompt = len(example.prompt)

    def seen_by_first(tokens: int) -> int:
        """Keys that the first tokens of a branch see: one more each, up to the window."""
        growing = tokens if window is None else min(tokens, window)
        return growing * (growing + 1) // 2 + (tokens - growing) * growing

    own = (
        seen_by_first(prompt + len(ids) - 1) - seen_by_first(prompt) for ids in example.responses
    )
    return seen_by_first(prompt) + sum(own)


def useful_flops(config: DecoderConfig, example: Example, *, frozen_base: bool) -> int:
    """Operations of one training step that this example needs, forward and backward."""
    passes = 2 if frozen_base else 3
    # Attention needs twice as much backward with a frozen base too.
    return passes * _products(config, example) + 3 * _attention(config, example)


def forward_flops(config: DecoderConfig, example: Example) -> int:
    """Operations that the log-probs of this example need."""
    return _products(config, example) + _attention(config, example)


def _products(config: DecoderConfig, example: Example) -> int:
    layers = 2 * matmul_parameters(config) * distinct_tokens(example)
    return layers + 2 * config.vocabulary * config.width * score_count(example)


def _attention(config: DecoderConfig, example: Example) -> int:
    """Scores and mixing."""
    shapes = [(count, layer.attention) for count, layer in kinds_of_layers(config)]
    return sum(
        2 * count * heads * (size + value_size) * attended_keys(example, window)
        for count, (heads, _, size, value_size, window, _) in shapes
    )


def matmul_rate(dtype: jnp.dtype | type) -> float:
    """Operations per second of one device: the data sheet's, or measured where there is none."""
    known = data_sheet_rate(jax.devices()[0].device_kind)
    return measured_matmul_rate(dtype) if known is None else known


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
