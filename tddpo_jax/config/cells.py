"""The cells of a grid: their axes, their names, and the settings that each cell reads."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from tddpo_jax.config.dotted import get, with_value, without_value
from tddpo_jax.config.schema import Config
from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import DEFAULT_LOSS, LOSSES, all_settings

# The axes of every grid. The names of its cells always hold their values.
BASE_AXES = ("loss.name", "loss.beta", "loss.tau", "seed")


def grid_axes() -> tuple[str, ...]:
    """The settings that may have several values in a grid: all that a compiled step takes."""
    numbers = [name for name, setting in all_settings().items() if not setting.choices]
    loss = [f"loss.{name}" for name in numbers]
    return ("loss.name", *loss, "train.learning_rate", "train.weight_decay", "seed")


def varying_axes(cells: Sequence[Config]) -> list[str]:
    """The axes beside those of every grid in which cells of one loss differ."""
    return [
        axis
        for axis in grid_axes()
        if axis not in BASE_AXES
        and len({(cell.loss.name, attrgetter(axis)(cell)) for cell in cells})
        > len({cell.loss.name for cell in cells})
    ]


def axis_values(config: Config, axes: Iterable[str]) -> dict[str, float]:
    """The values of a cell on some axes, by the last parts of their names.

    An axis that the cell's loss does not read is left out.
    """
    read = {f"loss.{name}" for name in LOSSES[config.loss.name].settings}
    return {
        axis.rpartition(".")[2]: attrgetter(axis)(config)
        for axis in axes
        if axis in read or not axis.startswith("loss.")
    }


def cell_name(config: Config, axes: Iterable[str] = ()) -> str:
    """The directory name of a cell, such as `td_dpo-beta0.05-tau1.0-seed0`.

    A loss without tau has no tau in its name.

    Args:
        config: the settings of the cell.
        axes: the grid's `varying_axes`, whose values stand before the seed.
    """
    loss = config.loss
    values = axis_values(config, ["loss.tau", *axes])
    others = "".join(f"-{name}{value}" for name, value in values.items())
    return f"{loss.name}-beta{loss.beta}{others}-seed{config.seed}"


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
    losses to rates, or to lists of rates; each cell then takes a rate of its loss.

    Args:
        mapping: settings, with a list for every axis of the grid.

    Raises:
        UserError: an axis is empty, or a loss has no learning rate.
    """
    axes = {
        name: value
        for name in grid_axes()
        if isinstance(value := get(mapping, name), (list, tuple))
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
        for name in axes:
            section, _, setting = name.partition(".")
            if section == "loss" and name != "loss.name" and not _reads(loss, setting):
                cell = without_value(cell, name)
        rates = get(cell, "train.learning_rate")
        if isinstance(rates, Mapping):
            if loss not in rates:
                raise UserError(f"train.learning_rate: gives no rate for {loss}")
            cell = with_value(cell, "train.learning_rate", rates[loss])
        several = isinstance(get(cell, "train.learning_rate"), (list, tuple))
        for each in expand(cell) if several else [cell]:
            if each not in cells:
                cells.append(each)
    return cells


def _reads(loss: str, setting: str) -> bool:
    """Whether a loss reads a setting; an unknown loss may, and is refused later."""
    return loss not in LOSSES or setting in LOSSES[loss].settings
