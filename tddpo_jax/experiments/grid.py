"""Trains the cells of an experiment: one run, or every point of a grid."""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Sequence
from typing import Any

from tddpo_jax.config.cells import LOSS_AXES
from tddpo_jax.config.dotted import get
from tddpo_jax.experiments.cell_table import CellTable
from tddpo_jax.experiments.describe import describe_plan, describe_result
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.runs.grid_directory import cell_directories, output_of, record_grid
from tddpo_jax.runs.locks import claim
from tddpo_jax.runs.metric_writers import check_wandb
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.system.agreement import agree
from tddpo_jax.system.console import Screen
from tddpo_jax.training.checkpoints import saved_steps
from tddpo_jax.training.loop import train
from tddpo_jax.training.prepare import Experiment, prepare
from tddpo_jax.training.step_order import make_order

# Time between two looks at the cells that other processes train.
WAIT_SECONDS = 5.0


def run_experiment(settings: dict[str, Any], screen: Screen) -> list[dict[str, Any]]:
    """Trains every unfinished cell, and returns the summaries of all cells.

    Args:
        settings: the settings of the experiment, not yet validated.
        screen: shows progress and warnings.

    Raises:
        UserError: a setting is wrong, or a directory holds a run of another configuration.
    """
    directories = cell_directories(settings)
    check_wandb(directories[0].config)
    _say_ignored_axes(settings, directories, screen)
    _say_ignored_population(directories, screen)
    left = _unfinished(directories)
    if len(left) < len(directories):
        over = len(directories) - len(left)
        screen.say(f"{over} of {len(directories)} cells already finished; skipping them")
    if left:
        experiment = prepare([directory.config for directory in left], screen)
        describe_plan(experiment, len(left), screen)
        record_grid(directories)
        shared = experiment.shared
        steps = make_order(shared.config, len(shared.dataset.train)).total_steps
        train_cells(experiment, left, CellTable(directories, steps), screen)
    if len(directories) == 1:
        describe_result(directories[0], screen)
    else:
        screen.say(f"compare the cells: python -m tddpo_jax report {output_of(directories)}")
    return agree(lambda: [directory.summary or {} for directory in directories])


def _say_ignored_axes(
    settings: dict[str, Any], directories: Sequence[RunDirectory], screen: Screen
) -> None:
    given = {axis: get(settings, f"loss.{axis}") for axis in LOSS_AXES}
    counts = {axis: len(values) for axis, values in given.items() if isinstance(values, list)}
    for name in dict.fromkeys(directory.config.loss.name for directory in directories):
        own = [axis for axis in LOSS_AXES if axis in LOSSES[name].settings]
        for axis, count in counts.items():
            if count > 1 and axis not in own:
                per = " and ".join([*own, "seed"])
                screen.say(f"{name} has no {axis}: it has one cell, not {count}, per {per}")


def _say_ignored_population(directories: Sequence[RunDirectory], screen: Screen) -> None:
    if directories[0].config.train.population and max(map(len, _populations(directories))) == 1:
        screen.say("warning: train.population has no effect here: every cell trains alone")


def train_cells(
    experiment: Experiment, cells: Sequence[RunDirectory], table: CellTable, screen: Screen
) -> None:
    """Trains cells that no other process has claimed, until all cells are finished.

    Args:
        experiment: the loaded model and data.
        cells: the unfinished cells.
        table: shows the state of all cells.
        screen: shows progress.
    """
    if len(table.cells) == 1:
        _train_cells(experiment, cells, table, screen)
        return
    with screen.drawing(lambda: table.draw(screen.console.height)):
        _train_cells(experiment, cells, table, screen)
    screen.console.print(table.draw())


def _train_cells(
    experiment: Experiment, cells: Sequence[RunDirectory], table: CellTable, screen: Screen
) -> None:
    waiting = False
    populations = _populations(cells)
    while populations:
        left = []
        for population in populations:
            with claim([directory.path for directory in population]) as ours:
                # Another process may have finished some of these cells since the last look.
                rest = _unfinished(population)
                if not ours:
                    left.append(rest)
                    table.refuse(rest)
                for group in _in_step(rest) if ours else ():
                    with table.training(group, screen):
                        train(experiment, [cell.config for cell in group], group, screen)
        if len(left) == len(populations):
            if not waiting:
                held = sum(map(len, left))
                screen.say(f"waiting for other processes to finish their cells ({held})")
            waiting = True
            time.sleep(WAIT_SECONDS)
        populations = [rest for rest in left if rest]


def _unfinished(directories: Sequence[RunDirectory]) -> list[RunDirectory]:
    unfinished = agree(lambda: [directory.summary is None for directory in directories])
    return list(itertools.compress(directories, unfinished))


def _populations(cells: Sequence[RunDirectory]) -> list[list[RunDirectory]]:
    """The groups of cells that train together.

    With `train.population` a group has cells of one seed. Otherwise it is a single cell.
    """
    population = cells[0].config.train.population if cells else False
    if not population:
        return [[cell] for cell in cells]
    size = len(cells) if population is True else population
    return [
        of_seed[first : first + size]
        for of_seed in _by_seed(cells).values()
        for first in range(0, len(of_seed), size)
    ]


def _by_seed(cells: Sequence[RunDirectory]) -> dict[int, list[RunDirectory]]:
    seeds: dict[int, list[RunDirectory]] = collections.defaultdict(list)
    for cell in cells:
        seeds[cell.config.seed].append(cell)
    return seeds


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
