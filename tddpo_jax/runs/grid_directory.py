"""The cells of an experiment and their directories; this module starts no device.

A lone cell writes into the output directory itself. Several cells write into one directory each,
below the output directory. Beside them, `grid.json` holds the cells' names, their losses, the axes
beyond those of every grid, and the settings that all cells share. A loss of one's own has its text
there too, as `my_dpo.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic

from tddpo_jax.config.cells import BASE_AXES, cell_name, expand, varying_axes
from tddpo_jax.config.dotted import dotted_values, get, with_value, without_value
from tddpo_jax.config.mixed_loss import load_mixture
from tddpo_jax.config.own_function import function_name
from tddpo_jax.config.own_loss import is_own, load_loss
from tddpo_jax.config.reading import resolve
from tddpo_jax.config.schema import Config
from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.losses.loss import DECOUPLING
from tddpo_jax.losses.weighted_sum import is_mixture
from tddpo_jax.runs.locks import alone_in
from tddpo_jax.runs.more_epochs import is_longer
from tddpo_jax.runs.run_directory import (
    RunDirectory,
    check_contents,
    check_output,
    differences,
    identity,
    is_free,
    without_names,
)
from tddpo_jax.system.agreement import agree
from tddpo_jax.system.atomic import write_json, write_text
from tddpo_jax.system.json_files import Content, read_as

RATE = "train.learning_rate"


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
    axes = _axes(root, configs)
    return [RunDirectory(root / cell_name(config, axes), config) for config in configs]


def cell_names(directories: Sequence[RunDirectory]) -> list[str]:
    """The names of cells: those of a grid's directories; a lone run's directory may have any."""
    if len(directories) == 1:
        return [cell_name(directories[0].config)]
    return [directory.path.name for directory in directories]


def output_of(directories: Sequence[RunDirectory]) -> Path:
    """The directory of the lone run, or of the grid."""
    return _root([directory.config for directory in directories])


def _root(configs: Sequence[Config]) -> Path:
    config = configs[0]
    default = "grid" if len(configs) > 1 else cell_name(config)
    return Path(config.output or f"runs/{default}")


class _Grid(Content):
    cells: Annotated[list[str], pydantic.Field(min_length=1)]
    # Earlier versions wrote neither: their grids had no other axes, and a rate for each loss.
    losses: list[str] = pydantic.Field(default_factory=list)
    axes: list[str] = pydantic.Field(default_factory=list)
    settings: dict[str, Any]


def read_grid(file: Path) -> dict[str, Any]:
    """Reads a `grid.json`: the names of the `cells`, their `losses`, `axes` and shared `settings`.

    Raises:
        UserError: the file is missing or damaged.
    """
    grid = read_as(file, _Grid).model_dump()
    rates = get(grid["settings"], "train.learning_rate", {})
    return {**grid, "losses": grid["losses"] or list(rates if isinstance(rates, dict) else ())}


def _axes(root: Path, configs: Sequence[Config]) -> list[str]:
    """The axes whose values are in the names of the cells, beside those of every grid.

    Those of a recorded grid stay, because the names of its cells do.
    """
    axes, file = varying_axes(configs), root / "grid.json"
    if not file.exists():
        return axes
    recorded: list[str] = read_grid(file)["axes"]
    new = [axis for axis in axes if axis not in recorded]
    if new:
        raise UserError(
            f"output: {root} holds a grid with one value of {new[0]}; give another directory for "
            "a grid with several"
        )
    return recorded


def _check_grid(root: Path, configs: Sequence[Config]) -> None:
    """Refuses a directory that is not a grid, or whose cells differ from ours outside the axes."""
    file = root / "grid.json"
    if not file.exists():
        raise UserError(f"output: {root} exists and does not hold a grid")
    for name, text in _own_texts(configs).items():
        kept = _kept_text(root, name)
        if kept.exists() and kept.read_text() != text:
            raise UserError(f"loss.name: {name} has changed since {root} began")
    found, axes = identity(read_grid(file)["settings"]), _axes(root, configs)
    wanted = _shared(configs, found, axes)
    if RATE not in axes:
        rates = get(found, RATE)
        if not isinstance(rates, dict):
            raise UserError(f"{file}: settings.{RATE}: must map each loss to its rate")
        # A loss that is new in this grid may have any rate.
        found = with_value(found, RATE, get(wanted, RATE) | rates)
    # The grid may be older than a setting of the losses. None of its cells reads such a setting.
    for name, value in dotted_values(wanted["loss"]).items():
        found = with_value(found, f"loss.{name}", get(found, f"loss.{name}", value))
    found, wanted = without_names(found), without_names(wanted)
    if is_longer(found, wanted):
        _check_all_go_on(root, [cell_name(config, axes) for config in configs])
    elif found != wanted:
        raise UserError(
            f"output: {root} holds a grid of another configuration: "
            f"{', '.join(differences(found, wanted))}"
        )


def _check_all_go_on(root: Path, names: Sequence[str]) -> None:
    """Refuses more epochs for a part of a grid; each cell's directory says whether it may go on."""
    cells = read_grid(root / "grid.json")["cells"]
    left = [name for name in cells if name not in names]
    if left:
        raise UserError(
            f"train.epochs: the cells of {root} go on for more epochs together; this command has "
            f"{len(cells) - len(left)} of {len(cells)}"
        )


