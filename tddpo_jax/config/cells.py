"""The cells of a grid: their axes, their names, and the settings that each cell reads."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from tddpo_jax.config.dotted import get, with_value, without_value
from tddpo_jax.config.mixed_loss import load_mixture, name_of_weights
from tddpo_jax.config.own_function import function_name
from tddpo_jax.config.own_loss import GROUPS, is_own, load_loss
from tddpo_jax.config.schema import Config
from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import DEFAULT_LOSS, LOSSES, all_settings, readers
from tddpo_jax.losses.weighted_sum import is_mixture

# The axes of every grid. The names of its cells always hold their values.
BASE_AXES = ("loss.name", "loss.beta", "loss.tau", "seed")


def grid_axes(own: Iterable[str] = ()) -> tuple[str, ...]:
    """The settings that may have several values in a grid: all that a compiled step takes.

    Args:
        own: the `own_numbers` of the settings, such as `loss.set.margin_scale`.
    """
    numbers = [name for name, setting in all_settings().items() if not setting.is_text]
    loss = [f"loss.{name}" for name in numbers]
    return ("loss.name", *loss, *own, "train.learning_rate", "train.weight_decay", "seed")


def varying_axes(cells: Sequence[Config]) -> list[str]:
    """The axes beside those of every grid in which cells of one loss differ."""
    own = dict.fromkeys(
        name for cell in cells for name in own_numbers({"loss": cell.loss.model_dump()})
    )
    return [
        axis
        for axis in grid_axes(own)
        if axis not in BASE_AXES
        and len({(cell.loss.name, _value(cell, axis)) for cell in cells})
        > len({cell.loss.name for cell in cells})
    ]


def _value(config: Config, axis: str) -> Any:
    """The value of a cell on an axis; None if its loss does not read it."""
    if not _reads(config.loss.name, axis):
        return None
    settings = config.loss.settings
    return settings[_last(axis)] if axis.startswith("loss.") else attrgetter(axis)(config)


def axis_values(config: Config, axes: Iterable[str]) -> dict[str, float]:
    """The values of a cell on some axes, by the last parts of their names.

    An axis that the cell's loss does not read is left out.
    """
    loss = config.loss.name
    return {_last(axis): _value(config, axis) for axis in axes if _reads(loss, axis)}


def cell_name(config: Config, axes: Iterable[str] = ()) -> str:
    """The directory name of a cell, such as `td_dpo-beta0.05-tau1.0-seed0`.

    A loss without tau has no tau in its name. A loss of one's own is named by its function.

    Args:
        config: the settings of the cell.
        axes: the grid's `varying_axes`, whose values stand before the seed.
    """
    loss = config.loss
    values = axis_values(config, ["loss.tau", *axes])
    others = "".join(f"-{name}{value}" for name, value in values.items())
    return f"{loss.title}-beta{loss.beta}{others}-seed{config.seed}"


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
    if ignored.startswith("loss."):
        return f"loss.name={config.loss.title}"
    if ignored == "train.router_aux" and config.train.mode == "full":
        return "train.router=frozen"
    return f"train.mode={config.train.mode}"


def ignored_settings(config: Config) -> list[str]:
    """Dotted names of the given settings that this configuration never reads."""
    names = [f"loss.{name}" for name in sorted(config.loss.model_fields_set - config.loss.read)]
    train = config.train
    if "router_aux" in train.model_fields_set and not train.trains_routers:
        names.append("train.router_aux")
    if train.mode == "full":
        return names + [f"lora.{name}" for name in sorted(config.lora.model_fields_set)]
    # Adapters leave routers frozen.
    return names + (["train.router"] if train.router == "trained" else [])


def expand(mapping: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Makes one mapping per cell, in the order of the lists.

    A cell keeps only the axes and the numbers of `loss.set` and `loss.mix` that its loss reads.
    `train.learning_rate` may be a mapping from losses to rates, or to lists of rates; each cell
    then takes a rate of its loss. Losses of one's own are read from their files.

    Args:
        mapping: settings, with a list for every axis of the grid.

    Raises:
        UserError: an axis is empty, a loss has no learning rate, no loss has a form that is given,
            or a loss of one's own cannot be read.
    """
    mapping = _with_own_losses(_with_mixtures(mapping))
    own, losses = own_numbers(mapping), _losses(mapping)
    # A number that no loss reads stays, and is refused later.
    misspelt = [name for name in own if not any(_reads(loss, name) for loss in losses)]
    axes = {
        name: value
        for name in grid_axes(own)
        if isinstance(value := get(mapping, name), (list, tuple))
    }
    _check_forms(mapping, losses)
    for name, values in axes.items():
        if not values:
            raise UserError(f"{name}: the list of values is empty")
    cells = []
    for point in itertools.product(*axes.values()):
        cell = dict(mapping)
        for name, value in zip(axes, point, strict=True):
            cell = with_value(cell, name, value)
        loss = str(get(cell, "loss.name", DEFAULT_LOSS))
        for name in {*axes, *own} - {"loss.name", *misspelt}:
            if not _reads(loss, name):
                cell = without_value(cell, name)
        for each in _with_rates(cell, function_name(loss)):
            if each not in cells:
                cells.append(each)
    return cells


