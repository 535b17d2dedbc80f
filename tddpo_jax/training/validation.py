"""Measures between steps: policy against reference at step 0, and the validation set."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from tddpo_jax.batches.layout import score_counts
from tddpo_jax.config.schema import Config
from tddpo_jax.losses.metric_names import SATURATED
from tddpo_jax.losses.pair_logps import pair_logps
from tddpo_jax.training.answering import answer_prompts
from tddpo_jax.training.outcome import end_diverged, rows_behind
from tddpo_jax.training.population import Population
from tddpo_jax.training.result_warnings import saturation
from tddpo_jax.training.state import Knobs, TrainState
from tddpo_jax.training.step_order import Order

# At step 0 policy and reference compute the same function of the same weights. They may differ only
# by rounding, at most by these numbers of nats.
STEP_0_NATS = {"float32": 1e-3, "bfloat16": 0.5}


def evaluation_due(config: Config, step: int, order: Order) -> bool:
    """Whether a validation is due after `step` steps.

    It is due at the end of an epoch, at the end of the run, and at multiples of `train.eval_every`.
    """
    every = config.train.eval_every
    due = every is not None and step % every == 0
    return due or step == order.total_steps or order.ends_epoch(step)


def check_step_0(population: Population, state: TrainState) -> None:
    """Prints how much policy and reference differ before the first step.

    A separate reference may differ by any number.

    Args:
        population: the runs.
        state: the state of all members before the first step.

    Raises:
        ValueError: they differ by more than rounding.
    """
    logps, _ = population.log_probs(state, population.examples_of(0))
    reference = np.broadcast_to(population.reference_of(0), logps.shape)
    # A log-prob that is not finite is skipped here. The first step reports it with its row.
    scored = np.isfinite(logps) & np.isfinite(reference)
    difference = float(np.max(np.abs(logps[scored] - reference[scored]), initial=0.0))
    bound = STEP_0_NATS[str(population.experiment.shared.how.dtype)]
    text = f"before the first step, policy and reference differ by at most {difference:.1e} nats"
    if population.experiment.shared.reference is not None:
        population.screen.say(f"{text}: the reference is another model")
        return
    population.screen.say(f"{text} (bound {bound:g})")
    if not difference <= bound:
        raise ValueError(f"policy and reference differ by {difference:.3g} nats at step 0")


def evaluate(population: Population, state: TrainState, knobs: Knobs, step: int) -> None:
    """Logs every member's metrics of the whole validation set, as means over examples.

    Then the members answer a few of its prompts.

    If a metric of a member is not finite, the member has diverged. The files that it saved before
    stay as they are.

    Args:
        population: the runs.
        state: the state of all members.
        knobs: the numbers of the losses, `[M]` each.
        step: optimiser steps so far.
    """
    experiment, screen = population.experiment, population.screen
    validation = experiment.shared.dataset.validation
    if not validation:
        if step:
            _check_weights(population, state, step)
        return
    with screen.stage("validation") as update:
        logps, kls = population.log_probs(state, validation, update)
    reference = experiment.reference.validation
    lengths = np.array([score_counts(each) for each in validation], np.float32)
    # These arrays stay on the host: all hosts hold the same values there. An array on a device
    # would belong to one host.
    members = len(logps)
    whole = [np.broadcast_to(x, (members, *x.shape[-2:])) for x in (logps, reference, lengths, kls)]
    values = jax.device_get(population.program.summary(knobs, pair_logps(*whole)))
    for number, run in enumerate(population.members):
        if run.diverged:
            continue
        metrics = {
            f"eval_{name}": float(value[number])
            for name, value in values.items()
            if name not in run.without
        }
        if not all(map(math.isfinite, metrics.values())):
            what = f"validation is not finite after step {step}; rows of the validation data"
            rows = rows_behind(validation, logps[number])
            screen.say(end_diverged(run, step, what, rows, population.order))
            continue
        run.log({"step": step, "epoch": population.order.epoch(step), **metrics})
        responses = lengths.shape[1]  # the log-probs of tails stand behind theirs
        run.directory.save_evaluation(step, logps[number, :, :responses])
        if step == 0:
            run.directory.save_evaluation("reference", reference[:, :responses])
            run.directory.save_evaluation("lengths", lengths)
        formats = {"eval_loss": ".4f", "eval_rewards/accuracies": ".4f", "eval_kl": ".3g"}
        if step == 0:
            formats[f"eval_{SATURATED}"] = ".3f"
        shown = [
            f"{name} {metrics[name]:{form}}" for name, form in formats.items() if name in metrics
        ]
        screen.say(f"{run.directory.path.name} step {step}: {'  '.join(shown)}")
        for line in saturation(run.config, metrics.get(f"eval_{SATURATED}")) if step == 0 else ():
            screen.say(f"{run.directory.path.name}: {line}")
    answer_prompts(population, state, step)


def _check_weights(population: Population, state: TrainState, step: int) -> None:
    """Ends members with weights that are not finite; without validation data nothing else would."""
    rows = [example.place for example in population.examples_of(step - 1)]
    for number, run in enumerate(population.members):
        weights = jax.tree.leaves(population.state_of(state.trainable, number))
        if run.diverged or all(bool(jnp.isfinite(weight).all()) for weight in weights):
            continue
        what = f"weights are not finite after step {step}; rows of the data"
        population.screen.say(end_diverged(run, step, what, rows, population.order))
