"""The cells of a grid: their axes, their names, and the settings that each cell reads."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from tddpo_jax.config.dotted import get, with_value, without_value
from tddpo_jax.config.own_loss import function_name, is_own, load_loss, new_settings
from tddpo_jax.config.schema import Config
from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import DEFAULT_LOSS, LOSSES

LOSS_AXES = ("beta", "tau")
GRID_AXES = ("loss.name", *(f"loss.{name}" for name in LOSS_AXES), "seed")


def cell_name(config: Config) -> str:
    """The directory name of a cell, such as `td_dpo-beta0.05-tau1.0-seed0`.

    A loss without tau has no tau in its name. A loss of one's own is named by its function, and by
    those of its own numbers that are not the function's defaults.
    """
    loss = config.loss
    tau = f"-tau{loss.tau}" if "tau" in LOSSES[loss.name].settings else ""
    first = f"{function_name(loss.name)}-beta{loss.beta}{tau}"
    return "-".join([first, *loss.changed_numbers, f"seed{config.seed}"])


def ignored_in(cells: Sequence[Config]) -> list[str]:
    """One line for every given setting that has no effect, with the setting that is the cause."""
    lines = {
        f"{name} has no effect with {_cause(name, cell)}"
        for cell in cells
        for name in ignored_settings(cell)
    }
    return sorted(lines)


def _cause(ignored: str, config: Config) -> str:
    loss = function_name(config.loss.name)
    return f"loss.name={loss}" if ignored.startswith("loss.") else f"train.mode={config.train.mode}"


def ignored_settings(config: Config) -> list[str]:
    """Dotted names of the given settings that this configuration never reads."""
    given = config.loss.model_fields_set - {"name", "set", *LOSSES[config.loss.name].settings}
    names = [f"loss.{name}" for name in sorted(given)]
    if config.train.mode == "full":
        names += [f"lora.{name}" for name in sorted(config.lora.model_fields_set)]
    return names


def expand(mapping: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Makes one mapping per cell, in the order of the lists.

    A cell keeps only the axes and the numbers of `loss.set` that its loss reads.
    `train.learning_rate` may be a mapping from losses to rates; each cell then takes the rate of
    its loss. Losses of one's own are read from their files.

    Args:
        mapping: settings, with a list for every axis of the grid.

    Raises:
        UserError: an axis is empty, a loss has no learning rate, or a loss of one's own cannot be
            read.
    """
    mapping = _with_own_losses(mapping)
    axes = {
        name: value
        for name in (*GRID_AXES, *own_numbers(mapping))
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
        for name in LOSS_AXES:
            unread = loss in LOSSES and name not in LOSSES[loss].settings
            if f"loss.{name}" in axes and unread:
                cell = without_value(cell, f"loss.{name}")
        cell = _without_others_numbers(cell, loss, mapping)
        rates = get(cell, "train.learning_rate")
        if isinstance(rates, Mapping):
            title = function_name(loss)
            if title not in rates:
                raise UserError(f"train.learning_rate: gives no rate for {title}")
            cell = with_value(cell, "train.learning_rate", rates[title])
        if cell not in cells:
            cells.append(cell)
    return cells


def own_numbers(mapping: Mapping[str, Any]) -> list[str]:
    """The dotted names of the given numbers of losses of one's own: `loss.set.margin_scale`."""
    given = get(mapping, "loss.set")
    return [f"loss.set.{name}" for name in given] if isinstance(given, Mapping) else []


def _with_own_losses(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the full names of losses of one's own, which are then in `LOSSES`."""
    names = get(mapping, "loss.name")
    several = isinstance(names, (list, tuple))
    given = list(names) if several else [names]
    if not any(map(is_own, given)):
        return dict(mapping)
    loaded = [load_loss(name) if is_own(name) else name for name in given]
    own = {name for name in loaded if is_own(name)}
    if len(set(map(function_name, own))) < len(own):
        raise UserError(f"loss.name: two losses of one name: {', '.join(sorted(own))}; rename one")
    return with_value(mapping, "loss.name", loaded if several else loaded[0])


def _without_others_numbers(
    cell: dict[str, Any], loss: str, mapping: Mapping[str, Any]
) -> dict[str, Any]:
    """Without the numbers of `loss.set` that another loss of the grid reads, and this one not."""
    names = get(mapping, "loss.name")
    others = [one for one in names if one != loss] if isinstance(names, (list, tuple)) else []
    read = {f"loss.set.{name}" for other in others for name in new_settings(other)}
    for name in own_numbers(mapping):
        if name in read and name.rpartition(".")[2] not in new_settings(loss):
            cell = without_value(cell, name)
    return cell
