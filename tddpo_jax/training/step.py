"""What jit compiles: log-probs of a micro-batch, its gradients, and the optimiser's update.

Every number of a loss and the learning rate are arguments, and so is which loss of `specs` it is:
a whole grid shares these programs. They train a population of `members`: knobs and results carry a
leading axis M of members, and if there is more than one, so do parameters, optimiser states and
sums, and the functions are mapped over it beside one frozen base.

Letters: M members, B rows, T stream positions, D width, P pairs of a row.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, PRNGKeyArray

from tddpo_jax.batches.layout import Batch
from tddpo_jax.losses.catalogue import LossSpec
from tddpo_jax.losses.logprobs import branch_kl, branch_logps
from tddpo_jax.losses.metric_names import PAIR_METRICS
from tddpo_jax.losses.metrics import pair_metrics
from tddpo_jax.losses.pair_logps import PairLogps
from tddpo_jax.models.architecture import DecoderConfig
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.placement.computation import Computation
from tddpo_jax.placement.shardings import (
    head_sharding,
    parameter_specs,
    replicated,
    tree_shardings,
)
from tddpo_jax.scoring.forward import hidden_states
from tddpo_jax.training.state import Frozen, Knobs, Sums, Totals, TrainState, member, stacked


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions of one experiment; see `make_program`.

    `log_probs` gives `[M, B, P, 2]` log-probs and exact KLs; `log_probs_of_one` the same for
    parameters that have no members' axis, with M = 1. `summary` takes and gives an axis M.
    `member_state` tells shapes, dtypes and places of the state of one member.
    """

    start: Callable[[nnx.State], TrainState]
    zeros: Callable[[TrainState], Sums]
    add_gradients: Callable[..., Sums]
    update: Callable[[TrainState, Sums, Knobs, Any], tuple[TrainState, dict[str, Array]]]
    log_probs: Callable[[nnx.State, Frozen, Batch], tuple[Array, Array]]
    log_probs_of_one: Callable[[nnx.State, Frozen, Batch], tuple[Array, Array]]
    summary: Callable[[Knobs, PairLogps], dict[str, Array]]
    specs: tuple[LossSpec, ...]
    members: int
    member_state: TrainState


