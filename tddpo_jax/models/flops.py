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
from tddpo_jax.models.llama.model import LlamaConfig
from tddpo_jax.system.devices import data_sheet_rate


def layer_matmul_parameters(config: LlamaConfig) -> int:
    """Parameters of one layer's seven products."""
    heads = 2 * config.heads + 2 * config.key_value_heads
    return config.width * (heads * config.head_size + 3 * config.feed_forward)


def distinct_tokens(example: Example) -> int:
    """Tokens that predict another one, the prompt counted once."""
    return len(example.prompt) + score_count(example) - len(example.responses)


def attended_keys(example: Example) -> int:
    """Sum over these tokens of the keys each one sees."""
    prompt, responses = len(example.prompt), [len(ids) - 1 for ids in example.responses]
    triangles = sum(n * (n + 1) // 2 for n in (prompt, *responses))
    return triangles + prompt * sum(responses)


def useful_flops(config: LlamaConfig, example: Example, *, frozen_base: bool) -> int:
    """Operations of one training step that this example needs, forward and backward."""
    passes = 2 if frozen_base else 3
    # Attention needs twice as much backward with a frozen base too.
    return passes * _products(config, example) + 3 * _attention(config, example)


def forward_flops(config: LlamaConfig, example: Example) -> int:
    """Operations that the log-probs of this example need."""
    return _products(config, example) + _attention(config, example)


def _products(config: LlamaConfig, example: Example) -> int:
    layers = 2 * config.layers * layer_matmul_parameters(config) * distinct_tokens(example)
    return layers + 2 * config.vocabulary * config.width * score_count(example)


def _attention(config: LlamaConfig, example: Example) -> int:
    """Scores and mixing."""
    return 4 * config.layers * config.heads * config.head_size * attended_keys(example)


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
