"""The cells of an experiment: one run, or every point of a grid, each in its own directory."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tddpo_jax.claims import claim
from tddpo_jax.config import LOSS_SETTINGS, Config, cell_name, expand, get, resolve
from tddpo_jax.console import Screen
from tddpo_jax.description import describe_plan, describe_result
from tddpo_jax.hosts import agree, first_only
from tddpo_jax.preparation import Prepared, prepare
from tddpo_jax.run_directory import (
    PLACEMENT,
    RunDirectory,
    check_output,
    differences,
    write_atomically,
)
from tddpo_jax.trainer import train
from tddpo_jax.writers import check_wandb

# Between two looks at cells that other processes train.
WAIT_SECONDS = 5.0


def run_experiment(settings: dict[str, Any], screen: Screen) -> list[dict[str, Any]]:
    """Trains every cell of the settings that is not finished, and returns all summaries.

    Raises:
        ValueError: a setting is wrong, or a directory holds a run of another configuration.
    """
    configs = list(dict.fromkeys(resolve(cell) for cell in expand(settings)))
    check_wandb(configs[0])
    directories = _directories(configs)
    taus = get(settings, "loss.tau")
    for name in dict.fromkeys(config.loss.name for config in configs):
        if isinstance(taus, list) and len(taus) > 1 and "tau" not in LOSS_SETTINGS[name]:
            screen.say(f"{name} has no tau: one cell, not {len(taus)}, per beta and seed")
    before = agree(lambda: [directory.summary for directory in directories])
    open_cells = []
    for cell, summary in zip(zip(configs, directories, strict=True), before, strict=True):
        if summary is None:
            open_cells.append(cell)
        else:
            screen.say(f"{cell[1].path}: {summary['state']} before; left alone")
    if open_cells:
        prepared = prepare([config for config, _ in open_cells], screen)
        describe_plan(prepared, len(open_cells), screen)
        if len(configs) > 1:
            _record_grid(directories[0].path.parent, configs)
        _train_cells(prepared, open_cells, screen)
    for directory in directories:
        describe_result(directory, screen)
    return agree(lambda: [directory.summary or {} for directory in directories])


Cell = tuple[Config, RunDirectory]


def _train_cells(prepared: Prepared, cells: Sequence[Cell], screen: Screen) -> None:
    """Trains what no other process has claimed, until every cell is over, whoever did it."""
    waiting = False
    populations = _populations(cells)
    while populations:
        left = []
        for population in populations:
            paths = [directory.path for _, directory in population]
            with claim(paths) as ours:
                # Another process may have ended some of them since they were looked at.
                rest = _unfinished(population)
                if not ours:
                    left.append(rest)
                elif rest:
                    if len(cells) > 1:
                        screen.say(" + ".join(directory.path.name for _, directory in rest))
                    configs, directories = zip(*rest, strict=True)
                    train(prepared, configs, directories, screen)
        if len(left) == len(populations):
            if not waiting:
                screen.say(f"{sum(map(len, left))} cells are being trained by other processes")
            waiting = True
            time.sleep(WAIT_SECONDS)
        populations = [cells for cells in left if cells]


def _unfinished(cells: list[Cell]) -> list[Cell]:
    unfinished = agree(lambda: [directory.summary is None for _, directory in cells])
    return list(itertools.compress(cells, unfinished))


def _populations(cells: Sequence[Cell]) -> list[list[Cell]]:
    """What trains together: with `train.population` the adapters of one seed, else single cells."""
    if not cells or not cells[0][0].train.population:
        return [[cell] for cell in cells]
    seeds = dict.fromkeys(config.seed for config, _ in cells)
    return [[cell for cell in cells if cell[0].seed == seed] for seed in seeds]


def _directories(configs: Sequence[Config]) -> list[RunDirectory]:
    """One cell writes into the output itself, several into a directory each below it."""
    if len(configs) == 1:
        config = configs[0]
        return [RunDirectory(Path(config.output or f"runs/{cell_name(config)}"), config)]
    root = Path(configs[0].output or "runs/grid")
    check_output(root)
    if root.exists() and any(root.iterdir()):
        _check_grid(root, configs)
    return [RunDirectory(root / cell_name(config), config) for config in configs]


def _check_grid(root: Path, configs: Sequence[Config]) -> None:
    """Refuses a directory that is no grid, or one whose cells differ from ours beside the axes."""
    file = root / "grid.json"
    if not file.exists():
        raise ValueError(f"output: {root} exists and holds no grid")
    found = json.loads(file.read_text())["settings"]
    wanted = _shared(configs, found)
    if found != wanted:
        raise ValueError(
            f"output: {root} holds a grid of another configuration: "
            f"{', '.join(differences(found, wanted))}"
        )


def _shared(configs: Sequence[Config], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """What the cells of a grid have in common, with the learning rates of all losses so far."""
    axes: dict[str, Any] = {"loss": {"name", "beta", "tau"}, "seed": True, "output": True}
    axes |= dict.fromkeys(PLACEMENT, True)
    rates = {config.loss.name: config.train.learning_rate for config in configs}
    settings = configs[0].model_dump(mode="json", exclude=axes)
    settings["train"]["learning_rate"] = get(earlier, "train.learning_rate", {}) | rates
    return settings


@first_only
def _record_grid(root: Path, configs: Sequence[Config]) -> None:
    """Writes `grid.json`: what the cells share, and their names, earlier commands' first."""
    root.mkdir(parents=True, exist_ok=True)
    file = root / "grid.json"
    earlier = json.loads(file.read_text()) if file.exists() else {"cells": [], "settings": {}}
    cells = list(dict.fromkeys([*earlier["cells"], *map(cell_name, configs)]))
    grid = {"cells": cells, "settings": _shared(configs, earlier["settings"])}
    write_atomically(file, json.dumps(grid, indent=2) + "\n")
