"""The training step, whole, on fsdp x tensor meshes of eight devices: the same losses on each."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import nnx

from tddpo_jax.config import TrainConfig
from tddpo_jax.layout import Shape
from tddpo_jax.losses import LossScalars, LossSpec
from tddpo_jax.optimizer import make_optimizer
from tddpo_jax.packing import pack
from tddpo_jax.reference import place_batch
from tddpo_jax.sharding import check_mesh, parameter_shardings, row_sharding
from tddpo_jax.train_step import Computation, Frozen, Knobs, Totals, make_program

MESHES = [(8, 1), (4, 2), (2, 4)]  # fsdp x tensor
# A Llama in which four devices can share heads, features and vocabulary, and eight the width.
SHAPE = {
    "vocabulary": 64,
    "width": 64,
    "layers": 2,
    "heads": 8,
    "key_value_heads": 4,
    "head_size": 10,
    "feed_forward": 76,
}
LENGTHS = np.random.default_rng(0).integers(1, 40, (12, 3))
STEPS = 2


def losses(fsdp, tensor):
    """The loss of each step, and the gradient's norm."""
    mesh = tiny.mesh_of(1, fsdp, tensor)
    model = tiny.llama(**SHAPE)
    check_mesh(mesh, model.config)
    model = jax.device_put(model, parameter_shardings(model, mesh))
    graphdef, trainable, base = nnx.split(model, nnx.Param, ...)
    how = Computation(jnp.float32, "xla", "none", row_sharding(mesh))
    specs, optimizer = (LossSpec("td_dpo"),), make_optimizer(TrainConfig())
    program = make_program(graphdef, trainable, specs, optimizer, mesh, how)
    (batch,) = pack(tiny.random_pairs(LENGTHS, vocabulary=64), [Shape(8, 130, 120, 3)])
    batch = place_batch(batch, mesh)
    one = np.ones(1, np.float32)
    scalars = LossScalars(*(one for _ in LossScalars._fields))
    knobs = Knobs(np.zeros(1, np.int32), scalars, np.float32(0.01) * one)
    totals = Totals(float(len(LENGTHS)), float(LENGTHS[:, 1].sum()))
    state, seen = program.start(trainable), []
    for _ in range(STEPS):
        sums = program.zeros(state)
        sums = program.add_gradients(sums, state, Frozen(base, None), knobs, batch, totals, None)
        state, metrics = program.update(state, sums, knobs, totals)
        seen.append([metrics["loss"].item(), metrics["grad_norm"].item()])
    return np.array(seen)


def test_the_same_losses_on_every_mesh():
    """Expected: one device. Only the order of sums differs, by 1e-5 relative after an update."""
    expected = losses(1, 1)
    assert len(set(expected[:, 0])) == STEPS, "the steps change nothing"
    for sizes in MESHES:
        np.testing.assert_allclose(losses(*sizes), expected, rtol=1e-5, err_msg=str(sizes))
