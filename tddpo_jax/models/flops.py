"""Useful floating-point operations, without padding, repeated prompts and rematerialisation.

A weight costs two operations per parameter and token in the forward pass. The backward pass costs
twice as much, or as much as the forward pass if the weight is frozen and needs no gradient. The
head counts at scored positions only. Attention counts over the true key ranges. If an indexer
chooses keys, only the chosen ones count. The weights of the indexer count, but not the scores that
it gives to all keys.
"""

from __future__ import annotations

import time
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from tddpo_jax.batches.layout import Example, score_count
from tddpo_jax.models.architecture import DecoderConfig, Layer, kinds_of_layers
from tddpo_jax.models.tensor_table import Kind
from tddpo_jax.system.devices import data_sheet_rate


class LayerWeights(NamedTuple):
    """Numbers of the weights that a layer's products have."""

    shared: int  # linear layers, the router and buffers, which all tokens use
    experts: int  # all experts together, of which a token uses a few


def layer_weights(layer: Layer) -> LayerWeights:
    """Counts the weights of one layer's products."""
    sizes = dict.fromkeys(get_args(Kind), 0)
    for tensor in layer.tensors:
        if len(tensor.axes) > 1:
            sizes[tensor.kind] += layer.size(tensor)
    shared = sizes["linear"] + sizes["router"] + sizes["buffer"]
    return LayerWeights(shared, sizes["experts"])


def _used_by_token(layer: Layer) -> int:
    weights = layer_weights(layer)
    if layer.experts is None:
        return weights.shared
    return weights.shared + weights.experts * layer.experts.chosen // layer.experts.experts


def matmul_parameters(config: DecoderConfig) -> int:
    """Number of weights in the products of all layers that one token uses."""
    return sum(count * _used_by_token(layer) for count, layer in kinds_of_layers(config))


def distinct_tokens(example: Example) -> int:
    """Number of tokens that predict another token; the prompt counts once."""
    return len(example.prompt) + sum(map(len, example.responses)) - len(example.responses)


def attended_keys(example: Example, window: int | None = None, chunk: int | None = None) -> int:
    """Number of pairs of a token of `distinct_tokens` and a key that it sees.

    Args:
        example: the tokens.
        window: newest positions that a token sees; None: all.
        chunk: size of the chunks into which positions are cut; None: one chunk.
    """
    prompt = len(example.prompt)

    def seen_in_chunk(tokens: int) -> int:
        """Keys that the first tokens of a chunk see; each sees one more, up to the window."""
        growing = tokens if window is None else min(tokens, window)
        return growing * (growing + 1) // 2 + (tokens - growing) * growing

    def seen_by_first(tokens: int) -> int:
        """Keys that the first tokens of a branch see, a positive number of them."""
        size = tokens if chunk is None else chunk
        return tokens // size * seen_in_chunk(size) + seen_in_chunk(tokens % size)

    own = (
        seen_by_first(prompt + len(ids) - 1) - seen_by_first(prompt) for ids in example.responses
    )
    return seen_by_first(prompt) + sum(own)


def useful_flops(config: DecoderConfig, example: Example, *, frozen_base: bool) -> int:
    """Operations that one training step needs for this example, forward and backward."""
    passes = 2 if frozen_base else 3
    # Attention has no weights, so its backward pass costs the same with a frozen base.
    return passes * _products(config, example) + 3 * _attention(config, example)


def forward_flops(config: DecoderConfig, example: Example) -> int:
    """Operations of the forward pass that computes the log-probs of this example."""
    return _products(config, example) + _attention(config, example)


def _products(config: DecoderConfig, example: Example) -> int:
    layers = 2 * matmul_parameters(config) * distinct_tokens(example)
    return layers + 2 * config.vocabulary * config.width * score_count(example)


def _attention(config: DecoderConfig, example: Example) -> int:
    """Operations of attention's two products: the scores, and the weighted sum of values.

    A token whose keys an indexer chooses attends to as many as with a window of that size.
    """
    total = 0
    for count, layer in kinds_of_layers(config):
        shape = layer.attention
        limits = [each for each in (shape.window, shape.most_keys) if each is not None]
        keys = attended_keys(example, min(limits, default=None), shape.chunk)
        total += 2 * count * shape.heads * (shape.size + shape.value_size) * keys
    return total


def matmul_rate(dtype: jnp.dtype | type) -> float:
    """Operations per second of one device, from its data sheet or else measured.

    Args:
        dtype: dtype of the products that are measured if the device has no data sheet here.
    """
    known = data_sheet_rate(jax.devices()[0].device_kind)
    return measured_matmul_rate(dtype) if known is None else known


def measured_matmul_rate(dtype: jnp.dtype | type, size: int = 1024, repeats: int = 5) -> float:
    """Operations per second of the fastest of a few square products on one device.

    Args:
        dtype: dtype of the matrices.
        size: rows and columns of the matrices.
        repeats: number of products that are timed.
    """
    x = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
