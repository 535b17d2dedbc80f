"""How often the report's interval covers the truth, in simulated experiments whose truth is 0.

PYTHONPATH=. python tests/helpers/interval_coverage.py        the table of eval/report/README.md
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from eval.report.statistics.estimates import Estimate, estimate

ITEMS, EXPERIMENTS = 40, 4000
WORLDS = {  # standard deviations: of seeds, of items, of both together
    "only seeds": (0.05, 0.0, 0.0),
    "only items": (0.0, 0.3, 0.05),
    "both": (0.02, 0.3, 0.2),
    "equal parts": (0.07, 0.3, 0.1),
    "only noise": (0.0, 0.0, 0.3),
}


def world(
    generator: np.random.Generator, name: str, seeds: int, items: int
) -> Float[np.ndarray, "seeds items"]:
    """The values of one experiment."""
    of_seeds, of_items, of_both = WORLDS[name]
    return (
        of_seeds * generator.normal(size=(seeds, 1))
        + of_items * generator.normal(size=(1, items))
        + of_both * generator.normal(size=(seeds, items))
    )


def estimates(name: str, seeds: int, experiments: int) -> list[Estimate]:
    """What the report says of experiments in a world."""
    generator = np.random.default_rng(1)
    found = []
    for _ in range(experiments):
        one = estimate(world(generator, name, seeds, ITEMS), ("i",) * ITEMS)
        assert one is not None
        found.append(one)
    return found


def coverage(found: list[Estimate]) -> float:
    """The share of the intervals that hold 0."""
    ends = [one.interval or (math.nan, math.nan) for one in found]
    return float(np.mean([low <= 0 <= high for low, high in ends]))


def normal_coverage(found: list[Estimate]) -> float:
    """The same of 1.96 standard errors around the mean, which is a mixed model's own interval."""
    return float(np.mean([abs(one.mean) <= 1.96 * one.error for one in found]))


def main() -> None:
    """Prints the table."""
    worlds = [name for name in WORLDS if name != "only noise"]
    print(f"| seeds | {' | '.join(worlds)} | the mixed model's 1.96 errors, only seeds |")
    print("|---" * (len(worlds) + 2) + "|")
    for seeds in (2, 3, 5):
        found = {name: estimates(name, seeds, EXPERIMENTS) for name in worlds}
        shares = [*map(coverage, found.values()), normal_coverage(found["only seeds"])]
        print(f"| {seeds} | {' | '.join(f'{share:.2f}' for share in shares)} |")


if __name__ == "__main__":
    main()
