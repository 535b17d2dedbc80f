"""Data sets that `datasets` reads: hub ids, folders laid out like those, and saved ones.

`datasets` takes a second to import. Local files need not pay it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tddpo_jax.data.row_files import table_rows
from tddpo_jax.errors import UserError, one_line
from tddpo_jax.system.hub import NotAtHand

# A folder that `save_to_disk` wrote holds one of these files.
SAVED_SPLITS, SAVED_ONE = "dataset_dict.json", "state.json"


def splits_of(name: str, config: str | None) -> list[str]:
    """The splits of a hub id, `owner/name` or `owner/name@revision`, or of a folder.

    Raises:
        UserError: there is no such data set, or it has several configs and none is named.
    """
    import datasets

    saved = _saved(name, config)
    if saved is not None:
        return list(saved)
    path, revision = id_and_revision(name)
    try:
        return datasets.get_dataset_split_names(path, config_name=config, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _missing(name, config, error) from None


def rows_of(name: str, split: str | None, config: str | None) -> list[Any]:
    """The rows of a split of a data set; `train` if none is named.

    Raises:
        UserError: as in `splits_of`, or there is no such split.
    """
    import datasets

    saved, wanted = _saved(name, config), split or "train"
    if saved is not None:
        return table_rows(saved[_one_of(name, wanted, list(saved))].to_list())
    path, revision = id_and_revision(name)
    try:
        loaded = datasets.load_dataset(path, config, split=wanted, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if "split" in str(error):
            _one_of(name, wanted, splits_of(name, config))
        raise _missing(name, config, error) from None
    return table_rows(loaded.to_list())


def id_and_revision(name: str) -> tuple[str, str | None]:
    """`owner/name` and a revision of `owner/name@revision`; a folder has none."""
    if Path(name).exists() or "@" not in name:
        return name, None
    path, _, revision = name.partition("@")
    return path, revision


def _one_of(name: str, split: str, splits: list[str]) -> str:
    if split not in splits:
        raise UserError(
            f"data {name}: has no split {split!r}; it has {', '.join(splits)}: "
            "name one with data.split"
        )
    return split


def _saved(name: str, config: str | None) -> dict[str, Any] | None:
    """The splits of a folder that `save_to_disk` wrote, or None for any other data set."""
    import datasets

    folder = Path(name)
    if not (folder / SAVED_SPLITS).is_file() and not (folder / SAVED_ONE).is_file():
        return None
    if config is not None:
        raise UserError(f"data.config: {name} was saved by save_to_disk and has no configs")
    try:
        found = datasets.load_from_disk(name)
    except Exception as error:  # whatever a damaged folder makes datasets and pyarrow raise
        raise UserError(f"data {name}: {one_line(error)}") from None
    return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}


def _missing(name: str, config: str | None, error: Exception) -> UserError:
    import datasets

    kind = UserError if Path(name).exists() else NotAtHand
    # `datasets` says only that generating failed, and keeps the reason as the cause.
    reason = one_line(": ".join(str(each) for each in (error, error.__cause__) if each))
    if "Dataset scripts" in reason:
        script = reason.rpartition(" ")[2]
        return UserError(f"data {name}: is a script, {script}, which is never run")
    if "onfig" in reason:
        path, revision = id_and_revision(name)
        try:
            configs = datasets.get_dataset_config_names(path, revision=revision)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError):
            configs = []
        if len(configs) > 1 and config not in configs:
            return UserError(
                f"data {name}: has the configs {', '.join(configs)}: name one with data.config"
            )
    return kind(f"data {name}: {reason}")
