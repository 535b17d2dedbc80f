"""Values of nested mappings by their dotted names, such as `train.learning_rate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tddpo_jax.errors import UserError


def get(mapping: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """The value at a dotted name of nested mappings; `default` if there is none."""
    for key in name.split("."):
        if not isinstance(mapping, Mapping) or key not in mapping:
            return default
        mapping = mapping[key]
    return mapping


def dotted_values(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings that are no mappings, by their dotted names."""
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            values |= dotted_values(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def with_value(mapping: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A copy of nested mappings in which a dotted name has this value.

    Raises:
        UserError: a value on the way to the name is not a mapping.
    """
    head, _, rest = name.partition(".")
    if not rest:
        return {**mapping, head: value}
    inner = mapping.get(head, {})
    if not isinstance(inner, Mapping):
        raise UserError(f"{head}: must be a group of settings, got {inner!r}")
    return {**mapping, head: with_value(inner, rest, value)}


def without_value(mapping: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy of nested mappings without the value at a dotted name."""
    head, _, rest = name.partition(".")
    if head not in mapping or (rest and not isinstance(mapping[head], Mapping)):
        return dict(mapping)
    if not rest:
        return {key: value for key, value in mapping.items() if key != head}
    return {**mapping, head: without_value(mapping[head], rest)}
