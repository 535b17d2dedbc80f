"""Useful operations against a count token by token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from tddpo_jax.batches.layout import Row, Shape, score_count, stream_length
from tddpo_jax.models.architecture import kinds_of_layers
from tddpo_jax.models.flops import (
    attended_keys,
    forward_flops,
    layer_weights,
    matmul_parameters,
    matmul_rate,
    measured_matmul_rate,
    useful_flops,
)
from tddpo_jax.models.llama.tensors import LINEAR_NAMES
from tddpo_jax.system.devices import DEVICES, data_sheet_rate
from tddpo_jax.weights.hugging_face import read_config
from tddpo_jax.weights.locate import model_folder

(PAIR,) = tiny_models.random_examples([(7, 5, 11)])
(SINGLE,) = tiny_models.random_examples([(7, 5)])


def filled_row(example):
    length, scores = stream_length(example) + 9, score_count(example) + 3
    row = Row(Shape(1, length, scores, 2, responses=len(example.responses)))
    row.add(0, example)
    return row


@pytest.mark.parametrize("example", [PAIR, SINGLE], ids=["a pair", "one response"])
@pytest.mark.parametrize("frozen_base", [False, True])
def test_useful_operations_are_those_of_every_token(example, frozen_base):
    """Expected: a multiplication and an addition for every weight that a token meets, for every
    feature of every head of every key it sees (once for the score, once for the mix), and for the
    head where something is scored.

    Backward a product costs as much for the gradient of its input and again for that of its weight,
    which a frozen base does without; attention has no weights, and two inputs to each product.
    """
    model, row = tiny_models.llama(), filled_row(example)
    weights = sum(getattr(model.layers, name).weight[0].size for name in LINEAR_NAMES)
    config = model.config
    total = 0
    for token in range(len(row.tokens)):
        keys = int(row.key_end[token] - row.key_start[token])
        if keys == 0:
            continue
        for _ in range(config.layers):
            total += 2 * weights * (2 if frozen_base else 3)
            total += keys * config.heads * (2 + 2) * config.head_size * 3
    for branch in row.score_branch:
        if branch < 2 * len(example.responses):
            total += 2 * config.vocabulary * config.width * (2 if frozen_base else 3)
    assert useful_flops(config, example, frozen_base=frozen_base) == total


def test_attended_keys_are_those_of_the_layout():
    for example in (PAIR, SINGLE):
        row = filled_row(example)
        assert attended_keys(example) == np.sum(row.key_end - row.key_start)


@pytest.mark.parametrize("limits", [{"window": 4}, {"chunk": 4}, {"chunk": 6, "window": 4}])
def test_attended_keys_within_a_window_or_a_chunk(limits):
    """Expected: the keys of every token one by one, at positions 0 to 6 and behind them."""
    window, chunk = limits.get("window", 99), limits.get("chunk", 99)
    for example in (PAIR, SINGLE):
        positions = [*range(7), *(7 + n for ids in example.responses for n in range(len(ids) - 1))]
        seen = [
            at - key < window and key // chunk == at // chunk
            for at in positions
            for key in range(at + 1)
        ]
        assert attended_keys(example, **limits) == sum(seen)


def test_a_prompt_that_is_laid_twice_counts_once():
    """Of three responses the third costs what it adds to a pair of its prompt: its own tokens (all
    but the last), which see the prompt and those of their own before them, and its scores."""
    (three,) = tiny_models.random_examples([(7, 5, 11, 3)])
    assert attended_keys(three) - attended_keys(PAIR) == 2 * 7 + (1 + 2)
    config = tiny_models.CONFIG
    products = 2 * matmul_parameters(config) * 2
    head = 2 * config.vocabulary * config.width * 3
    attention = 4 * config.layers * config.heads * config.head_size * 17
    added = forward_flops(config, three) - forward_flops(config, PAIR)
    assert added == products + head + attention


def test_matmul_parameters_are_those_of_the_model():
    """A layer's matrices have two dimensions behind that of the layers, its norms have one."""
    model = tiny_models.llama()
    expected = sum(x.size for x in jax.tree.leaves(model.layers) if x.ndim == 3)
    assert matmul_parameters(model.config) == expected


def test_a_token_uses_some_of_the_weights_that_are_there():
    """gpt-oss-20b: 64 heads of 64 with 8 key/value heads at a width of 2,880, and 32 experts with
    three matrices of 2,880 by 2,880, of which a token uses four."""
    config = read_config(model_folder("openai/gpt-oss-20b"))
    layers = list(kinds_of_layers(config))
    shared = 2880 * (64 + 8 + 8 + 64) * 64 + 32 * 2880
    expert = 3 * 2880 * 2880
    assert [layer_weights(layer) for _, layer in layers] == [(shared, 32 * expert)] * 2
    assert matmul_parameters(config) == 24 * (shared + 4 * expert)


def test_a_token_attends_to_the_keys_that_an_indexer_leaves():
    """DeepSeek V3.2 with 4 keys for a token. It has 61 layers of 128 heads, of 192 features for a
    score and 128 for the mix. V3 attends to all keys and has no indexer. An indexer has 64 heads of
    128 features from a latent of 1,536, and a key and 64 weights from a width of 7,168."""
    sizes = model_folder("deepseek-ai/DeepSeek-V3.2-Exp"), model_folder("deepseek-ai/DeepSeek-V3")
    chooses, sees_all = map(read_config, sizes)
    assert chooses.indexer is not None
    few = dataclasses.replace(chooses, indexer=dataclasses.replace(chooses.indexer, most=4))
    positions = [*range(7), *(7 + n for ids in PAIR.responses for n in range(len(ids) - 1))]
    fewer = sum(at + 1 - min(at + 1, 4) for at in positions)
    indexers = 61 * 2 * len(positions) * (64 * 128 * 1536 + (128 + 64) * 7168)
    left = forward_flops(sees_all, PAIR) + indexers - 61 * 2 * 128 * (192 + 128) * fewer
    assert forward_flops(few, PAIR) == left
    # As DeepSeek has it, all keys of such a short pair are left.
    assert forward_flops(chooses, PAIR) == forward_flops(sees_all, PAIR) + indexers


def test_a_rate_is_measured_where_no_data_sheet_gives_one(monkeypatch):
    """This test runs on CPUs, between 10 million and 100 million million operations a second."""
    assert 1e7 < measured_matmul_rate(jnp.float32, size=64, repeats=2) < 1e14

    class Device:
        device_kind = "NVIDIA H100 80GB HBM3"

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert matmul_rate(jnp.bfloat16) == DEVICES["h100-80"].rate


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("TPU v4", 275e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("NVIDIA A10", None),
        ("cpu", None),
    ],
)
def test_a_data_sheet_is_found_by_the_name_that_jax_gives_its_device(kind, rate):
    assert data_sheet_rate(kind) == rate
