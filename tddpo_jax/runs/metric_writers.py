"""Writes metrics to `metrics.jsonl`, TensorBoard files and, on request, Weights & Biases."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Sequence
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams

from tddpo_jax.config.dotted import dotted_values
from tddpo_jax.config.schema import Config
from tddpo_jax.runs.records import best_record
from tddpo_jax.runs.run_directory import RunDirectory
from tddpo_jax.runs.sampled_answers import SampledAnswer, read_answers, write_answers
from tddpo_jax.runs.weights_and_biases import start_run
from tddpo_jax.system.agreement import first_only, is_first


class Writer:
    """Writes every record of one run to all its places; only the first host writes."""

    def __init__(self, directory: RunDirectory) -> None:
        """Opens a new event file, and fills it with the records that a resumed run keeps.

        Args:
            directory: the run's directory.

        Raises:
            UserError: `train.wandb` is set, and Weights & Biases is not installed.
        """
        self.directory = directory
        self._wandb = None
        self._best: list[dict[str, Any]] = []  # the best validation so far, if there is one
        if not is_first():
            return
        # tensorboardX warns at every value that is not finite. Our records show them already.
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
        self._board = SummaryWriter(
            str(directory.path / "tensorboard"), purge_step=0, write_to_disk=True
        )
        self._board.file_writer.add_summary(_hyperparameters(directory.config))
        # TensorBoard hides the old events from `purge_step` on. A killed process may have lost some
        # of its last ones, so all records are written again.
        for record in directory.records():
            self._chart(record)
        for step, answers in read_answers(directory.path).items():
            self._display(step, answers)
        if directory.config.train.wandb:
            self._wandb = start_run(directory)

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
        for name, value in self._best_so_far(record).items():
            self._board.add_scalar(f"best/{name}", value, record["step"])

    def _best_so_far(self, record: dict[str, Any]) -> dict[str, Any]:
        """The values of a validation if none before was better, else {}.

        The HParams tab shows the last value of every name, so these are of the best policy.
        """
        if "eval_loss" not in record:
            return {}
        best = best_record([*self._best, record], self.directory.config.train.best_metric)
        if best is not record:
            return {}
        self._best = [record]
        return {name: value for name, value in record.items() if name.startswith("eval_")}

    @first_only
    def show_answers(self, step: int, answers: Sequence[SampledAnswer]) -> None:
        """Writes the answers of one validation; TensorBoard shows those to one prompt together."""
        write_answers(self.directory.path, step, answers)
        self._display(step, answers)

    def _display(self, step: int, answers: Sequence[SampledAnswer]) -> None:
        for each in answers:
            # TensorBoard reads Markdown. An indented text is shown as it is.
            parts = ("prompt", each.prompt), ("answer", each.answer)
            shown = (f"{name}\n\n{textwrap.indent(text, '    ')}" for name, text in parts)
            self._board.add_text(f"answers/row {each.row}", "\n\n".join(shown), step)

    @first_only
    def close(self) -> None:
        """Closes the event files and the run of Weights & Biases."""
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _values(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "step"}


def _hyperparameters(config: Config) -> Summary:
    """What TensorBoard's HParams tab shows as the settings of a run.

    Only those are listed that the run reads. TensorBoard joins the lists of several runs.
    """
    chosen: dict[str, Any] = {"seed": True, "loss": config.loss.read, "train": True}
    if config.train.mode != "full":
        chosen["lora"] = True
    named = dotted_values(config.model_dump(mode="json", include=chosen))
    simple = {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in named.items()
        if value is not None
    }
    _, start, _ = hparams(simple, {})
    return start
