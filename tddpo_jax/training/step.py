"""The compiled step: log-probs of a micro-batch, their gradients, and the optimiser's update.

Every number of a loss, the learning rate, the weight decay and the choice of the loss are
arguments, so a whole grid shares these programs. The functions of this file are for one policy. A
program trains a population of policies: its `knobs` and results have a leading axis M of members.
If there are several members, parameters, optimiser states and sums have that axis too, and the
functions are mapped over it. All members share one frozen base.

Letters: M members, B rows, T stream positions, D width, V vocabulary, P examples of a row,
N responses of an example.
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
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from tddpo_jax.batches.layout import Batch
from tddpo_jax.losses.logprobs import branch_kl, branch_logps
from tddpo_jax.losses.metric_names import EXPERT_LOAD, ROUTER_LOSS
from tddpo_jax.losses.objective import Objective
from tddpo_jax.losses.pair_logps import PairLogps, pair_logps
from tddpo_jax.models.architecture import DecoderConfig, expert_layers
from tddpo_jax.models.decoder import Decoder
from tddpo_jax.models.experts.routing import Route, load
from tddpo_jax.models.experts.usage import Usage, balance_loss, usage
from tddpo_jax.placement.computation import Computation
from tddpo_jax.placement.shardings import (
    head_sharding,
    on,
    replicated,
    tree_shardings,
)
from tddpo_jax.scoring.forward import hidden_states, states_and_notes
from tddpo_jax.system.console import Screen
from tddpo_jax.training.state import Frozen, Knobs, Sums, Totals, TrainState, member, stacked

# Lines for the user call the program of the log-probs so.
FORWARD = "the forward pass"


@dataclasses.dataclass(frozen=True)
class StepSetting:
    """Everything that is fixed when a step is compiled."""

    graphdef: nnx.GraphDef  # structure of the model, for (trained, frozen) parameters
    model: DecoderConfig
    objective: Objective  # the losses that `Knobs.which` chooses among
    # The step scales its updates by -learning rate.
    optimizer: optax.GradientTransformationExtraArgs
    how: Computation
    responses: int = 2  # number of responses per example
    router_loss: float = 0.0  # weight of the loss of trained routers

    @property
    def mesh(self) -> Mesh:
        """The mesh over which the rows of a batch are spread."""
        return self.how.rows.mesh  # type: ignore[return-value]


#### Log-probs


def gathered_head(setting: StepSetting, model: Decoder) -> Float[Array, "V D"]:
    """The head, gathered over fsdp once; without the constraint every chunk would gather it."""
    with jax.named_scope("head"):
        return jax.lax.with_sharding_constraint(model.head_weight, head_sharding(setting.mesh))


def log_probs(
    setting: StepSetting,
    trained: nnx.State,
    frozen: Frozen,
    batch: Batch,
    key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "B P values"], Float[Array, "B P N"]]:
    """Log-probs of the responses and what a loss needs beside them.

    Those of the tails follow if a loss reads them. The exact KL to the reference is zero if no loss
    needs it.

    Args:
        setting: what is fixed when the step is compiled.
        trained: trained parameters of one policy.
        frozen: the other parameters, and the reference.
        batch: a packed micro-batch.
        key: random key of the adapters' dropout; None for no dropout.
    """
    return log_probs_and_usage(setting, trained, frozen, batch, key)[:2]


def log_probs_and_usage(
    setting: StepSetting,
    trained: nnx.State,
    frozen: Frozen,
    batch: Batch,
    key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "B P values"], Float[Array, "B P N"], Usage | None]:
    """`log_probs`, and what the tokens do with the experts of all layers; None without experts."""

    def note(route: Route) -> Usage:
        return usage(route, batch.uses, with_balance=setting.router_loss > 0)

    model = nnx.merge(setting.graphdef, trained, frozen.base)
    states, notes = states_and_notes(model, batch, setting.how, note, key)
    used = jax.tree.map(_of_layers, *notes) if notes else None
    head = gathered_head(setting, model)
    logps = branch_logps(states, head, batch, with_tails=setting.objective.decoupled)
    if not setting.objective.exact_kl:
        return logps, jnp.zeros_like(batch.lengths), used
    reference = nnx.merge(setting.graphdef, frozen.reference, frozen.base)
    ref_states = jax.lax.stop_gradient(hidden_states(reference, batch, setting.how))
    kl = branch_kl(states, head, ref_states, gathered_head(setting, reference), batch)
    return logps, kl, used


def _of_layers(*stacks: Float[Array, "layers B E"]) -> Float[Array, "all_layers E"]:
    """The sums over rows, for the layers of all stacks."""
    return jnp.sum(jnp.concatenate(stacks), axis=1)


def log_probs_of_one(
    setting: StepSetting, trained: nnx.State, frozen: Frozen, batch: Batch
) -> tuple[Float[Array, "1 B P values"], Float[Array, "1 B P N"]]:
    """`log_probs` with an axis of one member."""
    return jax.tree.map(lambda x: x[None], log_probs(setting, trained, frozen, batch))


#### Loss and metrics


def _pair_logps(
    logps: Float[Array, "B P values"], kl: Float[Array, "B P N"], batch: Batch
) -> PairLogps:
    by_row = pair_logps(logps, batch.ref_logps, batch.lengths, kl)
    return jax.tree.map(lambda column: column.reshape(-1), by_row)


def _metric_sums(
    setting: StepSetting,
    knobs: Knobs,
    pairs: PairLogps,
    weight: Float[Array, " P"],
    totals: Totals,
) -> dict[str, Float[Array, ""]]:
    scalars = {**knobs.scalars, "tokens_per_pair": totals.chosen_tokens / totals.examples}
    values = setting.objective.metrics(knobs.which, pairs, scalars)
    return {name: jnp.sum(value * weight) for name, value in values.items()}


def loss_and_metrics(
    setting: StepSetting,
    trained: nnx.State,
    frozen: Frozen,
    knobs: Knobs,
    batch: Batch,
    totals: Totals,
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], Float[Array, "layers E"] | None]]:
    """A micro-batch's part of the step's loss, and what it adds to `Sums`.

    That is the sums of its metrics over examples, and the choices of its tokens. The loss of the
    routers counts as much as the examples of the micro-batch.
    """
    logps, kl, used = log_probs_and_usage(setting, trained, frozen, batch, key)
    with jax.named_scope("loss"):
        pairs = _pair_logps(logps, kl, batch)
        sums = _metric_sums(setting, knobs, pairs, batch.weight.reshape(-1), totals)
        loss = sums["loss"] / totals.examples
    if used is None:
        return loss, ({**sums, "loss": loss}, None)
    if used.balance is not None:
        with jax.named_scope("router_loss"):
            sums[ROUTER_LOSS] = jnp.sum(batch.weight) * balance_loss(used.balance)
            loss += setting.router_loss * sums[ROUTER_LOSS] / totals.examples
    return loss, ({**sums, "loss": loss}, used.choices)


def summary(setting: StepSetting, knobs: Knobs, pairs: PairLogps) -> dict[str, Array]:
    """Every metric as a mean over all given examples."""
    count = jnp.float32(pairs.logp_chosen.shape[0])
    totals = Totals(count, jnp.sum(pairs.length_chosen))
    sums = _metric_sums(setting, knobs, pairs, jnp.ones_like(pairs.logp_chosen), totals)
    return {name: value / count for name, value in sums.items()}


#### Gradients


def zeros(setting: StepSetting, state: TrainState) -> Sums:
    """The sums of a step before its first micro-batch."""
    names = setting.objective.metric_names(setting.responses)
    routers = (ROUTER_LOSS,) if setting.router_loss else ()
    metrics = {name: jnp.zeros(()) for name in (*names, *routers)}
    choices = None
    if found := expert_layers(setting.model):
        layers, shape = found
        choices = jnp.zeros((layers, shape.experts))
    return Sums(jax.tree.map(jnp.zeros_like, state.trainable), metrics, choices)


def add_gradients(
    setting: StepSetting,
    sums: Sums,
    state: TrainState,
    frozen: Frozen,
    knobs: Knobs,
    batch: Batch,
    totals: Totals,
    key: PRNGKeyArray | None,
    *,
    in_place: bool,
) -> Sums:
    """Adds the sums of one more micro-batch.

    If `in_place`, the backward pass adds to the gradient sums where they are in memory. Separate
    gradients would need the same memory again. This uses references, which JAX cannot map over
    members. A population's gradients are those of adapters and therefore small.
    """

    def loss(trained: nnx.State) -> tuple[Array, tuple[dict[str, Array], Array | None]]:
        return loss_and_metrics(setting, trained, frozen, knobs, batch, totals, key)

    if not in_place:
        gradients, (metrics, choices) = jax.grad(loss, has_aux=True)(state.trainable)
        return jax.tree.map(jnp.add, sums, Sums(gradients, metrics, choices))
    value, backward, (metrics, choices) = jax.vjp(loss, state.trainable, has_aux=True)
    references = jax.tree.map(jax.new_ref, sums.gradients)
    backward.with_refs(references)(jnp.ones_like(value))  # type: ignore[attr-defined]
    return Sums(
        jax.tree.map(lambda reference: reference[...], references),
        jax.tree.map(jnp.add, sums.metrics, metrics),
        jax.tree.map(jnp.add, sums.choices, choices),
    )


#### Update


def start(setting: StepSetting, trained: nnx.State) -> TrainState:
    """The state of one policy before the first step."""
    return TrainState(trained, setting.optimizer.init(trained), jnp.ones((), bool))


def update(
    setting: StepSetting,
    state: TrainState,
    sums: Sums,
    knobs: Knobs,
    totals: Totals,
    *,
    lone: bool,
) -> tuple[TrainState, dict[str, Array]]:
    """One step of AdamW, and the step's metrics.

    A step whose loss or gradient is not finite changes nothing, and no later step does. The metrics
    of a lone policy, which is not mapped over members, get their axis of members here.
    """
    with jax.named_scope("optimizer"):
        grad_norm = optax.tree.norm(sums.gradients)
        alive = state.alive & jnp.isfinite(grad_norm) & jnp.isfinite(sums.metrics["loss"])
        changes, new_optimizer = setting.optimizer.update(
            sums.gradients, state.optimizer, state.trainable, weight_decay=knobs.weight_decay
        )
        new_trained = jax.tree.map(
            lambda p, change: p - knobs.learning_rate * change, state.trainable, changes
        )
        new, old = TrainState(new_trained, new_optimizer, alive), state._replace(alive=alive)
        kept = jax.tree.map(functools.partial(jnp.where, alive), new, old)
    means = {
        name: value if name == "loss" else value / totals.examples
        for name, value in sums.metrics.items()
    }
    loads = {} if sums.choices is None else {EXPERT_LOAD: jnp.max(load(sums.choices))}
    metrics = {**means, **loads, "grad_norm": grad_norm, "alive": alive}
    return kept, jax.tree.map(lambda x: x[None], metrics) if lone else metrics


#### Programs


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions for populations of one size; see `make_program`.

    `log_probs` gives log-probs and exact KLs, `[M, B, P, N]` each. `log_probs_of_one` takes
    parameters without an axis of members and gives M = 1. The arguments and results of `summary`
    have an axis M. `member_state` has the shapes, dtypes and shardings of one member's state.
    """

    start: Callable[[nnx.State], TrainState]
    zeros: Callable[[TrainState], Sums]
    add_gradients: Callable[..., Sums]
    update: Callable[[TrainState, Sums, Knobs, Any], tuple[TrainState, dict[str, Array]]]
    log_probs: Callable[[nnx.State, Frozen, Batch], tuple[Array, Array]]
    log_probs_of_one: Callable[[nnx.State, Frozen, Batch], tuple[Array, Array]]
    summary: Callable[[Knobs, PairLogps], dict[str, Array]]
    member_state: TrainState


