"""The files of a run, and the checks of a directory that exists already.

config.yaml      the settings of the run, fully resolved
loss.py          the text of the file of one's own loss; only if the run has one
run.json         versions, commit, device, hashes, row counts
metrics.jsonl    one line per logged step and per validation
evaluations/     log-probs of the validation responses, one file per validation; the reference's
                 log-probs; the responses' lengths; sampled answers, one file per validation
tensorboard/     the same metrics as event files
checkpoints/     the last training states (Orbax)
best/            the best policy: a Hugging Face folder, or a PEFT folder after LoRA
divergence.json  where and why the run diverged; only if it did
summary.json     how the run ended; it is written last, so a run that has it is finished
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from tddpo_jax.config.dotted import get, with_value, without_value
from tddpo_jax.config.own_function import function_name
from tddpo_jax.config.own_loss import LOSS_FILE, is_own
from tddpo_jax.config.reading import read_yaml
from tddpo_jax.config.schema import Config, DataConfig, LoraConfig, ModelConfig, TrainConfig
from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.losses.weighted_sum import is_mixture
from tddpo_jax.runs.more_epochs import is_longer, steps_before
from tddpo_jax.runs.records import DEFAULTS, read_records
from tddpo_jax.runs.sampled_answers import FOLDER, forget_answers
from tddpo_jax.system.agreement import agree, first_only
from tddpo_jax.system.atomic import PARTIAL, recover, write_json, write_text
from tddpo_jax.system.json_files import Content, read_as

LOCK_FILE = "claim.lock"  # of `locks.py`
JOBS_FOLDER = "jobs"  # of `commands/submit.py`
# These sections do not change what a run computes, only where: a run may resume on other devices.
PLACEMENT = ("mesh", "hosts")
# These settings name files, or a part of the data. A run knows its files by their contents, whose
# hashes are in `run.json`.
NAMES = ("model.path", "data.path", "data.validation")
# These settings change neither what a run computes nor its metrics: the company in which it trains,
# and what else it keeps.
IDLE = ("train.population", "train.sample_prompts", "train.save_minutes")
# What `run.json` says of files: the section, the setting that names them, and their hash.
HASHES = (
    ("model", "path", "sha256"),
    ("model", "path", "adapter_sha256"),
    ("model", "reference", "reference_sha256"),
    ("model", "reference", "reference_adapter_sha256"),
    ("data", "path", "sha256"),
)
# How the steps of an epoch share its examples, in `run.json`. Earlier versions recorded nothing:
# they made full steps, and a last one of the remainder.
EVEN_STEPS = "even"


def is_free(path: Path) -> bool:
    """Whether a new run or grid may begin in a directory: it has no files, or is missing."""
    if not path.exists():
        return True
    names = (file.name for file in path.iterdir())
    # A lock or a folder of jobs may be there because another process is about to begin the run. A
    # folder with the suffix `REPLACED` does count as a file: it may be the only copy of a policy.
    return all(name in (LOCK_FILE, JOBS_FOLDER) or name.endswith(PARTIAL) for name in names)


def check_output(path: Path) -> None:
    """Raises UserError unless the path is a writable directory or can be made into one."""
    try:
        nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
        if nearest.is_dir() and os.access(nearest, os.W_OK):
            # The permissions may allow what the file system does not. `is_free` ignores the suffix.
            tempfile.TemporaryDirectory(dir=nearest, suffix=PARTIAL).cleanup()
            return
    except OSError as error:
        raise UserError(f"output: {path}: cannot be made: {error.strerror}") from None
    raise UserError(f"output: {path}: {nearest} is not a writable directory")


class _Model(Content):
    path: str
    sha256: str
    adapter_sha256: str | None = None
    reference: str | None = None
    reference_sha256: str | None = None
    reference_adapter_sha256: str | None = None
    parameters: int


class _Data(Content):
    path: str
    sha256: str
    train_rows: int
    validation_rows: int


class _Facts(Content):
    model: _Model
    data: _Data


class _Divergence(Content):
    step: int


class _Summary(Content):
    state: Literal["finished", "diverged"]
    steps: int


# The JSON files of a run that are read again, with the fields that they must have.
PARTS: dict[str, type[Content]] = {
    "run.json": _Facts,
    "divergence.json": _Divergence,
    "summary.json": _Summary,
}


def read_part(run: Path, name: str) -> dict[str, Any] | None:
    """The content of one of the files of `PARTS`; None if there is no such file.

    Args:
        run: the run's directory.
        name: the file's name.

    Raises:
        UserError: the file is damaged.
    """
    file = run / name
    return read_as(file, PARTS[name]).model_dump(exclude_unset=True) if file.exists() else None


class RunDirectory:
    """The files of one run; `create` is the first to write, and only the first host writes."""

    def __init__(self, path: Path, config: Config) -> None:
        """Checks the directory if it exists.

        Args:
            path: the directory.
            config: the settings of the run.

        Raises:
            UserError: the directory holds a run of another configuration (other names of its model
                and data are allowed, see `check_contents`), or files of another
                kind, or cannot be written to.
        """
        self.path = path
        self.config = config
        self.on_record: Callable[[dict[str, Any]], None] | None = None
        self._resolved = config.model_dump(mode="json", exclude={"output", "hosts"})
        # Whether the run exists and began with other names of its model or data.
        self.is_renamed = False
        # The steps that the run was first asked for, if this command asks for more epochs.
        self._shorter: int | None = None
        check_output(path)
        if is_free(path):
            return
        stored = path / "config.yaml"
        if not stored.exists():
            held = "holds a grid, not" if (path / "grid.json").exists() else "does not hold"
            raise UserError(f"output: {path} exists and {held} a run")
        found = self._with_our_place_of_the_loss(read_yaml(stored))
        there, here = (without_names(identity(each)) for each in (found, self._resolved))
        self.is_renamed = names_of(found) != names_of(self._resolved)
        if is_longer(there, here):
            self._shorter = self._steps_before(there)
        elif there != here:
            raise UserError(
                f"output: {path} holds a run of another configuration: "
                f"{', '.join(differences(there, here))}"
            )
        kept = path / LOSS_FILE
        if self._loss_text and (not kept.exists() or kept.read_text() != self._loss_text):
            raise UserError(f"loss.name: {config.loss.name} has changed since {path} began")

    def _steps_before(self, earlier: dict[str, Any]) -> int:
        """The steps of a run that may go on for more epochs; 0 if it has hardly begun."""
        facts, summary = (read_part(self.path, name) for name in ("run.json", "summary.json"))
        if facts is None:
            return 0
        if facts.get("step_sizes") != EVEN_STEPS:
            _check_step_sizes(self.path, facts)
        state = None if summary is None else summary["state"]
        rows = facts["data"]["train_rows"]
        return steps_before(self.path, self.config, earlier["train"], rows, state)

    @property
    def _loss_text(self) -> str:
        return LOSSES[self.config.loss.name].source

    def _with_our_place_of_the_loss(self, found: dict[str, Any]) -> dict[str, Any]:
        """The stored settings; the file of one's own loss may have moved, its text counts."""
        name = self.config.loss.name
        there = get(found, "loss.name")
        moved = is_own(there) and is_own(name) and function_name(there) == function_name(name)
        return with_value(found, "loss.name", name) if moved else found

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of `summary.json`; None if the run is not finished, or is to go on."""
        summary = read_part(self.path, "summary.json")
        if summary is None or self._shorter is None:
            return summary
        return summary if summary["steps"] > self._shorter else None

    def create(self, facts: dict[str, Any]) -> None:
        """Makes the directory with its configuration and `run.json`.

        Args:
            facts: the content of `run.json`, see `training.run_facts`.

        Raises:
            UserError: the weights, the data or the sizes of the steps have changed since the run
                began, or this host does not see the files that the first host wrote.
        """
        agree(lambda: self._create(facts))
        if not (self.path / "run.json").exists():
            raise UserError(f"output: {self.path} is not on a file system that all hosts share")

    def _create(self, facts: dict[str, Any]) -> None:
        check_contents(self.path, facts)
        if self.summary is None:
            (self.path / "summary.json").unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        recover(self.path / "best")
        text = yaml.safe_dump(self._resolved, sort_keys=False)
        if self._loss_text:
            write_text(self.path / LOSS_FILE, self._loss_text)
        write_text(self.path / "config.yaml", text)
        write_json(self.path / "run.json", facts)
        (self.path / FOLDER).mkdir(exist_ok=True)

    @first_only
    def log(self, record: dict[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`, and then tells it to `on_record`."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.on_record is not None:
            self.on_record(record)

    def records(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return read_records(self.path / "metrics.jsonl")

    @property
    def divergence(self) -> dict[str, Any] | None:
        """Where and why the run diverged; None if it did not."""
        return read_part(self.path, "divergence.json")

    @first_only
    def diverge(self, facts: dict[str, Any]) -> None:
        """Writes `divergence.json`."""
        write_json(self.path / "divergence.json", facts)

    @first_only
    def rewind(self, step: int) -> None:
        """Deletes the records of what came after `step` optimiser steps.

        These are the training lines from number `step` on, the later validations and answers, and a
        later divergence. At step 0 all records go: a run without a checkpoint begins anew.
        """
        kept = [
            record
            for record in self.records()
            if record["step"] < step or (record["step"] == step > 0 and "eval_loss" in record)
        ]
        divergence = self.divergence
        if divergence is not None and divergence["step"] >= step:
            (self.path / "divergence.json").unlink()
        if self.path.exists():
            lines = "".join(json.dumps(record) + "\n" for record in kept)
            write_text(self.path / "metrics.jsonl", lines)
        forget_answers(self.path, step)

    @first_only
    def save_evaluation(self, step: int | str, values: np.ndarray) -> None:
        """Saves one array of `evaluations/`, such as the log-probs of one validation.

        Args:
            step: the step of the validation, or a name: `reference` or `lengths`.
            values: `[examples, N]`, in the order of the validation set.
        """
        name = step if isinstance(step, str) else f"{step:06d}"
        np.save(self.path / FOLDER / f"{name}.npy", values, allow_pickle=False)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of the validation responses, `[examples, N]`; the first validation saves them."""
        return np.load(self.path / FOLDER / "lengths.npy", allow_pickle=False)

    @first_only
    def finish(self, summary: dict[str, Any]) -> None:
        """Writes `summary.json`, which marks the run as finished."""
        write_json(self.path / "summary.json", summary)


