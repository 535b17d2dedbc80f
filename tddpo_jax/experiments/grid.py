"""Trains the cells of an experiment: one run, or every point of a grid."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from tddpo_jax.config.cells import grid_axes, own_numbers, populations
from tddpo_jax.config.dotted import get
from tddpo_jax.config.own_function import function_name
from tddpo_jax.experiments.cell_table import CellTable
from tddpo_jax.experiments.describe import describe_plan, describe_result, describe_warnings
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.runs.grid_directory import (
    cell_directories,
    cell_names,
    check_cells,
    output_of,
    record_grid,
    recorded_losses,
)
from tddpo_jax.runs.locks import claim
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.runs.weights_and_biases import check_wandb
from tddpo_jax.system.agreement import agree
from tddpo_jax.system.console import Screen
from tddpo_jax.training.checkpoints import saved_steps
from tddpo_jax.training.loop import train
from tddpo_jax.training.prepare import Experiment, prepare
from tddpo_jax.training.run_facts import facts
from tddpo_jax.training.shared import load_shared
from tddpo_jax.training.step_order import make_order

# Time between two looks at the cells that other processes train.
WAIT_SECONDS = 5.0
# The numbers of a loss that are named even if a grid has one value of them.
ALWAYS_SAID = ("beta", "tau")


def run_experiment(
    settings: dict[str, Any],
    screen: Screen,
    on_record: Callable[[str, dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Trains every unfinished cell, and returns the summaries of all cells.

    Args:
        settings: the settings of the experiment, not yet validated.
        screen: shows progress and warnings.
        on_record: is called with a cell's name and every line of its `metrics.jsonl`.

    Raises:
        UserError: a setting is wrong, or a directory holds a run of another configuration.
    """
    directories = cell_directories(settings)
    if on_record is not None:
        for directory, name in zip(directories, cell_names(directories), strict=True):
            directory.on_record = functools.partial(on_record, name)
    check_wandb(directories[0].config, len(directories))
    _say_ignored_axes(settings, directories, screen)
    _say_ignored_population(directories, screen)
    left = _unfinished(directories)
    if len(left) < len(directories):
        over = len(directories) - len(left)
        screen.say(f"{over} of {len(directories)} cells already finished; skipping them")
    if left:
        # Its programs serve the whole grid, whatever is left of it. Programs of fewer losses give
        # other last digits.
        configs = [directory.config for directory in directories]
        experiment = prepare(configs, screen, recorded_losses(directories))
        check_cells(directories, facts(experiment.shared))
        describe_plan(experiment, len(left), screen)
        record_grid(directories)
        shared = experiment.shared
        steps = make_order(shared.config, len(shared.dataset.train)).total_steps
        train_cells(experiment, directories, CellTable(directories, steps), screen)
    elif any(directory.is_renamed for directory in directories):
        shared = load_shared([directory.config for directory in directories], screen)
        check_cells(directories, facts(shared))
    if len(directories) == 1:
        describe_result(directories[0], screen)
    else:
        for directory in directories:
            describe_warnings(directory, screen)
        screen.say(f"compare the cells: python -m tddpo_jax report {output_of(directories)}")
    return agree(lambda: [directory.summary or {} for directory in directories])


def _say_ignored_axes(
    settings: dict[str, Any], directories: Sequence[RunDirectory], screen: Screen
) -> None:
    axes = [axis for axis in grid_axes(own_numbers(settings)) if axis.startswith("loss.")]
    given = {axis.rpartition(".")[2]: get(settings, axis) for axis in axes if axis != "loss.name"}
    counts = {axis: len(values) for axis, values in given.items() if isinstance(values, list)}
    for name in dict.fromkeys(directory.config.loss.name for directory in directories):
        read = LOSSES[name].settings
        own = [axis for axis in given if axis in read and (axis in counts or axis in ALWAYS_SAID)]
        for axis, count in counts.items():
            if count > 1 and axis not in read:
                per = " and ".join([*own, "seed"])
                screen.say(
                    f"{function_name(name)} has no {axis}: it has one cell, not {count}, per {per}"
                )


def _say_ignored_population(directories: Sequence[RunDirectory], screen: Screen) -> None:
    population = directories[0].config.train.population
    if population and max(map(len, _populations(directories))) == 1:
        screen.say("warning: train.population has no effect here: every cell trains alone")


def train_cells(
    experiment: Experiment, cells: Sequence[RunDirectory], table: CellTable, screen: Screen
) -> None:
    """Trains cells that no other process has claimed, until all cells are finished.

    Args:
        experiment: the loaded model and data.
        cells: all cells, the finished ones among them.
        table: shows the state of all cells.
        screen: shows progress.
    """
    if len(table.cells) == 1:
        _train_cells(experiment, cells, table, screen)
        return
    with screen.drawing(lambda: table.draw(screen.console.height)):
        _train_cells(experiment, cells, table, screen)
    screen.show(table.draw())


def _train_cells(
    experiment: Experiment, cells: Sequence[RunDirectory], table: CellTable, screen: Screen
) -> None:
    waiting = False
    left = [group for group in _populations(cells) if _unfinished(group)]
    while left:
        held = []
        for population in left:
            rest = _unfinished(population)
            with claim([directory.path for directory in rest]) as ours:
                # Another process may have finished some of these cells since the last look.
                rest = _unfinished(rest)
                if not ours:
                    held.append(population)
                    table.refuse(rest)
                for group in _in_step(rest) if ours else ():
                    with table.training(group, screen):
                        _train_population(experiment, population, group, screen)
        if len(held) == len(left):
            if not waiting:
                count = sum(len(_unfinished(population)) for population in held)
                screen.say(f"waiting for other processes to finish their cells ({count})")
            waiting = True
            time.sleep(WAIT_SECONDS)
        left = [group for group in held if _unfinished(group)]


def _train_population(
    experiment: Experiment,
    population: Sequence[RunDirectory],
    group: Sequence[RunDirectory],
    screen: Screen,
) -> None:
    """Trains a group of a population's cells, beside those that diverged earlier.

    A diverged cell keeps its place, as it does until the process ends. The program of a smaller
    population gives other last digits.
    """
    over = agree(lambda: [_has_diverged(cell) for cell in population])
    kept = [cell for cell, ended in zip(population, over, strict=True) if ended or cell in group]
    train(experiment, [cell.config for cell in kept], kept, screen)


def _has_diverged(cell: RunDirectory) -> bool:
    return cell.summary is not None and cell.summary["state"] == "diverged"


def _unfinished(directories: Sequence[RunDirectory]) -> list[RunDirectory]:
    unfinished = agree(lambda: [directory.summary is None for directory in directories])
    return list(itertools.compress(directories, unfinished))


def _populations(cells: Sequence[RunDirectory]) -> list[list[RunDirectory]]:
    """The groups of cells that train together, whatever is left of them."""
    directories = {cell.config: cell for cell in cells}
    return [[directories[config] for config in group] for group in populations(list(directories))]


def _in_step(cells: Sequence[RunDirectory]) -> list[list[RunDirectory]]:
    """Groups the cells so that every group can resume from one step.

    A cell without saved states starts at step 0. Such cells appear when a population grows. The
    other cells must not begin anew because of them.
    """
    saved = agree(lambda: [saved_steps(cell.path / "checkpoints") or {0} for cell in cells])
    groups: list[tuple[set[int], list[RunDirectory]]] = []
    for cell, steps in zip(cells, saved, strict=True):
        for common, group in groups:
            if common & steps:
                common &= steps
                group.append(cell)
                break
        else:
            groups.append((steps, [cell]))
    return [group for _, group in groups]
