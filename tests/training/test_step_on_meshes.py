"""The training step, whole, on fsdp x tensor meshes of eight devices: the same losses on each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_adapters
import tiny_models
from flax import nnx

from tddpo_jax.adapters.nf4 import quantize
from tddpo_jax.batches.layout import Shape
from tddpo_jax.batches.packing import pack
from tddpo_jax.config.schema import Config, TrainConfig
from tddpo_jax.losses.objective import objective_of
from tddpo_jax.models.attention.kernels import KERNELS
from tddpo_jax.models.linear import LoraParam
from tddpo_jax.placement.computation import Computation
from tddpo_jax.placement.mesh import check_mesh
from tddpo_jax.placement.shardings import row_sharding, tree_shardings
from tddpo_jax.scoring.data_sets import place_batch
from tddpo_jax.training.optimizer import make_optimizer
from tddpo_jax.training.state import Frozen, Knobs, Totals
from tddpo_jax.training.step import StepSetting, make_program

MESHES = [(8, 1), (4, 2), (2, 4)]  # fsdp x tensor
# A Llama in which four devices can share heads and vocabulary, and eight every matrix.
SHAPE = {
    "vocabulary": 64,
    "width": 64,
    "layers": 2,
    "heads": 8,
    "key_value_heads": 4,
    "head_size": 10,
    "feed_forward": 72,
}
# The same with inputs that are whole blocks of 64: one and three, fewer than the devices.
BLOCKS = {**SHAPE, "head_size": 8, "feed_forward": 192}
LENGTHS = np.random.default_rng(0).integers(1, 40, (12, 3))
STEPS = 2
# Adapters are a tenth of the weights: Adam moves every number by as much.
RATES = {"full": 0.01, "lora": 0.001, "qlora": 0.001}


def placed(mode, mesh):
    """A model as training has it: quantised where it lies, adapters of which no factor is zero."""
    model = tiny_models.llama(**(SHAPE if mode == "full" else BLOCKS))
    check_mesh(mesh, model.config)
    model = jax.device_put(model, tree_shardings(model, model.config, mesh))
    if mode == "qlora":
        quantize(model)
    return model if mode == "full" else tiny_adapters.adapted(model, 0, rank=3, alpha=1.0)


def losses(mode, fsdp, tensor, attention="xla"):
    """The loss of each step, and the gradient's norm."""
    mesh = tiny_models.mesh_of(1, fsdp, tensor)
    kind = nnx.Param if mode == "full" else LoraParam
    model = placed(mode, mesh)
    graphdef, trainable, base = nnx.split(model, kind, ...)
    how = Computation(jnp.float32, attention, "none", row_sharding(mesh), "tiles")
    objective = objective_of([Config().loss.settings])
    optimizer = make_optimizer(TrainConfig(), model.config)
    setting = StepSetting(graphdef, model.config, objective, optimizer, how)
    program = make_program(setting, trainable)
    shape = Shape(8, 130, 120, 3, causal_rows=((128, 2), (64, 4)))
    (batch,) = pack(tiny_models.random_examples(LENGTHS, vocabulary=64), [shape])
    batch = place_batch(batch, mesh)
    one = np.ones(1, np.float32)
    scalars = dict.fromkeys(objective.scalar_names, one)
    knobs = Knobs(
        np.zeros(1, np.int32), scalars, np.float32(RATES[mode]) * one, np.float32(0.01) * one
    )
    totals = Totals(float(len(LENGTHS)), float(LENGTHS[:, 1].sum()))
    state, seen = program.start(trainable), []
    for _ in range(STEPS):
        sums = program.zeros(state)
        sums = program.add_gradients(sums, state, Frozen(base, None), knobs, batch, totals, None)
        state, metrics = program.update(state, sums, knobs, totals)
        seen.append([metrics["loss"].item(), metrics["grad_norm"].item()])
    return np.array(seen)


@pytest.mark.parametrize("mode", ["full", "lora", "qlora"])
def test_the_same_losses_on_every_mesh(mode):
    """Expected: one device. Only the order of sums differs, by 1e-5 relative after an update."""
    expected = losses(mode, 1, 1)
    assert len(set(expected[:, 0])) == STEPS, "the steps change nothing"
    for sizes in MESHES:
        np.testing.assert_allclose(losses(mode, *sizes), expected, rtol=1e-5, err_msg=str(sizes))


@pytest.mark.parametrize("attention", KERNELS)
def test_the_same_losses_with_every_kernel(attention, kernels_anywhere):
    """On each device over its own rows and heads. Expected: attention over the packed rows."""
    expected = losses("lora", 1, 1)
    np.testing.assert_allclose(losses("lora", 2, 4, attention), expected, rtol=1e-5)
    assert {name for name, _ in kernels_anywhere} == {attention}
