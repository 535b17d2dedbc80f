"""Where metrics go: `metrics.jsonl`, TensorBoard files and, if asked for, Weights & Biases."""

from __future__ import annotations

import logging
from typing import Any

from tensorboardX import SummaryWriter

from tddpo_jax.config.schema import Config
from tddpo_jax.errors import UserError
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.system.agreement import first_only, is_first


class Writer:
    """Writes every record of one run to all its places; on the first host alone."""

    def __init__(self, directory: RunDirectory, config: Config, first_step: int) -> None:
        """
        Raises:
            UserError: Weights & Biases is asked for and not installed.
        """
        self.directory = directory
        self._wandb = None
        if not is_first():
            return
        # tensorboardX warns of every value that is not finite; our own records show them.
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
        self._board = SummaryWriter(
            str(directory.path / "tensorboard"), purge_step=first_step, write_to_disk=True
        )
        # TensorBoard hides what an interrupted run wrote of `purge_step`, its validation included.
        for record in directory.records():
            if record["step"] >= first_step:
                self._chart(record)
        if config.train.wandb:
            self._wandb = _wandb_run(directory, config)

    @first_only
    def log(self, record: dict[str, Any]) -> None:
        """Writes one line of metrics; `step` is its place on every chart."""
        self.directory.log(record)
        self._chart(record)
        if self._wandb is not None:
            self._wandb.log(_values(record), step=record["step"])

    def _chart(self, record: dict[str, Any]) -> None:
        for name, value in _values(record).items():
            self._board.add_scalar(name, value, record["step"])

    @first_only
    def close(self) -> None:
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _values(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "step"}


def check_wandb(config: Config) -> None:
    """Raises UserError if Weights & Biases is asked for and not installed."""
    if config.train.wandb:
        _import_wandb()


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("train.wandb: the package wandb is not installed") from None
    return wandb


def _wandb_run(directory: RunDirectory, config: Config) -> Any:
    return _import_wandb().init(
        dir=directory.path,
        id=directory.path.name,
        resume="allow",
        config=config.model_dump(mode="json"),
    )
