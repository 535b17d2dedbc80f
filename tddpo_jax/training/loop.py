"""The training loop: steps, validation, the best policy, the last state.

One loop trains one run, or a population of LoRA runs that share a seed and therefore their batches.
Between validations and saves the loop never makes the device wait: batches are packed in the
background, two steps are in flight, and metrics are read one step late.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from tddpo_jax.config.schema import Config
from tddpo_jax.placement.shardings import place, replicated
from tddpo_jax.runs.metric_writers import Writer
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.scoring.data_sets import ahead
from tddpo_jax.system.agreement import agree
from tddpo_jax.system.console import Screen
from tddpo_jax.training.checkpoints import Checkpoints, SaveClock, common_step
from tddpo_jax.training.outcome import export_best, summarise
from tddpo_jax.training.population import Member, Population
from tddpo_jax.training.prepare import Experiment
from tddpo_jax.training.run_facts import facts
from tddpo_jax.training.state import TrainState, stacked
from tddpo_jax.training.step_log import StepLog
from tddpo_jax.training.step_order import make_order
from tddpo_jax.training.validation import check_step_0, evaluate, evaluation_due

STEPS_IN_FLIGHT = 2
STEPS_PACKED_AHEAD = 2


def train(
    experiment: Experiment,
    configs: Sequence[Config],
    directories: Sequence[RunDirectory],
    screen: Screen,
) -> list[dict[str, Any]]:
    """Trains cells that share a seed as one population, and returns the summary of each.

    At the end every directory has `best/` and `summary.json`. If the loss or the gradient of a cell
    is not finite, the cell is recorded as diverged and keeps its last good checkpoint. The other
    cells go on. A cell that has a summary keeps its place in the population and is left alone.

    Args:
        experiment: the loaded model, data and programs.
        configs: the settings of the cells.
        directories: the directories of the cells, in the same order.
        screen: shows progress.

    Returns:
        The content of the `summary.json` of every cell that had none.

    Raises:
        UserError: a checkpoint is damaged, or the weights or data have changed since a run began.
        ValueError: policy and reference differ before the first step.
    """
    order = make_order(configs[0], len(experiment.shared.dataset.train))

    #### Start, or resume
    ended = agree(lambda: [directory.summary is not None for directory in directories])
    going = [number for number, is_over in enumerate(ended) if not is_over]
    for number in going:
        directories[number].create(facts(experiment.shared))
    checkpoints = {n: Checkpoints(directories[n].path / "checkpoints") for n in going}
    first_step = common_step(list(checkpoints.values()))
    for number in going:
        directories[number].rewind(first_step)
    writers = {number: Writer(directories[number]) for number in going}
    was_diverged = agree(lambda: [directory.divergence is not None for directory in directories])
    members = [
        Member(config, directory, writers.get(number), ended[number] or was_diverged[number])
        for number, (config, directory) in enumerate(zip(configs, directories, strict=True))
    ]
    population = Population(experiment, members, order, screen)
    program, frozen = population.program, experiment.policy.frozen
    if first_step:
        state = _restored(population, checkpoints, first_step)
        screen.say(f"resuming after step {first_step}")
    else:
        state = program.start(stacked([experiment.policy.fresh(order.seed)] * len(members)))
    log, saving = StepLog(population, first_step), SaveClock(configs[0].train.save_minutes)
    waiting: collections.deque[tuple[int, dict[str, Array]]] = collections.deque()

    with contextlib.ExitStack() as stack:
        for number in going:
            stack.callback(checkpoints[number].close)
            stack.callback(writers[number].close)
        if not first_step:
            check_step_0(population, state)
            evaluate(population, state, population.knobs(0), 0)

        #### Train
        steps = range(first_step, order.total_steps)
        batches = stack.enter_context(ahead(population.batches_of, steps, STEPS_PACKED_AHEAD))
        update_bar = stack.enter_context(screen.stage("training"))
        experiment.programs.say_if_new(program.add_gradients, "the training step", screen)
        log.start_clock()
        for step in steps:
            if population.has_ended:
                break
            knobs, totals = population.knobs(step), population.totals_of(step)
            sums = program.zeros(state)
            for number, batch in enumerate(next(batches)):
                log.starts(batch)
                key = population.dropout_key(step, number)
                sums = program.add_gradients(sums, state, frozen, knobs, batch, totals, key)
            state, metrics = program.update(state, sums, knobs, totals)
            del sums  # else the next step's sums would need memory beside these
            waiting.append((step, metrics))
            due = evaluation_due(configs[0], step + 1, order)
            saves = due or saving.is_due(step + 1)
            while waiting and (saves or len(waiting) >= STEPS_IN_FLIGHT):
                log.read(*waiting.popleft(), state, update_bar)

            #### Validate, keep the best and the last
            if due and not population.has_ended:
                evaluate(population, state, knobs, step + 1)
                export_best(population, state, step + 1)
            if saves and not population.has_ended:
                for number, checkpoint in checkpoints.items():
                    if not members[number].diverged:
                        checkpoint.save(step + 1, population.state_of(state, number).lasting)
                saving.start()
                log.start_clock()

    return [summarise(members[number], order.total_steps) for number in going]


def _restored(
    population: Population, checkpoints: Mapping[int, Checkpoints], step: int
) -> TrainState:
    """The states that were saved after `step` steps; other members get a copy of one of them."""
    experiment = population.experiment
    experiment.policy.take()  # frees the loaded weights, so that the saved ones have room
    like = population.program.member_state.lasting
    alive = place(np.ones((), bool), replicated(experiment.shared.mesh))
    states = {
        number: TrainState(**checkpoint.restore(step, like), alive=alive)
        for number, checkpoint in checkpoints.items()
    }
    any_state = next(iter(states.values()))
    return stacked([states.get(n, any_state) for n in range(len(population.members))])
