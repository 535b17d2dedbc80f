"""The data sets of a run: one, or several that are mixed, each with its own validation data.

Each data set gives a share of its rows. Which rows these are depends on `data.split_seed` and the
number of rows alone. The rows of a smaller share are among those of a larger one. A split for
validation is used whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from tddpo_jax.config.schema import DEFAULT_FRACTION, DataConfig, DataSource
from tddpo_jax.data.sources import (
    Source,
    names_files,
    number_of_responses,
    read_source,
    split_names,
)
from tddpo_jax.errors import UserError


class Mixture(NamedTuple):
    """The sources of a run."""

    training: list[Source]
    held_out: list[float]  # of each training source: share of its prompts that validates
    validation: list[Source]

    @property
    def sources(self) -> list[Source]:
        """All sources, those of training first."""
        return [*self.training, *self.validation]


def read_mixture(config: DataConfig) -> Mixture:
    """Reads the rows of training and validation; needs no tokenizer.

    Raises:
        UserError: a file is missing, or one of its rows is wrong (`NotAtHand` of a hub id).
    """
    sets = config.sources
    splits = [split_names(each.path, each.config) for each in sets]
    file = _file(config.validation, splits)
    choices = [
        0.0 if file else _choice(config.validation, each, names)
        for each, names in zip(sets, splits, strict=True)
    ]
    training = [_drawn(_read(each, each.split), each, config.split_seed) for each in sets]
    validation = [
        _read(each, choice)
        for each, choice in zip(sets, choices, strict=True)
        if isinstance(choice, str)
    ]
    if file:
        validation = [read_source(file, columns=config.columns)]
    held_out = [choice if isinstance(choice, float) else 0.0 for choice in choices]
    _check_responses(training, validation)
    return Mixture(training, held_out, validation)


def _read(data_set: DataSource, split: str | None) -> Source:
    return read_source(data_set.path, split, data_set.config, data_set.columns)


def _file(choice: float | str | None, splits: Sequence[Sequence[str]]) -> str | None:
    """The file that validates, unless every data set has a split of its name."""
    named = isinstance(choice, str) and not all(choice in names for names in splits)
    return str(choice) if named and names_files(str(choice)) else None


def _choice(choice: float | str | None, data_set: DataSource, splits: Sequence[str]) -> float | str:
    """What of a data set validates: one of its splits, or a fraction of its rows."""
    if choice is None:
        own = [name for name in _counterparts(data_set.split) if name in splits]
        return own[0] if own else DEFAULT_FRACTION
    if isinstance(choice, float) and not 0 <= choice < 1:
        raise UserError(f"data.validation: a fraction must be in [0, 1), got {choice}")
    if isinstance(choice, float) or choice in splits:
        return choice
    raise UserError(
        f"data.validation: {choice!r} is no file, no fraction, and no split of {data_set.path}, "
        f"which has {', '.join(splits)}"
    )


def _counterparts(split: str | None) -> list[str]:
    """The names that a split for validation may have beside a training split.

    They are `validation` and `test`, and `test_prefs` beside `train_prefs`.
    """
    common = ["validation", "test"]
    if split is None or not split.startswith("train"):
        return common
    return [name + split.removeprefix("train") for name in common]


def _drawn(source: Source, data_set: DataSource, seed: int) -> Source:
    """The share of a source's rows that is used, in their order."""
    if data_set.fraction in (None, 1):
        return source
    count = max(1, round(data_set.fraction * len(source.rows)))

    def place(index: int) -> bytes:
        return hashlib.sha256(b"%d row %d" % (seed, index)).digest()

    taken = sorted(sorted(range(len(source.rows)), key=place)[:count])
    return source._replace(
        rows=[source.rows[index] for index in taken],
        numbers=[source.numbers[index] for index in taken],
    )


def _check_responses(training: Sequence[Source], validation: Sequence[Source]) -> None:
    first = training[0]
    for field, sources in (("path", training), ("validation", validation)):
        for source in sources:
            if source.responses != first.responses:
                raise UserError(
                    f"data.{field}: a row of {source.name} has "
                    f"{number_of_responses(source.responses)}, one of {first.name} has "
                    f"{number_of_responses(first.responses)}"
                )