class Programs:
    """The programs of an experiment, one for each size of population; each is made once."""

    def __init__(self, setting: StepSetting, trained: nnx.State) -> None:
        """
        Args:
            setting: what is fixed when a step is compiled.
            trained: the trained parameters of one member, or their shapes.
        """
        self.setting, self.trained = setting, trained
        self._made: dict[int, Program] = {}
        self._called: set[int] = set()

    def of(self, members: int) -> Program:
        """The program for a population of this size."""
        if members not in self._made:
            self._made[members] = make_program(self.setting, self.trained, members)
        return self._made[members]

    def say_if_new(self, function: Callable, what: str, screen: Screen) -> None:
        """Says that a function is about to compile, which may take minutes: before its first call.

        Args:
            function: a function of one of the programs.
            what: the function in words.
            screen: prints the line.
        """
        if id(function) not in self._called:
            self._called.add(id(function))
            screen.say(f"compiling {what}")


def make_program(setting: StepSetting, trained: nnx.State, members: int = 1) -> Program:
    """Builds the functions that train and evaluate; each compiles at its first call per shape.

    Args:
        setting: what is fixed when a step is compiled.
        trained: the trained parameters of one member, or their shapes.
        members: size of the population.
    """
    mesh, whole = setting.mesh, replicated(setting.mesh)

    def bound(function: Callable, **fixed: Any) -> Callable:
        """The function with the setting; it keeps its name, because JAX logs compilations by it."""
        return _named(functools.partial(function, setting, **fixed), function.__name__)

    def each(function: Callable, axes: tuple) -> Callable:
        return _each(function, members, axes)

    start_all, zeros_all = each(bound(start), (0,)), each(bound(zeros), (0,))
    # Without stated shardings the compiler would keep the optimiser's zeros whole on every device.
    state = jax.eval_shape(lambda one: start_all(stacked([one] * members)), trained)
    state_place = tree_shardings(state, setting.model, mesh)
    sums_place = tree_shardings(jax.eval_shape(zeros_all, state), setting.model, mesh)
    member_state = jax.eval_shape(bound(start), trained)
    log_probs_alone = jax.jit(bound(log_probs_of_one), out_shardings=whole)
    log_probs_of_all = jax.jit(
        jax.vmap(bound(log_probs), in_axes=(0, None, None)), out_shardings=whole
    )
    return Program(
        start=jax.jit(start_all, out_shardings=state_place),
        zeros=jax.jit(zeros_all, out_shardings=sums_place),
        add_gradients=jax.jit(
            each(bound(add_gradients, in_place=members == 1), (0, 0, None, 0, None, None, None)),
            donate_argnums=0,
            out_shardings=sums_place,
        ),
        update=jax.jit(
            each(bound(update, lone=members == 1), (0, 0, 0, None)),
            donate_argnums=0,
            out_shardings=(state_place, whole),
        ),
        log_probs=log_probs_alone if members == 1 else log_probs_of_all,
        log_probs_of_one=log_probs_alone,
        summary=jax.jit(jax.vmap(bound(summary)), out_shardings=whole),
        member_state=on(member_state, tree_shardings(member_state, setting.model, mesh)),
    )


def _named(function: Callable, name: str) -> Callable:
    function.__name__ = name
    return function


def _each(function: Callable, members: int, axes: tuple) -> Callable:
    """The function for all members, mapped over these axes.

    The parameters of a lone policy have no axis of members. Its function is not mapped. Only its
    knobs have that axis, which is taken off.
    """
    if members > 1:
        return jax.vmap(function, in_axes=axes)

    def alone(*arguments: Any) -> Any:
        return function(*(member(x, 0, 2) if isinstance(x, Knobs) else x for x in arguments))

    return _named(alone, function.__name__)
