"""AdamW against PyTorch's, and the learning rate of every step."""

import math

import jax
import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from places import GOLDEN

from tddpo_jax.config.schema import TrainConfig
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.placement.shardings import path_name
from tddpo_jax.training.optimizer import learning_rate, make_optimizer
from tddpo_jax.weights.hugging_face import read_config

CONFIG = TrainConfig(
    weight_decay=0.3, max_grad_norm=0.7, adam_b1=0.8, adam_b2=0.95, adam_eps=1e-3, learning_rate=0.1
)
GPT_OSS = GOLDEN / "gpt-oss" / "model"
RATES = (0.1, 0.03, 0.07)


def test_three_steps_are_those_of_pytorch():
    """Expected: `clip_grad_norm_` and `AdamW` of PyTorch, without decay for the norms; the first
    gradients are clipped, the last are not."""
    params = tiny_models.llama()
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    theirs = [torch.nn.Parameter(torch.from_numpy(np.array(x))) for x in jax.tree.leaves(params)]
    is_norm = ["norm" in name for name in names]
    assert sum(is_norm) == 3
    groups = [
        {"params": [p for p, norm in zip(theirs, is_norm, strict=True) if norm == with_norms]}
        for with_norms in (False, True)
    ]
    groups[1]["weight_decay"] = 0.0
    adam = torch.optim.AdamW(groups, weight_decay=0.3, betas=(0.8, 0.95), eps=1e-3)
    optimizer = make_optimizer(CONFIG, tiny_models.CONFIG)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    rng = np.random.default_rng(0)
    for rate, size in zip(RATES, (1.0, 0.1, 1e-3), strict=True):
        gradients = jax.tree.map(
            lambda x, size=size: (size * rng.normal(size=x.shape)).astype(np.float32), params
        )
        changes, state = update(gradients, state, params)
        params = jax.tree.map(lambda p, change, rate=rate: p - rate * change, params, changes)
        for parameter, gradient in zip(theirs, jax.tree.leaves(gradients), strict=True):
            parameter.grad = torch.from_numpy(np.array(gradient))
        norm = torch.nn.utils.clip_grad_norm_(theirs, 0.7)
        assert (norm > 0.7) == (size > 0.01)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
    for name, got, wanted in zip(names, jax.tree.leaves(params), theirs, strict=True):
        np.testing.assert_allclose(got, wanted.detach(), atol=2e-6, err_msg=name)


def test_norms_sinks_and_biases_get_no_decay():
    """Also the biases of all experts, which are matrices, and that of a router. Ones without a
    gradient change by the decay alone."""
    model = read_config(GPT_OSS)
    abstract = jax.eval_shape(lambda key: Decoder(model, key), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), abstract)
    optimizer = make_optimizer(CONFIG, model)
    zeros = jax.tree.map(np.zeros_like, params)
    changes, _ = optimizer.update(zeros, optimizer.init(params), params)
    decay = {
        path_name(path): float(np.max(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(changes)
    }
    free = ("norm.weight", ".bias", ".sinks")
    assert sum(path.endswith(free) for path in decay) == 1 + 2 * 10
    for path, found in decay.items():
        assert found == pytest.approx(0.0 if path.endswith(free) else 0.3), path


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]),
    ],
)
def test_the_schedule(schedule, after):
    """Of six steps a third warms up: 1/2, 1; four follow, and a fifth would reach 0."""
    config = TrainConfig(learning_rate=0.2, warmup_ratio=1 / 3, schedule=schedule)
    rates = [learning_rate(config, step, 6) for step in range(6)]
    np.testing.assert_allclose(rates, 0.2 * np.array([0.5, 1, *after]))


@given(
    total=st.integers(1, 400),
    warmup=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
)
def test_no_step_is_lost(total, warmup, schedule):
    """Above 0 and at most the setting, which some step reaches; up, then down."""
    config = TrainConfig(learning_rate=0.2, warmup_ratio=warmup, schedule=schedule)
    rates = [learning_rate(config, step, total) for step in range(total)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(0.2)
    top = int(np.argmax(rates))
    assert np.all(np.diff(rates[: top + 1]) >= 0)
    assert np.all(np.diff(rates[top:]) <= 1e-12)