def check_contents(run: Path, facts: dict[str, Any]) -> None:
    """Refuses a model, data or sizes of steps other than a run began with.

    A directory without a run passes. A finished run makes no more steps, so theirs do not matter.

    Args:
        run: the run's directory.
        facts: what `run.json` would hold now.

    Raises:
        UserError: a hash in `run.json` differs, or an earlier version made other steps.
    """
    before = read_part(run, "run.json") or facts
    if before.get("step_sizes") != EVEN_STEPS and read_part(run, "summary.json") is None:
        _check_step_sizes(run, before)
    for part, named, what in HASHES:
        # Runs of earlier versions do not record the hash of their adapter, and had no reference.
        if what not in before[part] or before[part][what] == facts[part][what]:
            continue
        name, first = facts[part][named], before[part][named]
        if name == first:
            raise UserError(f"{part}.{named}: {name} has changed since {run} began")
        raise UserError(f"{part}.{named}: {name} differs from {first}, with which {run} began")


def _check_step_sizes(run: Path, before: dict[str, Any]) -> None:
    """Refuses steps of an earlier version, of which the last of an epoch had the remainder."""
    batch_pairs = get(read_yaml(run / "config.yaml"), "train.batch_pairs")
    if before["data"]["train_rows"] % batch_pairs:
        raise UserError(
            f"output: {run} was begun by an earlier version, whose steps have other sizes; finish "
            "it with that version, or begin anew in another directory"
        )


