"""The weights and the step of a run as shapes with shardings, which needs no real devices."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from tddpo_jax.adapters import lora
from tddpo_jax.adapters.nf4 import quantize
from tddpo_jax.batches.layout import Batch, Shape
from tddpo_jax.batches.packing import empty_batch
from tddpo_jax.config.schema import Config
from tddpo_jax.losses.objective import objective_of
from tddpo_jax.models.architecture import DecoderConfig
from tddpo_jax.models.buffer import with_weights_in
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.placement.computation import Computation, expert_implementation
from tddpo_jax.placement.mesh import check_mesh
from tddpo_jax.placement.shardings import (
    on,
    parameter_specs,
    path_name,
    row_sharding,
    tree_shardings,
)
from tddpo_jax.training.optimizer import make_optimizer
from tddpo_jax.training.state import Frozen, Knobs, Sums, Totals, TrainState, stacked
from tddpo_jax.training.step import Program, StepSetting, make_program
from tddpo_jax.training.trained_part import router_loss, trained_part


class Step(NamedTuple):
    """A program and all arguments of its step, as shapes with shardings."""

    program: Program
    sums: Sums
    state: TrainState
    frozen: Frozen
    knobs: Knobs
    batch: Batch
    totals: Totals


def abstract_weights(
    config: Config, model_config: DecoderConfig, dtype: Any
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The model of a run as shapes.

    Args:
        config: settings of the run.
        model_config: the model's shape.
        dtype: dtype of frozen weights.

    Returns:
        The structure, the trainable parameters and the frozen parameters.
    """

    def build() -> Decoder:
        model = Decoder(model_config, jax.random.key(0))
        if config.train.mode == "full":
            return model
        model = with_weights_in(model, dtype)
        if config.train.mode == "qlora":
            quantize(model)
        lora.attach(model, config.lora, jax.random.key(0))
        return model

    trained = trained_part(config.train, model_config)
    return nnx.split(  # type: ignore[return-value]
        jax.eval_shape(build), trained, ...
    )


def abstract_model(model_config: DecoderConfig, dtype: Any) -> nnx.State:
    """The shapes and dtypes of a model's weights, as they are loaded."""
    return nnx.state(
        jax.eval_shape(lambda: with_weights_in(Decoder(model_config, jax.random.key(0)), dtype))
    )


def placed(weights: nnx.State, model_config: DecoderConfig, mesh: Mesh | AbstractMesh) -> nnx.State:
    """Gives parameters, including quantised ones, the shardings of the model's table."""
    specs = parameter_specs(model_config)

    def place(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        name = path_name(path).removesuffix(".qvalue").removesuffix(".scale")
        spec = specs[name]
        # Too few scales of blocks cannot be shared evenly. `nf4.quantize` keeps them whole too.
        if len(spec) == leaf.ndim and leaf.shape[-1] % mesh.shape.get(spec[-1], 1):
            spec = PartitionSpec(*spec[:-1])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, weights)


def abstract_step(
    config: Config,
    model_config: DecoderConfig,
    mesh: Mesh,
    shape: Shape,
    attention: str,
    dtype: Any,
    members: int = 1,
) -> Step:
    """The step of a run, ready to be lowered.

    Args:
        config: settings of the run.
        model_config: the model's shape.
        mesh: the devices, which need not exist.
        shape: shape of a micro-batch.
        attention: name of the attention back-end.
        dtype: dtype of the computation.
        members: number of policies that the step trains at once.

    Raises:
        UserError: the mesh cannot share the model evenly.
    """
    check_mesh(mesh, model_config)
    graphdef, *weights = abstract_weights(config, model_config, dtype)
    trainable, base = (placed(part, model_config, mesh) for part in weights)
    objective = objective_of([config.loss.settings])
    experts = expert_implementation(dtype, mesh)
    how = Computation(dtype, attention, config.model.remat, row_sharding(mesh), experts)
    optimizer = make_optimizer(config.train, model_config)
    routers = router_loss(config, model_config)
    setting = StepSetting(
        graphdef, model_config, objective, optimizer, how, shape.responses, routers
    )
    program = make_program(setting, trainable, members)
    state = jax.eval_shape(lambda one: program.start(stacked([one] * members)), trainable)
    sums = jax.eval_shape(program.zeros, state)
    batch = empty_batch(shape)
    one: Any = np.ones(members, np.float32)
    which: Any = np.zeros(members, np.int32)
    return Step(
        program,
        on(sums, tree_shardings(sums, model_config, mesh)),
        on(state, tree_shardings(state, model_config, mesh)),
        Frozen(base, trainable if objective.exact_kl else None),
        Knobs(which, dict.fromkeys(objective.scalar_names, one), one, one),
        on(batch, jax.tree.map(lambda _: row_sharding(mesh), batch)),
        Totals(1.0, 1.0),
    )
