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
from tddpo_jax.models.llama.model import LlamaConfig
from tddpo_jax.system.devices import data_sheet_rate


def layer_matmul_parameters(config: LlamaConfig) -> int:
    """Parameters of one layer's seven products."""
    heads = 2 * config.heads + 2 * config.key_value_heads
    return config.width * (heads * config.head_size + 3 * config.feed_forward)


def attended_keys(pair: Pair) -> int:
    """Sum over the pair's stream positions of the keys each one sees."""
    prompt, chosen, rejected = len(pair.prompt), len(pair.chosen) - 1, len(pair.rejected) - 1
    triangle = sum(n * (n + 1) // 2 for n in (prompt, chosen, rejected))
    return triangle + prompt * (chosen + rejected)


def useful_flops(config: LlamaConfig, pair: Pair, *, frozen_base: bool) -> int:
    """Operations of one training step that this pair needs, forward and backward."""
    passes = 2 if frozen_base else 3
    # Attention needs twice as much backward with a frozen base too.
    return passes * _products(config, pair) + 3 * _attention(config, pair)


def forward_flops(config: LlamaConfig, pair: Pair) -> int:
    """Operations that the log-probs of this pair need."""
    return _products(config, pair) + _attention(config, pair)


def _products(config: LlamaConfig, pair: Pair) -> int:
    layers = 2 * config.layers * layer_matmul_parameters(config) * stream_length(pair)
    return layers + 2 * config.vocabulary * config.width * score_count(pair)


def _attention(config: LlamaConfig, pair: Pair) -> int:
    """Scores and mixing."""
    return 4 * config.layers * config.heads * config.head_size * attended_keys(pair)


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
