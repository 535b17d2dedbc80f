"""Commands on a tiny model, as a user types them, in this process."""

from __future__ import annotations

import pytest
import tiny_runs

from tddpo_jax.__main__ import COMMANDS
from tddpo_jax.commands.exit_status import run_command


def run(verb, *arguments):
    """The exit status of a command, run in this process."""
    try:
        return run_command(COMMANDS[verb], [str(argument) for argument in arguments])
    except SystemExit as exit:  # argparse's way to end
        return exit.code


def training_options(inputs, output, steps=1, data=None):
    return (
        *("--model", inputs.model, "--data", data or inputs.train, "--data.row-length", 64),
        *("--data.validation", inputs.validation, "--train.batch-pairs", 5),
        *("--train.learning-rate", 1e-3, "--train.max-steps", steps, "--output", output),
        # Not the defaults, for programs that other tests have compiled.
        *("--model.remat", "none", "--train.adam-eps", 1e-2),
    )


def trained_run(inputs, output, *more):
    """The directory of a run of two steps."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_runs.use_devices(patch, 1)
        assert run("train", *training_options(inputs, output, steps=2), *more) == 0
    return output
