"""Reads settings: from a YAML file, and from a mapping to a `Config`.

A YAML file or a command line may give lists for the axes of a grid, see `cells.grid_axes`.
`cells.expand` makes one mapping per cell. `resolve` turns such a mapping into a `Config`, or raises
a one-line `UserError` that names the field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml
from pydantic.fields import FieldInfo

from tddpo_jax.config.loss_section import LossConfig, loss_section
from tddpo_jax.config.nesting import TOO_DEEP, is_too_deep
from tddpo_jax.config.problems import one_line_of
from tddpo_jax.config.schema import Config
from tddpo_jax.config.section import Section
from tddpo_jax.config.unique_keys import UniqueKeys
from tddpo_jax.errors import UserError, one_line


def setting_fields(
    section: type[Section] = Config, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Every setting of the schema by its dotted name, with the settings of all losses.

    Args:
        section: the group whose settings are listed.
        prefix: the dotted name of that group, with a dot at its end; empty for the whole schema.
    """
    for name, field in section.model_fields.items():
        kind = loss_section() if field.annotation is LossConfig else field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from setting_fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def resolve(mapping: Mapping[str, Any]) -> Config:
    """Validates the settings of one cell.

    Args:
        mapping: nested settings, with a scalar for every axis.

    Raises:
        UserError: one line per problem, each naming the dotted field and the value.
    """
    try:
        return Config.model_validate(mapping)
    except pydantic.ValidationError as error:
        names = [name for name, _ in setting_fields()]
        # Pydantic also reports a default that depends on a wrong setting. The latter says enough.
        problems = [each for each in error.errors() if each["type"] != "default_factory_not_called"]
        raise UserError(one_line_of(problems, [*Config.model_fields, *names])) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: the file is missing, is not YAML, has a key twice, or does not hold a mapping.
    """
    try:
        value = yaml.load(Path(path).read_text(), UniqueKeys)
    except OSError as error:
        raise UserError(f"config {path}: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"config {path}: {error}") from None
    except RecursionError:
        raise UserError(f"config {path}: {TOO_DEEP}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8 text, or no such date
        raise UserError(f"config {path}: not YAML: {one_line(error)}") from None
    if is_too_deep(value):
        raise UserError(f"config {path}: {TOO_DEEP}")
    if not isinstance(value, dict):
        raise UserError(f"config {path}: must hold a mapping of settings")
    return value
