"""Scores of the user's own, from JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic

from tddpo_jax.errors import UserError
from tddpo_jax.system.json_files import read_as

from ...experiment import Experiment
from .answer_scores import answer_score
from .scores import Margins, Score

Number = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Margin = Annotated[float, pydantic.Field(allow_inf_nan=False, ge=0)]


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Items = Annotated[list[Number], pydantic.Field(min_length=1), pydantic.BeforeValidator(_as_list)]


class OwnScore(pydantic.BaseModel):
    """The fields of a file, see `read_own_score`."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    # The name also names picture files. It holds no $, which would begin a formula in a picture.
    name: Annotated[str, pydantic.Field(pattern=r"^\w[\w .]*$", max_length=60)]
    unit: Annotated[str, pydantic.Field(pattern=r"^[^$]*$", max_length=60)] = "score"
    higher_is_better: bool = True
    matches: Margin
    beats: Margin
    cells: Annotated[dict[str, Items], pydantic.Field(min_length=1)]


def read_own_score(experiment: Experiment, file: Path, split_seed: int) -> Score:
    """Reads a score of the user's own.

    The file is a JSON object: `name`, `unit`, `higher_is_better` (true), the margins `matches` and
    `beats`, and `cells`. `cells` maps the name of a cell's directory to one number, or to a list of
    one number per item. The items are the same for every cell.

    Raises:
        UserError: a field is missing or wrong, or a name is not a cell's.
    """
    given = read_as(file, OwnScore)
    unknown = sorted(set(given.cells) - {cell.name for cell in experiment.cells})
    if unknown:
        raise UserError(f"{file}: cells: {unknown[0]!r} is not a cell of {experiment.folder}")
    values = {name: np.array(items) for name, items in given.cells.items()}
    if len({value.shape for value in values.values()}) != 1:
        raise UserError(f"{file}: cells: must hold the same number of items each")
    return answer_score(
        experiment,
        values,
        ("items",) * len(next(iter(values.values()))),
        split_seed,
        name=given.name,
        title=given.name,
        unit=given.unit,
        higher=given.higher_is_better,
        margins=Margins(given.matches, given.beats, f"from {file.name}"),
        decimals=3,
    )
