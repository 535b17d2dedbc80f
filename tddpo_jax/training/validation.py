"""Validation, the choice and the export of the best policy, and what to say when a run diverges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tddpo_jax.losses.pair_logps import PairLogps
from tddpo_jax.system.console import Screen
from tddpo_jax.training.outcome import end_diverged, rows_behind
from tddpo_jax.training.population import Member, policy_log_probs
from tddpo_jax.training.prepare import Prepared
from tddpo_jax.training.state import Knobs, TrainState, member
from tddpo_jax.training.step_order import Order

# Policy and reference are the same numbers through the same program; what is left is rounding.
STEP_0_NATS = {"float32": 1e-3, "bfloat16": 0.5}


def check_step_0(
    prepared: Prepared, state: TrainState, members: int, order: Order, screen: Screen
) -> None:
    """Policy and reference are one model before the first step; says how far they are apart.

    Raises:
        ValueError: they differ by more than rounding.
    """
    numbers = order.numbers(0)
    pairs = order.pairs_of(prepared.dataset.train, 0)
    logps, _ = policy_log_probs(prepared, state, members, pairs)
    reference = np.broadcast_to(prepared.reference[numbers], logps.shape)
    # A log-prob that is not finite is left to the first step, which names its rows.
    scored = np.isfinite(logps) & np.isfinite(reference)
    difference = float(np.max(np.abs(logps[scored] - reference[scored]), initial=0.0))
    bound = STEP_0_NATS[str(prepared.dtype)]
    text = f"policy against reference before the first step: |log-ratio| <= {difference:.1e} nats"
    screen.say(f"{text} (bound {bound:g})")
    if not difference <= bound:
        raise ValueError(f"policy and reference differ by {difference:.3g} nats at step 0")


def evaluate(
    prepared: Prepared,
    state: TrainState,
    knobs: Knobs,
    members: Sequence[Member],
    step: int,
    order: Order,
    screen: Screen,
) -> None:
    """Logs the metrics of the whole validation set, means over pairs, for every member.

    A member with a number among them that is not finite has no policy any more: it has diverged,
    and what it saved before stays as it was.
    """
    validation = prepared.dataset.validation
    if not validation:
        if step:
            _check_weights(prepared, state, members, step, order, screen)
        return
    with screen.stage("validation") as update:
        logps, kls = policy_log_probs(prepared, state, len(members), validation, update)
    reference = prepared.validation_reference
    lengths = np.array([[len(p.chosen), len(p.rejected)] for p in validation], np.float32)
    whole = [np.broadcast_to(x, logps.shape) for x in (logps, reference, lengths, kls)]
    # Left on the host, where all hosts have the same: an array on a device would be one host's own.
    columns: Any = (x[..., branch] for x in whole for branch in (0, 1))
    pairs = PairLogps(*columns)
    values = jax.device_get(prepared.program(len(members)).summary(knobs, pairs))
    for number, run in enumerate(members):
        if run.diverged:
            continue
        metrics = {f"eval_{name}": float(value[number]) for name, value in values.items()}
        if not all(map(math.isfinite, metrics.values())):
            what = f"validation is not finite after step {step}; rows of the validation data"
            screen.say(end_diverged(run, step, what, rows_behind(validation, logps[number]), order))
            continue
        run.writer.log({"step": step, "epoch": order.epoch(step), **metrics})
        run.directory.save_evaluation(step, logps[number])
        if step == 0:
            run.directory.save_evaluation("reference", reference)
            run.directory.save_evaluation("lengths", lengths)
        screen.say(
            f"{run.directory.path.name} step {step}: eval_loss {metrics['eval_loss']:.4f}  "
            f"eval_rewards/accuracies {metrics['eval_rewards/accuracies']:.4f}  "
            f"eval_kl {metrics['eval_kl']:.3g}"
        )


def _check_weights(
    prepared: Prepared,
    state: TrainState,
    members: Sequence[Member],
    step: int,
    order: Order,
    screen: Screen,
) -> None:
    """What validation would show, without one: a policy that its last step broke."""
    rows = [pair.row for pair in order.pairs_of(prepared.dataset.train, step - 1)]
    for number, run in enumerate(members):
        weights = jax.tree.leaves(member(state.trainable, number, len(members)))
        if run.diverged or all(bool(jnp.isfinite(weight).all()) for weight in weights):
            continue
        what = f"weights are not finite after step {step}; rows of the data"
        screen.say(end_diverged(run, step, what, rows, order))
