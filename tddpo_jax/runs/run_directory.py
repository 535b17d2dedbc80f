"""The files of a run, and what may be done with a directory that is already there.

config.yaml     the run, fully resolved
run.json        versions, commit, device, hashes, row counts
metrics.jsonl   a line per step and per validation
evaluations/    log-probs of each validation response, per validation; the reference's; lengths
tensorboard/    the same metrics as event files
checkpoints/    the last training state (Orbax)
best/           the best policy: a Hugging Face folder, or a PEFT folder after LoRA
summary.json    written last: the run is over
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from tddpo_jax.config.dotted import get, with_value, without_value
from tddpo_jax.config.schema import Config, DataConfig, read_yaml
from tddpo_jax.errors import UserError
from tddpo_jax.losses.catalogue import LOSSES
from tddpo_jax.runs.records import DEFAULTS, read_records
from tddpo_jax.system.agreement import agree, first_only
from tddpo_jax.system.atomic import PARTIAL, recover, write_text
from tddpo_jax.system.json_files import Content, read_as

# See `locks.py` and `commands/submit.py`.
LOCK_FILE = "claim.lock"
JOBS_FOLDER = "jobs"
# Sections that say where a run is computed, not what: it may resume on other devices. Nor does
# `train.population` say what: a run may go on in other company.
PLACEMENT = ("mesh", "hosts")


def is_free(path: Path) -> bool:
    """Whether a directory lacks any file of a run or a grid, or of somebody else."""
    if not path.exists():
        return True
    names = (file.name for file in path.iterdir())
    # Another process may be about to begin the run. A folder that a kill left renamed away is not
    # free: it may be the only copy of a policy.
    return all(name in (LOCK_FILE, JOBS_FOLDER) or name.endswith(PARTIAL) for name in names)


def check_output(path: Path) -> None:
    """Raises UserError unless the path is a directory to write to, or one can be made there."""
    nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"output: {path}: {nearest} is no directory that can be written to")


class _Model(Content):
    path: str
    sha256: str
    adapter_sha256: str | None = None
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


# What is read again of the JSON files of a run.
PARTS: dict[str, type[Content]] = {
    "run.json": _Facts,
    "divergence.json": _Divergence,
    "summary.json": _Summary,
}


def read_part(run: Path, name: str) -> dict[str, Any] | None:
    """What one of the files of `PARTS` says, or None if there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    file = run / name
    return read_as(file, PARTS[name]).model_dump(exclude_unset=True) if file.exists() else None


