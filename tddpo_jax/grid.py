"""The cells of an experiment: one run, or every point of a grid, each in its own directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tddpo_jax.config import LOSS_SETTINGS, Config, cell_name, expand, get, resolve
from tddpo_jax.console import Screen
from tddpo_jax.description import describe_plan, describe_result
from tddpo_jax.preparation import prepare
from tddpo_jax.run_directory import RunDirectory, write_atomically
from tddpo_jax.trainer import train


def run_experiment(settings: dict[str, Any], screen: Screen) -> list[dict[str, Any]]:
    """Trains every cell of the settings that is not finished, and returns all summaries.

    Raises:
        ValueError: a setting is wrong, or a directory holds a run of another configuration.
    """
    configs = [resolve(cell) for cell in expand(settings)]
    directories = _directories(configs)
    taus = get(settings, "loss.tau")
    for name in dict.fromkeys(config.loss.name for config in configs):
        if isinstance(taus, list) and len(taus) > 1 and "tau" not in LOSS_SETTINGS[name]:
            screen.say(f"{name} has no tau: one cell, not {len(taus)}, per beta and seed")
    open_cells = []
    for config, directory in zip(configs, directories, strict=True):
        if directory.summary is None:
            open_cells.append((config, directory))
        else:
            screen.say(f"{directory.path}: {directory.summary['state']} before; left alone")
    if open_cells:
        prepared = prepare([config for config, _ in open_cells], screen)
        describe_plan(prepared, len(open_cells), screen)
    for config, directory in open_cells:
        if len(open_cells) > 1:
            screen.say(f"cell {directory.path.name}")
        train(prepared, [config], [directory], screen)
    for directory in directories:
        describe_result(directory, screen)
    return [directory.summary or {} for directory in directories]


def _directories(configs: Sequence[Config]) -> list[RunDirectory]:
    """One cell writes into the output itself, several into a directory each below it."""
    if len(configs) == 1:
        config = configs[0]
        return [RunDirectory(Path(config.output or f"runs/{cell_name(config)}"), config)]
    root = Path(configs[0].output or "runs/grid")
    if root.exists() and any(root.iterdir()) and not (root / "grid.json").exists():
        raise ValueError(f"output: {root} exists and holds no grid")
    directories = [RunDirectory(root / cell_name(config), config) for config in configs]
    root.mkdir(parents=True, exist_ok=True)
    cells = [cell_name(config) for config in configs]
    write_atomically(root / "grid.json", json.dumps({"cells": cells}, indent=2) + "\n")
    return directories
