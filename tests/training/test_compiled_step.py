"""The compiled training step on CPU: which arrays it never makes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
from flax import nnx
from hlo import instructions

from tddpo_jax.adapters import lora
from tddpo_jax.batches.layout import Shape
from tddpo_jax.batches.packing import empty_batch
from tddpo_jax.config.schema import Config, LoraConfig, TrainConfig
from tddpo_jax.losses import logprobs
from tddpo_jax.losses.objective import objective_of
from tddpo_jax.models.linear import LoraParam
from tddpo_jax.placement.computation import Computation
from tddpo_jax.placement.shardings import row_sharding
from tddpo_jax.training.optimizer import make_optimizer
from tddpo_jax.training.state import Frozen, Knobs, Totals, stacked
from tddpo_jax.training.step import StepSetting, make_program

# Five blocks of attention, ten chunks of scores: neither is a dimension of anything else.
ROWS, LENGTH, SCORES, CHUNK = 2, 320, 640, 64
VOCABULARY = 331
CASES = {"full": 1, "lora": 1, "population": 3}


def shapes_of(compiled):
    """The dimensions of everything that has a buffer, without those that are one."""
    return {
        tuple(size for size in shape if size > 1)
        for instruction in instructions(compiled.as_text())
        for shape in instruction.shapes
    }


@pytest.fixture(scope="module", params=CASES)
def step(request):
    """The arrays of the gradients' program, and the size of the population."""
    members, mesh = CASES[request.param], tiny_models.one_device()
    model = tiny_models.llama(vocabulary=VOCABULARY)
    kind = nnx.Param
    if request.param != "full":
        lora.add_adapters(model, LoraConfig(rank=2), 0, mesh)
        kind = LoraParam
    graphdef, trainable, base = nnx.split(model, kind, ...)
    how = Computation(jnp.float32, "xla", "dots", row_sharding(mesh), "tiles")
    objective = objective_of([Config().loss.settings, {"name": "dpo"}])
    optimizer = make_optimizer(TrainConfig(), model.config)
    setting = StepSetting(graphdef, model.config, objective, optimizer, how)
    program = make_program(setting, trainable, members)
    batch = empty_batch(Shape(ROWS, LENGTH, SCORES, 3))
    ones = np.ones(members, np.float32)
    scalars = dict.fromkeys(objective.scalar_names, ones)
    knobs = Knobs(np.zeros(members, np.int32), scalars, ones, 0.01 * ones)
    state = program.start(stacked([trainable] * members))
    arguments = program.zeros(state), state, Frozen(base, None), knobs, batch, Totals(1.0, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "CHUNK", CHUNK)
        return shapes_of(program.add_gradients.lower(*arguments, None).compile()), members


def test_no_array_of_every_query_and_every_key(step):
    for shape in step[0]:
        assert shape.count(LENGTH) < 2, shape
        assert not any(size % LENGTH**2 == 0 for size in shape), shape


def test_no_logits_beyond_a_chunk(step):
    """Whatever has the vocabulary as a dimension is weights, or logits of a chunk of scores."""
    shapes, members = step
    assert any(VOCABULARY in shape for shape in shapes)
    for shape in shapes:
        if VOCABULARY in shape:
            others = math.prod(shape) // VOCABULARY
            assert others == tiny_models.CONFIG.width or others <= members * ROWS * CHUNK, shape


def test_a_dense_mask_would_be_seen():
    q = jnp.ones((ROWS, LENGTH, 2, 3))
    view = tiny_models.reading_order(ROWS, LENGTH)
    compiled = jax.jit(tiny_models.dense_attention).lower(q, q, q, view).compile()
    assert any(shape.count(LENGTH) == 2 for shape in shapes_of(compiled))
