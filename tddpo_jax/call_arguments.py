"""The arguments of the Python interface as settings, and what must happen before JAX starts.

Here a data set in memory becomes a file of the cache, and a function the name of its file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tddpo_jax.config.dotted import with_value
from tddpo_jax.config.own_function import is_reading, name_of_function
from tddpo_jax.config.reading import read_yaml
from tddpo_jax.config.schema import DataSource
from tddpo_jax.data.given_rows import save_rows
from tddpo_jax.errors import UserError
from tddpo_jax.system.paths import EMBEDDED_CONFIG
from tddpo_jax.system.xla_flags import set_flags

# A path or a hub id, or rows in memory: a list of mappings, or a `datasets.Dataset`.
Data = str | Path | Iterable[Mapping[str, Any]]
# One data set, or the paths and hub ids of a mixture.
DataSets = Data | Sequence[str | Path]
Loss = str | Callable[..., Any]
Numbers = float | int | Sequence[float | int]


def settings_of_call(
    model: str | Path | None,
    data: DataSets | None,
    loss: Loss | Sequence[Loss] | None,
    beta: Numbers | None,
    tau: Numbers | None,
    seed: int | Sequence[int] | None,
    settings: Mapping[str, Any] | None,
    output: str | Path | None,
) -> dict[str, Any]:
    """The settings as a command line would give them, not yet validated.

    Raises:
        UserError: a setting is given twice, or the file of a loss trains while it is read.
    """
    if is_reading():
        raise UserError(
            "the file of a loss trains while it is read; put that under if __name__ == '__main__'"
        )
    others = dict(settings or {})
    given: dict[str, Any] = {
        "model.path": None if model is None else str(model),
        "data.path": None if data is None else _paths_of(data),
        "loss.name": _names_of(loss),
        "loss.beta": beta,
        "loss.tau": tau,
        "seed": seed,
        "output": None if output is None else str(output),
    }
    given = {
        name: value if isinstance(value, str | float | int) else list(value)
        for name, value in given.items()
        if value is not None
    }
    if twice := given.keys() & others.keys():
        raise UserError(f"{min(twice)}: is given twice, as an argument and in settings")
    given |= others
    from_file = not {"model.path", "data.path"} & given.keys()
    mapping = read_yaml(EMBEDDED_CONFIG) if from_file else {}
    for name, value in given.items():
        mapping = with_value(mapping, name, value)
    return mapping


def _paths_of(data: DataSets) -> str | list[str]:
    paths = data if isinstance(data, Sequence) and not isinstance(data, str) else ()
    if paths and all(isinstance(one, str | Path) for one in paths):
        return [str(one) for one in paths]
    return _path_of(data)


def source_of_call(
    data: Data, split: str | None, config: str | None, columns: Mapping[str, str] | None
) -> DataSource:
    """One data set, with its split, config and columns."""
    return DataSource(
        path=_path_of(data),
        split=split,
        config=config,
        columns=None if columns is None else dict(columns),
    )


def _path_of(data: DataSets) -> str:
    return str(data) if isinstance(data, str | Path) else str(save_rows(data))


def _names_of(loss: Loss | Sequence[Loss] | None) -> str | list[str] | None:
    if loss is None or isinstance(loss, str):
        return loss
    if callable(loss):
        return name_of_function(loss, "loss")
    return [one if isinstance(one, str) else name_of_function(one, "loss") for one in loss]


def before_jax() -> None:
    """Sets XLA's flags, which JAX reads when it starts, and the folder of compiled programs."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if "jax" not in sys.modules:
        set_flags()
    from tddpo_jax.system.cache import use_compilation_cache

    use_compilation_cache()