def _with_rates(cell: dict[str, Any], title: str) -> list[dict[str, Any]]:
    """The cell with each learning rate that a mapping gives its loss; else the cell as it is."""
    rates = get(cell, "train.learning_rate")
    if not isinstance(rates, Mapping):
        return [cell]
    if title not in rates:
        raise UserError(f"train.learning_rate: gives no rate for {title}")
    own = rates[title] if isinstance(rates[title], (list, tuple)) else [rates[title]]
    if not own:
        raise UserError("train.learning_rate: the list of values is empty")
    return [with_value(cell, "train.learning_rate", rate) for rate in own]


def _check_forms(mapping: Mapping[str, Any], losses: Sequence[Any]) -> None:
    """Refuses a form, such as that of a margin, that none of the losses has."""
    for name, setting in all_settings().items():
        given = get(mapping, f"loss.{name}", setting.default)
        if not setting.is_text or given == setting.default:
            continue
        if not any(_reads(loss, f"loss.{name}") for loss in losses):
            titles = ", ".join(function_name(str(loss)) for loss in losses)
            raise UserError(f"loss.{name}: has no effect on {titles}; read by {readers(name)}")


def own_numbers(mapping: Mapping[str, Any]) -> list[str]:
    """The dotted names of the given numbers that not all losses know, by the group they are in.

    They are those of losses of one's own, `loss.set.margin_scale`, and the weights of mixtures,
    `loss.mix.sft`.
    """
    groups = {group: get(mapping, f"loss.{group}") for group in GROUPS}
    return [
        f"loss.{group}.{name}"
        for group, given in groups.items()
        if isinstance(given, Mapping)
        for name in given
    ]


def _losses(mapping: Mapping[str, Any]) -> list[Any]:
    """The names of the losses that the settings give."""
    names = get(mapping, "loss.name", DEFAULT_LOSS)
    return list(names) if isinstance(names, (list, tuple)) else [names]


def _with_mixtures(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings with the name of the mixture if only its weights are given."""
    weights = get(mapping, "loss.mix")
    if weights and get(mapping, "loss.name") is None:
        mapping = with_value(mapping, "loss.name", name_of_weights(weights))
    for name in filter(is_mixture, _losses(mapping)):
        load_mixture(name)
    return mapping


def _with_own_losses(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the full names of losses of one's own, which are then in `LOSSES`."""
    given = _losses(mapping)
    if not any(map(is_own, given)):
        return dict(mapping)
    loaded = [load_loss(name) if is_own(name) else name for name in given]
    own = {name for name in loaded if is_own(name)}
    if len(set(map(function_name, own))) < len(own):
        raise UserError(f"loss.name: two losses of one name: {', '.join(sorted(own))}; rename one")
    return with_value(mapping, "loss.name", loaded if len(loaded) > 1 else loaded[0])


def _reads(loss: object, axis: str) -> bool:
    """Whether a loss reads what an axis sets; an unknown loss may, and is refused later."""
    known = LOSSES.get(str(loss))
    return not axis.startswith("loss.") or known is None or _last(axis) in known.settings


def _last(axis: str) -> str:
    return axis.rpartition(".")[2]
