"""Says in one line what is wrong with settings: pydantic's findings in our words."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from tddpo_jax.config.spelling import did_you_mean

# pydantic adds these names of types to the place of an error, after the field's name.
VALUE_TYPES = ("float", "str", "bool", "int", "constrained-int", "one", "several")
# What a value must be, by pydantic's name of the problem; braces hold pydantic's own facts.
EXPECTED = {
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number",
    "bool_type": "yes or no",
    "bool_parsing": "yes or no",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "a group of names and values",
    "model_type": "a group of settings",
    "too_short": "a list that is not empty",
    "literal_error": "{expected}",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
}


def one_line_of(problems: Iterable[Any], names: Collection[str]) -> str:
    """One line about all problems, each with the dotted name of the setting and its value.

    Args:
        problems: what `pydantic.ValidationError.errors` returns.
        names: the dotted names of all settings and groups.
    """
    by_name: dict[str, list[Any]] = {}
    for problem in problems:
        name = ".".join(str(part) for part in problem["loc"] if part not in VALUE_TYPES)
        by_name.setdefault(name, []).append(problem)
    return "; ".join(_told(name, found, names) for name, found in by_name.items())


def _told(name: str, problems: list[Any], names: Collection[str]) -> str:
    """What is wrong with one setting. One that may be of two kinds has a problem for each."""
    kind, said = problems[0]["type"], problems[0]["msg"].removeprefix("Value error, ")
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{name}: no such setting{did_you_mean(name, names)}"
    if kind == "value_error" and "." in said.partition(":")[0]:
        return said  # it names the setting itself
    wanted = ", or ".join(_wanted(problem) for problem in problems if problem["type"] in EXPECTED)
    value = problems[0]["input"]
    told = f"{name or 'config'}: {f'must be {wanted}' if wanted else said}, got {value!r}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", problems[0]["ctx"]["expected"])
        told += did_you_mean(str(value), choices)
    return told


def _wanted(problem: Any) -> str:
    return EXPECTED[problem["type"]].format(**problem.get("ctx", {}))
