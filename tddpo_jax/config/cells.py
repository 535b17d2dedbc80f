"""The cells of a grid: their axes, their names, and the settings that each cell reads."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tddpo_jax.config.dotted import get, with_value, without_value
from tddpo_jax.config.schema import Config
from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import DEFAULT_LOSS, LOSSES

LOSS_AXES = ("beta", "tau")
GRID_AXES = ("loss.name", *(f"loss.{name}" for name in LOSS_AXES), "seed")


def cell_name(config: Config) -> str:
    """The directory name of a cell, such as `td_dpo-beta0.05-tau1.0-seed0`.

    A loss without tau has no tau in its name.
    """
    loss = config.loss
    tau = f"-tau{loss.tau}" if "tau" in LOSSES[loss.name].settings else ""
    return f"{loss.name}-beta{loss.beta}{tau}-seed{config.seed}"


def populations(cells: Sequence[Config]) -> list[list[Config]]:
    """The groups of cells that train together, each in one program.

    With `train.population` a group has cells of one seed, and at most as many as that setting says.
    Otherwise it is a single cell.
    """
    population = cells[0].train.population if cells else False
    if not population:
        return [[cell] for cell in cells]
    size = len(cells) if population is True else population
    of_seeds: dict[int, list[Config]] = defaultdict(list)
    for cell in cells:
        of_seeds[cell.seed].append(cell)
    return [
        of_seed[first : first + size]
        for of_seed in of_seeds.values()
        for first in range(0, len(of_seed), size)
    ]


def ignored_in(cells: Sequence[Config]) -> list[str]:
    """One line for every given setting that has no effect, with the setting that is the cause."""
    lines = {
        f"{name} has no effect with {_cause(name, cell)}"
        for cell in cells
        for name in ignored_settings(cell)
    }
    return sorted(lines)


def _cause(ignored: str, config: Config) -> str:
    loss = config.loss.name
    return f"loss.name={loss}" if ignored.startswith("loss.") else f"train.mode={config.train.mode}"


def ignored_settings(config: Config) -> list[str]:
    """Dotted names of the given settings that this configuration never reads."""
    given = config.loss.model_fields_set - {"name", *LOSSES[config.loss.name].settings}
    names = [f"loss.{name}" for name in sorted(given)]
    if config.train.mode == "full":
        names += [f"lora.{name}" for name in sorted(config.lora.model_fields_set)]
    return names


def expand(mapping: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Makes one mapping per cell, in the order of the lists.

    A cell keeps only the axes that its loss reads. `train.learning_rate` may be a mapping from
    losses to rates; each cell then takes the rate of its loss.

    Args:
        mapping: settings, with a list for every axis of the grid.

    Raises:
        UserError: an axis is empty, or a loss has no learning rate.
    """
    axes = {
        name: value for name in GRID_AXES if isinstance(value := get(mapping, name), (list, tuple))
    }
    for name, values in axes.items():
        if not values:
            raise UserError(f"{name}: the list of values is empty")
    cells = []
    for point in itertools.product(*axes.values()):
        cell = dict(mapping)
        for name, value in zip(axes, point, strict=True):
            cell = with_value(cell, name, value)
        loss = str(get(cell, "loss.name", DEFAULT_LOSS))
        for name in LOSS_AXES:
            unread = loss in LOSSES and name not in LOSSES[loss].settings
            if f"loss.{name}" in axes and unread:
                cell = without_value(cell, f"loss.{name}")
        rates = get(cell, "train.learning_rate")
        if isinstance(rates, Mapping):
            if loss not in rates:
                raise UserError(f"train.learning_rate: gives no rate for {loss}")
            cell = with_value(cell, "train.learning_rate", rates[loss])
        if cell not in cells:
            cells.append(cell)
    return cells
