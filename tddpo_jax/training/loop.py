"""The loop: steps, validation, the best policy, the last state.

One loop trains one run, or a population of LoRA runs that share a seed and so their batches. It
does not wait for the device on its way: batches are packed in the background, two steps are in
flight, and metrics are read a step late.
"""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from tddpo_jax.batches.layout import Batch, Example
from tddpo_jax.batches.packing import pack
from tddpo_jax.config.schema import Config
from tddpo_jax.losses.catalogue import LossScalars, LossSpec
from tddpo_jax.placement.shardings import place, replicated, rows_here
from tddpo_jax.runs.metric_writers import Writer
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.scoring.data_sets import ahead, place_batch
from tddpo_jax.system.agreement import agree
from tddpo_jax.system.console import Screen
from tddpo_jax.training.checkpoints import Checkpoints, common_step
from tddpo_jax.training.optimizer import learning_rate
from tddpo_jax.training.outcome import export_best, summarise
from tddpo_jax.training.population import Member
from tddpo_jax.training.prepare import Prepared, loss_spec
from tddpo_jax.training.run_facts import facts
from tddpo_jax.training.state import Knobs, Totals, TrainState, member, stacked
from tddpo_jax.training.step import Program
from tddpo_jax.training.step_log import StepLog
from tddpo_jax.training.step_order import Order, make_order
from tddpo_jax.training.validation import check_step_0, evaluate

STEPS_IN_FLIGHT = 2
STEPS_PACKED_AHEAD = 2


def train(
    prepared: Prepared,
    configs: Sequence[Config],
    directories: Sequence[RunDirectory],
    screen: Screen,
) -> list[dict[str, Any]]:
    """Trains cells that share a seed, as one population, and returns the summary of each.

    Every directory ends with `best/` and `summary.json`. A cell whose loss or gradient is no
    longer finite is over, recorded as diverged, and keeps its last good checkpoint; the others go
    on.

    Raises:
        UserError: policy and reference differ before the first step.
    """
    program, frozen = prepared.program(len(configs)), prepared.frozen
    order = make_order(configs[0], len(prepared.dataset.train))

    #### Start, or resume
    for directory in directories:
        directory.create(facts(prepared))
    checkpoints = [Checkpoints(directory.path / "checkpoints") for directory in directories]
    first_step = common_step(checkpoints)
    if first_step:
        state = _restored(prepared, program, checkpoints, first_step)
        screen.say(f"resuming after step {first_step}")
    else:
        state = program.start(stacked([prepared.fresh(order.seed)] * len(configs)))
    for directory in directories:
        directory.rewind(first_step)
    was_diverged = agree(lambda: [directory.divergence is not None for directory in directories])
    members = [
        Member(config, directory, Writer(directory, config, first_step), diverged)
        for config, directory, diverged in zip(configs, directories, was_diverged, strict=True)
    ]
    reader = StepLog(prepared, members, order, first_step, screen)
    waiting: collections.deque[tuple[int, dict[str, Array]]] = collections.deque()

    def over() -> bool:
        return all(run.diverged for run in members)

    with contextlib.ExitStack() as stack:
        for checkpoint, run in zip(checkpoints, members, strict=True):
            stack.callback(checkpoint.close)
            stack.callback(run.writer.close)
        if not first_step:
            check_step_0(prepared, state, len(members), order, screen)
            knobs = _knobs(program.specs, configs, 0, order)
            evaluate(prepared, state, knobs, members, 0, order, screen)

        #### Train
        steps = range(first_step, order.total_steps)
        packed = functools.partial(_packed, prepared, order)
        batches = stack.enter_context(ahead(packed, steps, STEPS_PACKED_AHEAD))
        update_bar = stack.enter_context(screen.stage("training"))
        reader.start_clock()
        for step in steps:
            if over():
                break
            knobs = _knobs(program.specs, configs, step, order)
            totals = _totals(order.examples_of(prepared.dataset.train, step))
            sums = program.zeros(state)
            for number, batch in enumerate(next(batches)):
                key = _dropout_key(configs[0], step, number)
                sums = program.add_gradients(sums, state, frozen, knobs, batch, totals, key)
            state, metrics = program.update(state, sums, knobs, totals)
            del sums  # or the next step's would lie beside them
            waiting.append((step, metrics))
            due = evaluation_due(configs[0], step + 1, order)
            while waiting and (due or len(waiting) >= STEPS_IN_FLIGHT):
                reader.read(*waiting.popleft(), state, update_bar)

            #### Validate, keep the best and the last
            if due and not over():
                evaluate(prepared, state, knobs, members, step + 1, order, screen)
                last = step + 1 == order.total_steps
                export_best(prepared, state, members, step + 1, last=last)
                for number, (checkpoint, run) in enumerate(zip(checkpoints, members, strict=True)):
                    if not run.diverged:
                        checkpoint.save(step + 1, member(state, number, len(members)).lasting)
                reader.start_clock()

    return [summarise(run, order.total_steps) for run in members]


def _restored(
    prepared: Prepared, program: Program, checkpoints: Sequence[Checkpoints], step: int
) -> TrainState:
    """The states that were saved after `step` steps, on the devices beside no other weights."""
    prepared.loaded = None
    like = program.member_state.lasting
    alive = place(np.ones((), bool), replicated(prepared.mesh))
    return stacked(
        [TrainState(**checkpoint.restore(step, like), alive=alive) for checkpoint in checkpoints]
    )


def evaluation_due(config: Config, step: int, order: Order) -> bool:
    """After `step` steps: every `train.eval_every`, at the end of every epoch, and at the end."""
    every = config.train.eval_every
    due = every is not None and step % every == 0
    return due or step == order.total_steps or order.ends_epoch(step)


def _totals(examples: Sequence[Example]) -> Totals:
    chosen_tokens = sum(len(example.responses[0]) for example in examples)
    return Totals(float(len(examples)), float(chosen_tokens))


def _knobs(specs: Sequence[LossSpec], configs: Sequence[Config], step: int, order: Order) -> Knobs:
    """Every number that the compiled step takes, `[M]` each."""
    members = []
    for config in configs:
        loss = config.loss
        scalars = LossScalars(
            beta=loss.beta,
            tau=loss.tau,
            label_smoothing=loss.label_smoothing,
            discopop_tau=loss.discopop_tau,
            simpo_gamma=loss.simpo_gamma,
        )
        rate = learning_rate(config.train, step, order.total_steps)
        members.append(Knobs(specs.index(loss_spec(config)), scalars, rate))
    # Arrays of a fixed dtype: a Python number would compile again as a weakly typed one.
    return jax.tree.map(
        lambda *values: np.array(values, np.int32 if isinstance(values[0], int) else np.float32),
        *members,
    )


def _dropout_key(config: Config, step: int, number: int) -> Array | None:
    if config.train.mode == "full" or config.lora.dropout == 0:
        return None
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    return jax.random.fold_in(key, number)


def _packed(prepared: Prepared, order: Order, step: int) -> list[Batch]:
    """The micro-batches of a step, packed and placed."""
    examples = order.examples_of(prepared.dataset.train, step)
    reference = prepared.reference[order.numbers(step)]
    here = functools.partial(rows_here, prepared.mesh)
    packed = pack(examples, prepared.shapes, reference, here)
    return [place_batch(batch, prepared.mesh) for batch in packed]
