"""The cells of an experiment and their directories; this module starts no device.

A lone cell writes into the output directory itself. Several cells write into one directory each,
below the output directory. Beside them, `grid.json` holds the cells' names and the settings that
they share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic

from tddpo_jax.config.cells import cell_name, expand
from tddpo_jax.config.dotted import get, with_value
from tddpo_jax.config.schema import Config, resolve
from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.runs.locks import alone_in
from tddpo_jax.runs.run_directory import (
    RunDirectory,
    check_output,
    differences,
    identity,
    is_free,
)
from tddpo_jax.system.agreement import agree
from tddpo_jax.system.atomic import write_json
from tddpo_jax.system.json_files import Content, read_as


def cell_directories(settings: dict[str, Any]) -> list[RunDirectory]:
    """The directories of all cells of the settings, in the order of the grid; writes nothing.

    Raises:
        UserError: a setting is wrong, or a directory holds a run of another configuration.
    """
    configs = list(dict.fromkeys(resolve(cell) for cell in expand(settings)))
    if len(configs) == 1:
        return [RunDirectory(_root(configs), configs[0])]
    root = _root(configs)
    check_output(root)
    if not is_free(root):
        _check_grid(root, configs)
    return [RunDirectory(root / cell_name(config), config) for config in configs]


def output_of(directories: Sequence[RunDirectory]) -> Path:
    """The directory of the lone run, or of the grid."""
    return _root([directory.config for directory in directories])


def _root(configs: Sequence[Config]) -> Path:
    config = configs[0]
    default = "grid" if len(configs) > 1 else cell_name(config)
    return Path(config.output or f"runs/{default}")


class _Grid(Content):
    cells: Annotated[list[str], pydantic.Field(min_length=1)]
    settings: dict[str, Any]


def read_grid(file: Path) -> dict[str, Any]:
    """Reads a `grid.json`: the names of the `cells`, and the `settings` that they share.

    Raises:
        UserError: the file is missing or damaged.
    """
    return read_as(file, _Grid).model_dump()


def _check_grid(root: Path, configs: Sequence[Config]) -> None:
    """Refuses a directory that is not a grid, or whose cells differ from ours outside the axes."""
    file = root / "grid.json"
    if not file.exists():
        raise UserError(f"output: {root} exists and does not hold a grid")
    found = identity(read_grid(file)["settings"])
    rates = get(found, "train.learning_rate")
    if not isinstance(rates, dict):
        raise UserError(f"{file}: settings.train.learning_rate: must map each loss to its rate")
    wanted = _shared(configs, found)
    # A loss that is new in this grid may have any rate.
    found["train"]["learning_rate"] = wanted["train"]["learning_rate"] | rates
    # The grid may be older than a setting of the losses. None of its cells reads such a setting.
    for name, value in wanted["loss"].items():
        found = with_value(found, f"loss.{name}", get(found, f"loss.{name}", value))
    if found != wanted:
        raise UserError(
            f"output: {root} holds a grid of another configuration: "
            f"{', '.join(differences(found, wanted))}"
        )


def _shared(configs: Sequence[Config], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the cells of a grid share, with the learning rates of all its losses."""
    axes: dict[str, Any] = {"loss": {"name", "beta", "tau"}, "seed": True, "output": True}
    rates = {config.loss.name: config.train.learning_rate for config in configs}
    settings = identity(configs[0].model_dump(mode="json", exclude=axes))
    settings["train"]["learning_rate"] = get(earlier, "train.learning_rate", {}) | rates
    return settings


def recorded_losses(directories: Sequence[RunDirectory]) -> list[str]:
    """The losses of the cells that earlier commands recorded in the grid's `grid.json`, if any."""
    file = output_of(directories) / "grid.json"
    if len(directories) == 1 or not agree(file.exists):
        return []
    rates = get(read_grid(file)["settings"], "train.learning_rate", {})
    return [loss for loss in rates if loss in LOSSES]


def record_grid(directories: Sequence[RunDirectory]) -> None:
    """Writes `grid.json` if there are several cells; the cells of earlier commands stay first.

    Raises:
        UserError: another command has begun a grid of another configuration there.
    """
    if len(directories) > 1:
        agree(lambda: _record([directory.config for directory in directories]))


def _record(configs: Sequence[Config]) -> None:
    root = _root(configs)
    with alone_in(root):
        if not is_free(root):
            _check_grid(root, configs)
        file = root / "grid.json"
        earlier = read_grid(file) if file.exists() else {"cells": [], "settings": {}}
        cells = list(dict.fromkeys([*earlier["cells"], *map(cell_name, configs)]))
        grid = {"cells": cells, "settings": _shared(configs, earlier["settings"])}
        write_json(file, grid)