def names_of(settings: dict[str, Any]) -> list[Any]:
    """The values of `NAMES` in the settings; None for a share of the rows, which is no name."""
    values = (get(settings, name) for name in NAMES)
    return [value if isinstance(value, str) else None for value in values]


def without_names(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those of `NAMES` that are names."""
    for name, value in zip(NAMES, names_of(settings), strict=True):
        settings = settings if value is None else without_value(settings, name)
    return settings


def identity(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide what a run computes; two runs are the same if these are equal."""
    computed = {name: value for name, value in settings.items() if name not in PLACEMENT}
    # Earlier versions did not know every setting of these sections; their runs had the defaults.
    for name, section in (
        ("model", ModelConfig()),
        ("data", DataConfig()),
        ("lora", LoraConfig()),
    ):
        if isinstance(computed.get(name), dict):
            defaults = section.model_dump(mode="json")
            computed = {**computed, name: {**defaults, **computed[name]}}
    if isinstance(computed.get("train"), dict):
        # No other settings of this section came later, and axes of a grid are not among them.
        later = TrainConfig().model_dump(include={"router", "router_aux"})
        computed = {**computed, "train": {**later, **computed["train"]}}
        if (get(computed, "train.mode"), get(computed, "train.router")) != ("full", "trained"):
            computed = without_value(computed, "train.router_aux")
    loss = LOSSES.get(str(get(computed, "loss.name")))
    if loss is not None:
        # A setting that the loss does not read does not count. Later versions may have more of
        # them, and of those that it reads: earlier runs had the defaults.
        groups = (["set"] if loss.source else []) + (["mix"] if is_mixture(loss.name) else [])
        read = {"name", *loss.settings, *groups}
        defaults = {name: setting.default for name, setting in loss.settings.items()}
        given = {**defaults, **computed["loss"]}
        own = {name: value for name, value in given.items() if name in read}
        computed = {**computed, "loss": own}
    # A user may name the default metric, and earlier versions stored its name. Both mean None.
    if get(computed, "train.best_metric") == DEFAULTS[0]:
        computed = with_value(computed, "train.best_metric", None)
    for name in IDLE:
        computed = without_value(computed, name)
    targets = get(computed, "lora.targets")
    return with_value(computed, "lora.targets", None) if _are_all(targets) else computed


def _are_all(targets: Any) -> bool:
    """Whether the targets are all linear layers: the default, which old runs list by name."""
    if not isinstance(targets, list):
        return False
    # This module imports JAX, and hardly any run needs it.
    from tddpo_jax.models.families import are_all_linear_layers

    return are_all_linear_layers(targets)


def differences(found: Any, wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """One text such as `train.epochs is 3, asked for 1` for every setting that differs.

    Args:
        found: the settings in a file.
        wanted: the settings of this command.
        prefix: the dotted name of the group that is compared, with a dot at its end.
    """
    if not isinstance(found, dict):
        return [f"{prefix.removesuffix('.') or 'config'} is not a mapping"]
    lines = []
    names = {*found, *wanted}
    if found.get("name") != wanted.get("name"):
        names = {*found} & {*wanted}  # two losses have different settings
    for name in sorted(names):
        there, here = found.get(name), wanted.get(name)
        if isinstance(here, dict):
            lines += differences(there, here, f"{prefix}{name}.")
        elif there != here:
            lines.append(f"{prefix}{name} is {there}, asked for {here}")
    return lines
