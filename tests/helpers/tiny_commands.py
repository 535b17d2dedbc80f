"""Runs commands on a tiny model in this process, with the options that a user would type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_runs
from last_options import last_of_each
from tiny_runs import Inputs

from tddpo_jax.__main__ import COMMANDS
from tddpo_jax.commands.exit_status import run_command


def run(verb: str, *arguments: Any) -> Any:
    """Runs a command in this process and returns its exit status.

    If an option occurs twice, a test's own value replaces the usual one before it. Only `train`'s
    `--data` is passed on as often as it is given.
    """
    words = [str(argument) for argument in arguments]
    try:
        return run_command(COMMANDS[verb], last_of_each(words, kept="--data"), resumes=True)
    except SystemExit as exit:  # argparse exits like this
        return exit.code


def training_options(
    inputs: Inputs, output: Path, steps: int = 1, data: Path | None = None
) -> tuple[Any, ...]:
    return (
        *("--model", inputs.model, "--data", data or inputs.train, "--data.row-length", 64),
        *("--data.validation", inputs.validation, "--train.batch-pairs", 5),
        *("--train.learning-rate", 1e-3, "--train.max-steps", steps, "--output", output),
        # With these settings, programs that other tests have compiled can be reused.
        *("--model.remat", "none", "--train.adam-eps", 1e-2),
        *("--train.sample-prompts", 0),
    )


def trained_run(inputs: Inputs, output: Path, *more: Any) -> Path:
    """Trains for two steps, with a validation after each, and returns the run's directory."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_runs.use_devices(patch, 1)
        each = ("--train.eval-every", 1)
        assert run("train", *training_options(inputs, output, steps=2), *each, *more) == 0
    return output
