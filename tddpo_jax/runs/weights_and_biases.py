"""Logs a run to Weights & Biases, which need not be installed.

An id is unique in a project, so it is random. It is kept in the run's directory, and a resumed run
goes on where it stopped.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

from tddpo_jax.config.schema import Config
from tddpo_jax.errors import UserError
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.system.atomic import write_text

ID_FILE = "wandb_id"
ID_VARIABLE = "WANDB_RUN_ID"  # as Weights & Biases defines it; its sweeps set it


def check_wandb(config: Config, cells: int) -> None:
    """Raises UserError if `train.wandb` is set and cannot be followed.

    Args:
        config: the settings of the first cell.
        cells: the number of cells.
    """
    if not config.train.wandb:
        return
    _import_wandb()
    if cells > 1 and os.environ.get(ID_VARIABLE):
        raise UserError(f"{ID_VARIABLE}: is the id of one run, but the grid has {cells} cells")


def start_run(directory: RunDirectory) -> Any:
    """The run of Weights & Biases that belongs to a directory, new or resumed.

    Raises:
        UserError: Weights & Biases is not installed.
    """
    path = directory.path
    in_grid = (path.parent / "grid.json").is_file()
    return _import_wandb().init(
        dir=path,
        id=_id(directory),
        name=path.name,
        group=path.parent.name if in_grid else None,
        resume="allow",
        config=directory.config.model_dump(mode="json"),
    )


def _id(directory: RunDirectory) -> str:
    file = directory.path / ID_FILE
    kept = file.read_text().strip() if file.is_file() else None
    chosen = os.environ.get(ID_VARIABLE) or kept or secrets.token_hex(4)
    if chosen != kept:
        write_text(file, chosen + "\n")
    return chosen


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("train.wandb: the package wandb is not installed") from None
    return wandb
