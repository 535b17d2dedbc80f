"""Scores that others measured: `--score FILE:METRIC`.

FILE is one of three things:

- the name of a file in every run's folder, such as the results of the lm-evaluation-harness
  (`results.json:acc`). One in the grid's own folder is that of the model before training;
- one file of an object that maps the names of runs to such contents, and maybe `base` to that of
  the model before training;
- one file of the fields of `OwnScore`, which needs no METRIC.

A content is what the harness wrote, or an object that maps METRIC to one number or to a list of one
number per item.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic

from tddpo_jax.errors import UserError
from tddpo_jax.system.json_files import Content, read_as

from ...experiment import Experiment
from .answer_scores import table_of
from .scores import Margins, Score

BASE = "base"

Number = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Margin = Annotated[float, pydantic.Field(allow_inf_nan=False, ge=0)]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Items = Annotated[list[Number], pydantic.Field(min_length=1), pydantic.BeforeValidator(_as_list)]


class OwnScore(pydantic.BaseModel):
    """A score with its margins; `cells` maps runs to one number, or to one number per item."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, pydantic.Field(pattern=r"^\w[\w .]*$", max_length=60)]
    unit: Annotated[str, pydantic.Field(max_length=60)] = "score"
    higher_is_better: bool = True
    matches: Margin
    beats: Margin
    cells: Annotated[dict[str, Items], pydantic.Field(min_length=1)]


ITEMS = pydantic.TypeAdapter(Items)


def read_brought_scores(experiment: Experiment, given: str) -> list[Score]:
    """The scores of one `--score`; the harness's results give one for each task.

    Raises:
        UserError: there is no such file or number, or a name is not a run's.
    """
    file, _, metric = given.rpartition(":")
    if not file or Path(given).is_file():
        file, metric = given, ""
    contents = _contents(experiment, Path(file))
    if isinstance(contents, OwnScore):
        margins = Margins(contents.matches, contents.beats)
        title, unit, higher = contents.name, contents.unit, contents.higher_is_better
        return [_score(experiment, file, contents.cells, title, unit, higher, margins)]
    if not metric:
        raise UserError(f"--score {given}: name the number that counts: {given}:METRIC")
    tables: dict[tuple[str, bool], dict[str, list[float]]] = {}
    for name, content in contents.items():
        for title, higher, items in _numbers(content, metric, f"{file}: {name}"):
            tables.setdefault((title, higher), {})[name] = items
    if not tables:
        raise UserError(f"--score {given}: {file} holds no number {metric!r}")
    return [
        _score(experiment, file, table, title, metric, higher, None)
        for (title, higher), table in tables.items()
    ]


def _contents(experiment: Experiment, file: Path) -> OwnScore | dict[str, Any]:
    """What the file holds, or the files of this name in the folders of the runs."""
    if file.is_file():
        content = read_as(file, Content).model_dump()
        if {"name", "cells", "matches"} & set(content):
            return read_as(file, OwnScore)
        names = {cell.name for cell in experiment.cells}
        alone = len(names) == 1 and not names & set(content)
        return {names.pop(): content} if alone else content
    folders = {cell.name: cell.folder for cell in experiment.cells}
    if experiment.is_grid:
        folders[BASE] = experiment.folder
    found = {name: folder / file for name, folder in folders.items() if (folder / file).is_file()}
    if not found:
        raise UserError(f"{file}: there is no such file, neither here nor in the runs' folders")
    return {name: read_as(one, Content).model_dump() for name, one in found.items()}


def _numbers(content: Any, metric: str, where: str) -> Iterator[tuple[str, bool, list[float]]]:
    """The title, the direction and the numbers of a run by this metric, for each task if any."""
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: must be an object")
    if metric in content:
        yield metric, True, _checked(content[metric], f"{where}: {metric}")
    tasks, directions = (content.get(key) for key in ("results", "higher_is_better"))
    for task, values in tasks.items() if isinstance(tasks, Mapping) else ():
        for key, value in values.items() if isinstance(values, Mapping) else ():
            # The harness writes `acc,none`: the metric, and how answers were filtered.
            if metric in (key, key.partition(",")[0]):
                known = directions.get(task) if isinstance(directions, Mapping) else None
                higher = known.get(metric, True) if isinstance(known, Mapping) else True
                title = f"{task} {key.removesuffix(',none')}"
                yield title, bool(higher), _checked(value, f"{where}: {title}")


def _checked(value: Any, where: str) -> list[float]:
    try:
        return ITEMS.validate_python(value)
    except pydantic.ValidationError:
        raise UserError(f"{where}: must be a number, or a list of numbers") from None


def _score(
    experiment: Experiment,
    file: str,
    numbers: Mapping[str, list[float]],
    title: str,
    unit: str,
    higher: bool,
    margins: Margins | None,
) -> Score:
    unknown = sorted(set(numbers) - {cell.name for cell in experiment.cells} - {BASE})
    if unknown:
        raise UserError(f"{file}: cells: {unknown[0]!r} is not a cell of {experiment.folder}")
    counts = {len(items) for items in numbers.values()}
    if len(counts) != 1:
        raise UserError(f"{file}: cells: must hold the same number of items each")
    values = {name: np.array(items, np.float64) for name, items in numbers.items()}
    base, items = values.pop(BASE, None), counts.pop()
    table = table_of(experiment, values, items)
    return Score(
        name=title,
        title=title,
        unit=unit,
        higher=higher,
        margins=margins,
        decimals=3,
        strata=("items",) * items,
        choosing=table,
        scoring=table,
        base=None if base is None else float(base.mean()),
    )
