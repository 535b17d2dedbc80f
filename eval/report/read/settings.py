"""The settings of an experiment: those that all cells share, and those in which cells differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tddpo_jax.config.dotted import with_value

from ...experiment import Experiment

# What `run.json` says of where a run came from.
FACTS = ("versions", "git_commit", "device", "mesh", "model", "data")
AXES = ("loss.name", "loss.beta", "loss.tau", "seed")


def shared_settings(experiment: Experiment) -> dict[str, Any]:
    """Settings and facts that are the same in all cells, nested. A grid's axes are left out."""
    shared: dict[str, Any] = {}
    for name, values in _values(experiment).items():
        if all(value == values[0][1] for _, value in values):
            shared = with_value(shared, name, values[0][1])
    return shared


def differing_settings(experiment: Experiment) -> dict[str, dict[str, list[Any]]]:
    """The other settings by dotted name: for each loss its values, each once."""
    differing: dict[str, dict[str, list[Any]]] = {}
    for name, values in _values(experiment).items():
        if any(value != values[0][1] for _, value in values):
            differing[name] = _by_loss(values)
    return differing


def learning_rates(experiment: Experiment) -> dict[str, list[float]]:
    """The learning rates of each loss, each once."""
    known = [cell.config for cell in experiment.cells if cell.config is not None]
    return _by_loss([(config.loss.title, config.train.learning_rate) for config in known])


def _by_loss(values: list[tuple[str, Any]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for loss, value in values:
        own = found.setdefault(loss, [])
        if value not in own:
            own.append(value)
    return found


def _values(experiment: Experiment) -> dict[str, list[tuple[str, Any]]]:
    """For each setting, by dotted name: the loss and the value of each cell that has begun."""
    left_out = {"output", *(AXES if experiment.is_grid else ())}
    found: dict[str, list[tuple[str, Any]]] = {}
    for cell in experiment.cells:
        if cell.config is None:
            continue
        facts = {name: value for name, value in cell.facts.items() if name in FACTS}
        known = {**cell.config.model_dump(mode="json"), "run": facts}
        for name, value in _flat(known).items():
            if name not in left_out and not isinstance(value, list):
                found.setdefault(name, []).append((cell.config.loss.title, value))
    return found


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in mapping.items():
        inner = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return flat
