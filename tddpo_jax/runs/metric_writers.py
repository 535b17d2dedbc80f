"""Writes metrics to `metrics.jsonl`, TensorBoard files and, on request, Weights & Biases."""

from __future__ import annotations

import logging
from typing import Any

from tensorboardX import SummaryWriter

from tddpo_jax.config.schema import Config
from tddpo_jax.errors import UserError
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.system.agreement import first_only, is_first


class Writer:
    """Writes every record of one run to all its places; only the first host writes."""

    def __init__(self, directory: RunDirectory, first_step: int) -> None:
        """Opens the event files, and fills them with the records that a resumed run keeps.

        Args:
            directory: the run's directory.
            first_step: the step at which training starts or resumes.

        Raises:
            UserError: `train.wandb` is set, and Weights & Biases is not installed.
        """
        self.directory = directory
        self._wandb = None
        if not is_first():
            return
        # tensorboardX warns at every value that is not finite. Our records show them already.
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
        self._board = SummaryWriter(
            str(directory.path / "tensorboard"), purge_step=first_step, write_to_disk=True
        )
        # TensorBoard hides the old events from `purge_step` on. One of them may be the validation
        # at the step that the run resumes from, so it is written again.
        for record in directory.records():
            if record["step"] >= first_step:
                self._chart(record)
        if directory.config.train.wandb:
            self._wandb = _wandb_run(directory)

    @first_only
    def log(self, record: dict[str, Any]) -> None:
        """Writes one line of metrics; its `step` is its place on every chart."""
        self.directory.log(record)
        self._chart(record)
        if self._wandb is not None:
            self._wandb.log(_values(record), step=record["step"])

    def _chart(self, record: dict[str, Any]) -> None:
        for name, value in _values(record).items():
            self._board.add_scalar(name, value, record["step"])

    @first_only
    def close(self) -> None:
        """Closes the event files and the run of Weights & Biases."""
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _values(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "step"}


def check_wandb(config: Config) -> None:
    """Raises UserError if `train.wandb` is set and Weights & Biases is not installed."""
    if config.train.wandb:
        _import_wandb()


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("train.wandb: the package wandb is not installed") from None
    return wandb


def _wandb_run(directory: RunDirectory) -> Any:
    return _import_wandb().init(
        dir=directory.path,
        id=directory.path.name,
        resume="allow",
        config=directory.config.model_dump(mode="json"),
    )
