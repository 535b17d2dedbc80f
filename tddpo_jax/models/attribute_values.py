"""Checks the numbers of a `config.json`. A model with 0 heads would break far from that file."""

from __future__ import annotations

import math
from typing import Any

from tddpo_jax.errors import UserError

LARGEST = 2**31 - 1  # of an array's axis, with the integers that devices count in


def whole_number(value: Any, name: str, path: str, at_most: int = LARGEST) -> int:
    """A size or a count.

    Args:
        value: the attribute's value.
        name: of the attribute.
        path: of the file.
        at_most: the largest value.

    Raises:
        UserError: it is not a whole number from 1 to `at_most`.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not 1 <= value <= at_most:
        raise UserError(f"{path}: {name} must be a whole number from 1 to {at_most}, got {value!r}")
    return value


def positive_number(value: Any, name: str, path: str) -> float:
    """A factor or an epsilon. The arguments are those of `whole_number`.

    Raises:
        UserError: it is not a positive, finite number.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise UserError(f"{path}: {name} must be a positive number, got {value!r}")
    return float(value)
