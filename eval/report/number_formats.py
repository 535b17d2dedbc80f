"""How numbers are written in reports."""

from __future__ import annotations

import dataclasses
import math

from ..uncertainty import Interval

NONE = "–"


@dataclasses.dataclass(frozen=True)
class Format:
    """Writes numbers with a fixed count of digits after the point, and intervals in brackets.

    A number of more than five digits before the point gets three significant digits.

    >>> Format(2).number(-0.125), Format(1).interval((0.0, float("inf"))), Format(2).number(None)
    ('−0.12', '[0.0, ∞]', '–')
    >>> Format(2).number(89988408.51)
    '9e+07'
    """

    decimals: int

    def number(self, value: float | None) -> str:
        """One number; a dash for None and NaN."""
        if value is None or math.isnan(value):
            return NONE
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        if abs(value) >= 1e5:
            return significant(value)
        # A negative number that rounds to 0 gets no minus sign.
        rounded = round(value, self.decimals) + 0.0
        return f"{rounded:.{self.decimals}f}".replace("-", "−")

    def interval(self, interval: Interval | None) -> str:
        """Both ends in brackets; a dash for None."""
        if interval is None:
            return NONE
        return f"[{self.number(interval[0])}, {self.number(interval[1])}]"


def significant(value: float | None) -> str:
    """A number of any size with three significant digits.

    >>> significant(0.0012345), significant(123456.0), significant(float("nan"))
    ('0.00123', '1.23e+05', '–')
    """
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.3g}".replace("-", "−")


def significant_interval(interval: Interval | None) -> str:
    """Both ends in brackets, with three significant digits."""
    low, high = map(significant, interval or (None, None))
    return f"[{low}, {high}]"


def beta_or_tau(value: float | str | None) -> str:
    """A beta or a tau, which may be `best`; a dash for a loss without tau."""
    return NONE if value is None else value if isinstance(value, str) else f"{value:g}"


def plural(count: int, name: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
