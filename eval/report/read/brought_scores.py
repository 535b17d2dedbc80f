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
from typing import Annotated, Any, NamedTuple

import numpy as np
import pydantic

from tddpo_jax.errors import UserError
from tddpo_jax.system.json_files import Content, read_as

from ...experiment import Experiment
from .answer_scores import answer_score
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


class _Numbers(pydantic.BaseModel):
    items: Items


class _Found(NamedTuple):
    """The numbers of one run by one metric."""

    title: str
    items: list[float]
    higher: bool


def read_brought_scores(experiment: Experiment, given: str, split_seed: int) -> list[Score]:
    """The scores of one `--score`; the harness's results give one for each task.

    Raises:
        UserError: there is no such file or number, or a name is not a run's.
    """
    file, _, metric = given.rpartition(":")
    if not file or Path(given).is_file():
        file, metric = given, ""
    contents = _contents(experiment, Path(file))
    if isinstance(contents, OwnScore):
        margins = Margins(contents.matches, contents.beats, f"from {Path(file).name}")
        title, unit, higher = contents.name, contents.unit, contents.higher_is_better
        return [_score(experiment, file, contents.cells, split_seed, title, unit, higher, margins)]
    if not metric:
        raise UserError(f"--score {given}: name the number that counts: {given}:METRIC")
    tables: dict[str, dict[str, list[float]]] = {}
    directions: dict[str, bool] = {}
    for name, content in contents.items():
        for title, items, higher in _numbers(content, metric, f"{file}: {name}"):
            tables.setdefault(title, {})[name] = items
            directions[title] = higher
    if not tables:
        raise UserError(f"--score {given}: {file} holds no number {metric!r}")
    return [
        _score(experiment, file, table, split_seed, title, metric, directions[title], None)
        for title, table in tables.items()
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


def _numbers(content: Any, metric: str, where: str) -> Iterator[_Found]:
    """The numbers of a run by this metric, of each task where there are tasks."""
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: must be an object")
    if metric in content:
        yield _Found(metric, _checked(content[metric], f"{where}: {metric}"), True)
    tasks, directions = (content.get(key) for key in ("results", "higher_is_better"))
    for task, values in tasks.items() if isinstance(tasks, Mapping) else ():
        for key, value in values.items() if isinstance(values, Mapping) else ():
            # The harness writes `acc,none`: the metric, and how answers were filtered.
            if metric in (key, key.partition(",")[0]):
                known = directions.get(task) if isinstance(directions, Mapping) else None
                higher = known.get(metric, True) if isinstance(known, Mapping) else True
                title = f"{task} {key.removesuffix(',none')}"
                yield _Found(title, _checked(value, f"{where}: {title}"), bool(higher))


def _checked(value: Any, where: str) -> list[float]:
    try:
        return _Numbers(items=value).items
    except pydantic.ValidationError:
        raise UserError(f"{where}: must be a number, or a list of numbers") from None


def _score(
    experiment: Experiment,
    file: str,
    table: Mapping[str, list[float]],
    split_seed: int,
    title: str,
    unit: str,
    higher: bool,
    margins: Margins | None,
) -> Score:
    unknown = sorted(set(table) - {cell.name for cell in experiment.cells} - {BASE})
    if unknown:
        raise UserError(f"{file}: cells: {unknown[0]!r} is not a cell of {experiment.folder}")
    if len({len(items) for items in table.values()}) != 1:
        raise UserError(f"{file}: cells: must hold the same number of items each")
    values = {name: np.array(items, np.float64) for name, items in table.items()}
    base = values.pop(BASE, None)
    return answer_score(
        experiment,
        values,
        ("items",) * len(next(iter(table.values()))),
        split_seed,
        name=title,
        title=title,
        unit=unit,
        higher=higher,
        margins=margins,
        decimals=3,
        base=None if base is None else float(base.mean()),
    )