def _shared(
    configs: Sequence[Config], earlier: Mapping[str, Any], axes: Sequence[str]
) -> dict[str, Any]:
    """The settings that the cells of a grid share.

    They have the learning rates of all its losses, unless the rate is one of its axes. The settings
    of our losses are in `loss`, the weights of mixtures in `loss.mix`. Each loss of one's own may
    have other defaults: its settings are in `loss.set`, below its name.
    """
    settings = configs[0].model_dump(mode="json")
    for axis in (*BASE_AXES, *axes, "output"):
        settings = without_value(settings, axis)
    settings = identity({**settings, "loss": get(earlier, "loss", {})})
    for config in configs:
        section = f"loss.set.{config.loss.title}" if is_own(config.loss.name) else "loss"
        fixed = _fixed(config, axes)
        weights = {name: fixed.pop(name) for name in config.loss.mix if name in fixed}
        for place, own in ((section, fixed), ("loss.mix", weights)):
            if own:
                settings = with_value(settings, place, {**get(settings, place, {}), **own})
    if RATE in axes:
        return settings
    rates = {config.loss.title: config.train.learning_rate for config in configs}
    return with_value(settings, RATE, get(earlier, RATE, {}) | rates)


def _fixed(config: Config, axes: Sequence[str]) -> dict[str, Any]:
    """The settings of a cell's loss that are no axes; a loss of ours also knows those of others."""
    varying = {axis.rpartition(".")[2] for axis in (*BASE_AXES, *axes)}
    own = LOSSES[config.loss.name].settings if is_own(config.loss.name) else config.loss.settings
    return {name: config.loss.settings[name] for name in own if name not in varying}


def recorded_losses(directories: Sequence[RunDirectory]) -> list[dict[str, Any]]:
    """The settings of the losses that earlier commands recorded in the grid's `grid.json`, if any.

    Raises:
        UserError: the kept text of a loss of one's own fails, because it needs files that are no
            longer there.
    """
    root = output_of(directories)
    if len(directories) == 1 or not agree((root / "grid.json").exists):
        return []
    given = {cell.config.loss.title: cell.config.loss.settings for cell in directories}
    grid = read_grid(root / "grid.json")
    # The value itself does not matter: a cell of the grid has one below 1.
    below = {DECOUPLING: 0.0} if f"loss.{DECOUPLING}" in grid["axes"] else {}
    return [
        (given.get(function_name(name)) or _recorded_loss(root, name, grid["settings"])) | below
        for name in grid["losses"]
        if name in LOSSES or is_own(name) or is_mixture(name)
    ]


def _recorded_loss(root: Path, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a loss of which this command has no cell; its numbers do not matter."""
    function, section = function_name(name), "loss"
    if is_own(name):
        name = load_loss(name, _kept_text(root, function).read_text())
        section = f"loss.set.{function}"
    elif is_mixture(name):
        load_mixture(name)
    defaults = {key: setting.default for key, setting in LOSSES[name].settings.items()}
    return {**defaults, **get(settings, section, {}), "name": name}


def check_cells(directories: Sequence[RunDirectory], facts: dict[str, Any]) -> None:
    """Refuses a model or data other than any of the cells began with.

    Args:
        directories: the lone run, or cells of a grid. All cells of the grid are checked.
        facts: what a `run.json` would hold now.

    Raises:
        UserError: the hashes differ.
    """
    runs, file = [directory.path for directory in directories], output_of(directories) / "grid.json"
    if len(directories) > 1 and file.exists():
        runs += [file.parent / name for name in read_grid(file)["cells"]]

    def check() -> None:
        for run in dict.fromkeys(runs):
            check_contents(run, facts)

    agree(check)


def _own_texts(configs: Sequence[Config]) -> dict[str, str]:
    """The texts of the files of one's own losses, by the names of their functions."""
    rows = {config.loss.title: LOSSES[config.loss.name] for config in configs}
    return {name: loss.source for name, loss in rows.items() if loss.source}


def _kept_text(root: Path, function: str) -> Path:
    return root / f"{function}.py"


def record_grid(directories: Sequence[RunDirectory]) -> None:
    """Writes `grid.json` if there are several cells; the cells of earlier commands stay first.

    Raises:
        UserError: another command has begun a grid of another configuration there.
    """
    if len(directories) > 1:
        agree(lambda: _record(directories))


def _record(directories: Sequence[RunDirectory]) -> None:
    configs = [directory.config for directory in directories]
    root = _root(configs)
    with alone_in(root):
        if not is_free(root):
            _check_grid(root, configs)
        file = root / "grid.json"
        earlier = read_grid(file) if file.exists() else {"cells": [], "losses": [], "settings": {}}
        axes = _axes(root, configs)
        names = cell_names(directories)
        if names != [cell_name(config, axes) for config in configs]:
            raise UserError(f"output: {root} holds a grid over {', '.join(axes)}, begun just now")
        # The file of a loss of one's own may have moved.
        losses = [*earlier["losses"], *(config.loss.name for config in configs)]
        grid = {
            "cells": list(dict.fromkeys([*earlier["cells"], *names])),
            "losses": list({function_name(name): name for name in losses}.values()),
            "axes": axes,
            "settings": _shared(configs, earlier["settings"], axes),
        }
        for name, text in _own_texts(configs).items():
            write_text(_kept_text(root, name), text)
        write_json(file, grid)
