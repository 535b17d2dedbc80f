"""Whether a run may go on for more epochs than it was first asked for.

It may if its steps so far are those of the longer run, to the last bit. The pairs of a step depend
on the seed and the step alone. What may differ is the learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tddpo_jax.config.dotted import get, without_value
from tddpo_jax.config.schema import Config, TrainConfig
from tddpo_jax.errors import UserError

# The longer run may have another share of warm-up, so that it has as many steps of it.
LENGTH = ("train.epochs", "train.warmup_ratio")


def is_longer(there: dict[str, Any], here: dict[str, Any]) -> bool:
    """Whether settings differ from those of a run or grid by asking for more epochs.

    Args:
        there: the settings of the run.
        here: the settings of this command.
    """
    before, now = (get(settings, "train.epochs") for settings in (there, here))
    # With a number of steps, the epochs do not count.
    if get(here, "train.max_steps") is not None or not isinstance(before, int) or before >= now:
        return False
    for name in LENGTH:
        there, here = without_value(there, name), without_value(here, name)
    return there == here


def steps_before(
    run: Path, config: Config, earlier: Mapping[str, Any], examples: int, state: str | None
) -> int:
    """The steps that a run was first asked for, if it may go on for more epochs.

    Args:
        run: the run's directory.
        config: the settings of this command.
        earlier: the section `train` of the run's settings.
        examples: the number of training examples.
        state: how the run ended; None if it has not.

    Raises:
        UserError: it may not go on; the message says why.
    """
    asked, before = config.train, TrainConfig.model_validate(earlier)
    steps, steps_now = before.steps(examples), asked.steps(examples)
    warmup, warmup_now = before.warmup_steps(steps), asked.warmup_steps(steps_now)
    why = None
    if state == "diverged":
        why = "it has diverged"
    elif asked.schedule != "constant":
        why = f"the rates of its {asked.schedule} schedule depend on the number of epochs"
    elif warmup != warmup_now:
        why = (
            f"its warm-up had {warmup} steps and would have {warmup_now}; "
            f"--train.warmup-ratio {warmup / steps_now:.6g} keeps it"
        )
    if why is not None:
        raise UserError(
            f"train.epochs: {run} has {before.epochs} and cannot go on to {asked.epochs}: {why}"
        )
    return steps