class RunDirectory:
    """One run's files. Nothing is written before `create`, and by the first host alone."""

    def __init__(self, path: Path, config: Config) -> None:
        """Looks at the directory.

        Raises:
            UserError: it holds a run of another configuration, or something that is no run.
        """
        self.path = path
        self.config = config
        self._resolved = config.model_dump(mode="json", exclude={"output", "hosts"})
        check_output(path)
        if is_free(path):
            return
        stored = path / "config.yaml"
        if not stored.exists():
            raise UserError(f"output: {path} exists and holds no run")
        found = read_yaml(stored)
        there, here = identity(found), identity(self._resolved)
        if there != here:
            raise UserError(
                f"output: {path} holds a run of another configuration: "
                f"{', '.join(differences(there, here))}"
            )

    @property
    def summary(self) -> dict[str, Any] | None:
        """What a finished run came to, or None."""
        return read_part(self.path, "summary.json")

    def create(self, facts: dict[str, Any]) -> None:
        """Makes the directory with its configuration and `run.json`.

        Raises:
            UserError: the run began with other weights or data, under the same names; or this
                host does not see what the first one wrote.
        """
        agree(lambda: self._create(facts))
        if not (self.path / "run.json").exists():
            raise UserError(f"output: {self.path} is on no file system that all hosts share")

    def _create(self, facts: dict[str, Any]) -> None:
        self._check_contents(facts)
        self.path.mkdir(parents=True, exist_ok=True)
        recover(self.path / "best")
        text = yaml.safe_dump(self._resolved, sort_keys=False)
        write_text(self.path / "config.yaml", text)
        write_text(self.path / "run.json", json.dumps(facts, indent=2) + "\n")
        (self.path / "evaluations").mkdir(exist_ok=True)

    def _check_contents(self, facts: dict[str, Any]) -> None:
        before = read_part(self.path, "run.json") or facts
        for part, what in (("model", "sha256"), ("model", "adapter_sha256"), ("data", "sha256")):
            # Runs of earlier versions do not name their adapter.
            if what in before[part] and before[part][what] != facts[part][what]:
                raise UserError(
                    f"{part}.path: {facts[part]['path']} has changed since {self.path} began"
                )

    @first_only
    def log(self, record: dict[str, Any]) -> None:
        """Appends a line to `metrics.jsonl`, on disk when this returns."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        return read_records(self.path / "metrics.jsonl")

    @property
    def divergence(self) -> dict[str, Any] | None:
        """Where and why the run diverged, or None."""
        return read_part(self.path, "divergence.json")

    @first_only
    def diverge(self, facts: dict[str, Any]) -> None:
        write_text(self.path / "divergence.json", json.dumps(facts, indent=2) + "\n")

    @first_only
    def rewind(self, step: int) -> None:
        """Forgets what came after `step` optimiser steps: training of it or later, later tests.

        Nothing came before step 0: a run without a checkpoint begins anew.
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

    @first_only
    def save_evaluation(self, step: int | str, values: np.ndarray) -> None:
        """Log-probs `[examples, N]` of the validation set, in its order, or what goes beside."""
        name = step if isinstance(step, str) else f"{step:06d}"
        np.save(self.path / "evaluations" / f"{name}.npy", values, allow_pickle=False)

    @first_only
    def finish(self, summary: dict[str, Any]) -> None:
        write_text(self.path / "summary.json", json.dumps(summary, indent=2) + "\n")


def identity(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that say what a run computes; with another of them it is another run."""
    computed = {name: value for name, value in settings.items() if name not in PLACEMENT}
    # Earlier versions did not know every setting of the data; their runs had each at its default.
    if isinstance(computed.get("data"), dict):
        defaults = DataConfig().model_dump(mode="json")
        computed = {**computed, "data": {**defaults, **computed["data"]}}
    loss = LOSSES.get(str(get(computed, "loss.name")))
    if loss is not None:
        # What a loss does not read is not part of its run: a later version may know more settings.
        read = {"name", *loss.settings}
        own = {name: value for name, value in computed["loss"].items() if name in read}
        computed = {**computed, "loss": own}
    # The default metric may be asked for by its name; earlier versions stored that name.
    if get(computed, "train.best_metric") == DEFAULTS[0]:
        computed = with_value(computed, "train.best_metric", None)
    computed = without_value(computed, "train.population")
    targets = get(computed, "lora.targets")
    return with_value(computed, "lora.targets", None) if _are_all(targets) else computed


def _are_all(targets: Any) -> bool:
    """Whether adapters get what is the default too: all linear layers, which old runs list."""
    if not isinstance(targets, list):
        return False
    # Here, for it imports JAX, and hardly any run needs it.
    from tddpo_jax.models.families import are_all_linear_layers

    return are_all_linear_layers(targets)


def differences(found: Any, wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """`train.epochs is 3, asked for 1` for every setting that differs."""
    if not isinstance(found, dict):
        return [f"{prefix or 'config'} is no mapping"]
    lines = []
    names = {*found, *wanted}
    if found.get("name") != wanted.get("name"):
        names = {*found} & {*wanted}  # another loss, with other settings
    for name in sorted(names):
        there, here = found.get(name), wanted.get(name)
        if isinstance(here, dict):
            lines += differences(there, here, f"{prefix}{name}.")
        elif there != here:
            lines.append(f"{prefix}{name} is {there}, asked for {here}")
    return lines
