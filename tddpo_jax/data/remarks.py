"""What a user should know about the data of a run, in lines."""

from __future__ import annotations

from collections.abc import Iterator

from tddpo_jax.data.examples import Dataset


def description(names: str, dataset: Dataset) -> Iterator[str]:
    """Yields how much data there is, the shares of a mixture, and what of the rows nothing reads.

    Many data sets have columns that no training needs, so the last is no warning. A misspelt column
    shows there.

    Args:
        names: of the data sets.
        dataset: the examples.
    """
    what = "pairs" if dataset.responses == 2 else "examples of one response"
    dropped = ", ".join(f"{len(rows)} {reason}" for reason, rows in dataset.dropped.items() if rows)
    yield (
        f"{names}: {len(dataset.train)} training and {len(dataset.validation)} validation {what}, "
        f"template {dataset.template}; dropped: {dropped or 'none'}; "
        f"cut: {dataset.cut_prompts} prompts, {dataset.cut_responses} responses"
    )
    for name, rows in dataset.counts.items():
        yield f"{name}: {rows['train_rows']} training, {rows['validation_rows']} validation"
    found = set(dataset.not_read.values())
    for words in sorted(found):
        of_names = [name for name, of_name in dataset.not_read.items() if of_name == words]
        where = f" of {', '.join(of_names)}" if len(found) > 1 else ""
        yield f"not read: {words}{where}"