def split_model(
    model: Decoder, trained: type[nnx.Param]
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The model as (structure, trainable parameters, frozen parameters)."""
    parts: Any = nnx.split(model, trained, ...)
    return parts


def make_program(
    graphdef: nnx.GraphDef,
    config: DecoderConfig,
    trainable: nnx.State,
    specs: tuple[LossSpec, ...],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    how: Computation,
    members: int = 1,
) -> Program:
    """Builds the functions that train and evaluate; each compiles on its first call per shape.

    Args:
        graphdef: of the model, split into (trainable, the rest).
        config: of the model.
        trainable: the trainable parameters of one member, or their shapes.
        specs: the losses that `Knobs.which` chooses among.
        optimizer: gives updates to be scaled by -learning rate.
        mesh: rows of a batch are spread over it.
        how: the model is computed.
        members: size of the population.
    """
    full_kl = any(spec.kl == "full" for spec in specs)

    def log_probs(
        trainable: nnx.State, frozen: Frozen, batch: Batch, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "B P 2"], Float[Array, "B P 2"]]:
        """Log-probs of the branches and, if a loss needs it, their exact KL to the reference."""
        model = model_of(trainable, frozen)
        states = hidden_states(model, batch, how, key)
        head = gathered_head(model)
        logps = branch_logps(states, head, batch)
        if not full_kl:
            return logps, jnp.zeros_like(logps)
        reference = model_of(frozen.reference, frozen)
        ref_states = jax.lax.stop_gradient(hidden_states(reference, batch, how))
        return logps, branch_kl(states, head, ref_states, gathered_head(reference), batch)

    def model_of(parameters: nnx.State | None, frozen: Frozen) -> Decoder:
        model = nnx.merge(graphdef, parameters, frozen.base)
        # Pinned, or the compiler gathers the sum of its gradients whole to scatter into it.
        place = NamedSharding(mesh, parameter_specs(config)["embed"])
        model.embed = nnx.Param(jax.lax.with_sharding_constraint(model.embed[...], place))
        return model

    def gathered_head(model: Decoder) -> Float[Array, "V D"]:
        """The head, gathered over fsdp once: left to the compiler, every chunk would gather it."""
        with jax.named_scope("head"):
            return jax.lax.with_sharding_constraint(model.head_weight, head_sharding(mesh))

    def loss_and_metrics(
        trainable: nnx.State,
        frozen: Frozen,
        knobs: Knobs,
        batch: Batch,
        totals: Totals,
        key: PRNGKeyArray | None,
    ) -> tuple[Array, dict[str, Array]]:
        logps, kl = log_probs(trainable, frozen, batch, key)
        pairs = _pair_logps(logps, kl, batch)
        sums = _metric_sums(specs, knobs, pairs, batch.weight.reshape(-1))
        loss = sums["loss"] / _denominator(specs, knobs.which, totals)
        return loss, {**sums, "loss": loss}

    def add_gradients(
        sums: Sums,
        state: TrainState,
        frozen: Frozen,
        knobs: Knobs,
        batch: Batch,
        totals: Totals,
        key: PRNGKeyArray | None,
    ) -> Sums:
        def loss(trainable: nnx.State) -> tuple[Array, dict[str, Array]]:
            return loss_and_metrics(trainable, frozen, knobs, batch, totals, key)

        if members > 1:  # JAX maps no references, and a population's gradients are small
            gradients, metrics = jax.grad(loss, has_aux=True)(state.trainable)
            return jax.tree.map(jnp.add, sums, Sums(gradients, metrics))
        # Backward adds to the sums where they lie: gradients of its own would fill as much again.
        value, backward, metrics = jax.vjp(loss, state.trainable, has_aux=True)
        references = jax.tree.map(jax.new_ref, sums.gradients)
        backward.with_refs(references)(jnp.ones_like(value))  # type: ignore[attr-defined]
        return Sums(
            jax.tree.map(lambda reference: reference[...], references),
            jax.tree.map(jnp.add, sums.metrics, metrics),
        )

    def start(trainable: nnx.State) -> TrainState:
        return TrainState(trainable, optimizer.init(trainable), jnp.ones((), bool))

    def zeros(state: TrainState) -> Sums:
        metrics = {name: jnp.zeros(()) for name in PAIR_METRICS}
        return Sums(jax.tree.map(jnp.zeros_like, state.trainable), metrics)

    def update(
        state: TrainState, sums: Sums, knobs: Knobs, totals: Totals
    ) -> tuple[TrainState, dict[str, Array]]:
        """One AdamW step; none from the first on whose loss or gradient is not finite."""
        grad_norm = optax.tree.norm(sums.gradients)
        alive = state.alive & jnp.isfinite(grad_norm) & jnp.isfinite(sums.metrics["loss"])
        changes, new_optimizer = optimizer.update(sums.gradients, state.optimizer, state.trainable)
        new_trainable = jax.tree.map(
            lambda p, change: p - knobs.learning_rate * change, state.trainable, changes
        )
        new, old = TrainState(new_trainable, new_optimizer, alive), state._replace(alive=alive)
        kept = jax.tree.map(functools.partial(jnp.where, alive), new, old)
        means = {
            name: value if name == "loss" else value / totals.pairs
            for name, value in sums.metrics.items()
        }
        return kept, result({**means, "grad_norm": grad_norm, "alive": alive})

    def summary(knobs: Knobs, pairs: PairLogps) -> dict[str, Array]:
        """Every pair metric, as means over all given pairs (for `sft`, the loss over tokens)."""
        count = jnp.float32(pairs.logp_chosen.shape[0])
        sums = _metric_sums(specs, knobs, pairs, jnp.ones_like(pairs.logp_chosen))
        totals = Totals(count, jnp.sum(pairs.length_chosen))
        means = {name: value / count for name, value in sums.items()}
        return {**means, "loss": sums["loss"] / _denominator(specs, knobs.which, totals)}

    def result(tree: Any) -> Any:
        return tree if members > 1 else jax.tree.map(lambda x: x[None], tree)

    def each(function: Callable, axes: tuple) -> Callable:
        if members > 1:
            return jax.vmap(function, in_axes=axes)

        @functools.wraps(function)  # a compiled function is known by its name
        def alone(*arguments: Any) -> Any:
            return function(*(member(x, 0, 2) if isinstance(x, Knobs) else x for x in arguments))

        return alone

    def log_probs_of_one(
        trainable: nnx.State, frozen: Frozen, batch: Batch
    ) -> tuple[Float[Array, "1 B P 2"], Float[Array, "1 B P 2"]]:
        return jax.tree.map(lambda x: x[None], log_probs(trainable, frozen, batch))

    whole = replicated(mesh)
    one = jax.jit(log_probs_of_one, out_shardings=whole)
    several = jax.jit(jax.vmap(log_probs, in_axes=(0, None, None)), out_shardings=whole)
    # Left to itself the compiler would hold the optimiser's zeros whole on every device.
    state = jax.eval_shape(lambda t: each(start, (0,))(stacked([t] * members)), trainable)
    state_place = tree_shardings(state, config, mesh)
    member_state = jax.eval_shape(start, trainable)
    member_place = tree_shardings(member_state, config, mesh)
    sums_place = tree_shardings(jax.eval_shape(each(zeros, (0,)), state), config, mesh)
    return Program(
        start=jax.jit(each(start, (0,)), out_shardings=state_place),
        zeros=jax.jit(each(zeros, (0,)), out_shardings=sums_place),
        add_gradients=jax.jit(
            each(add_gradients, (0, 0, None, 0, None, None, None)),
            donate_argnums=0,
            out_shardings=sums_place,
        ),
        update=jax.jit(
            each(update, (0, 0, 0, None)),
            donate_argnums=0,
            out_shardings=(state_place, whole),
        ),
        log_probs=several if members > 1 else one,
        log_probs_of_one=one,
        summary=jax.jit(jax.vmap(summary), out_shardings=whole),
        specs=specs,
        members=members,
        member_state=jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            member_state,
            member_place,
        ),
    )


def _pair_logps(logps: Float[Array, "B P 2"], kl: Float[Array, "B P 2"], batch: Batch) -> PairLogps:
    columns = (logps, batch.ref_logps, batch.lengths, kl)
    return PairLogps(*(column[..., branch].reshape(-1) for column in columns for branch in (0, 1)))


def _metric_sums(
    specs: tuple[LossSpec, ...], knobs: Knobs, pairs: PairLogps, weight: Float[Array, " P"]
) -> dict[str, Float[Array, ""]]:
    values = pair_metrics(specs, knobs.which, pairs, knobs.scalars)
    return {name: jnp.sum(value * weight) for name, value in values.items()}


def _denominator(specs: tuple[LossSpec, ...], which: Array | int, totals: Totals) -> Array:
    """Pairs, or the tokens of the chosen responses for `sft`, which is a mean over tokens."""
    over_tokens = jnp.array([spec.name == "sft" for spec in specs])[which]
    return jnp.where(over_tokens, totals.chosen_tokens, totals.pairs)
