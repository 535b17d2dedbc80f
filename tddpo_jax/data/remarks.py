"""What a user should know about a data set, beside its size: one line for each thing."""

from __future__ import annotations

from collections.abc import Iterator

from tddpo_jax.data.examples import Dataset


def remarks(dataset: Dataset) -> Iterator[str]:
    """Yields the shares of a mixture, and what of the rows nothing reads.

    Many data sets have columns that no training needs, so this is no warning. A misspelt column
    shows here.
    """
    for name, rows in dataset.counts.items():
        yield f"{name}: {rows['train_rows']} training, {rows['validation_rows']} validation"
    found = set(dataset.not_read.values())
    for words in sorted(found):
        names = [name for name, of_name in dataset.not_read.items() if of_name == words]
        where = f" of {', '.join(names)}" if len(found) > 1 else ""
        yield f"not read: {words}{where}"
