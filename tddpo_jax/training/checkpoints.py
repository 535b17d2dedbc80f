"""Saves the last training states with Orbax, so that a run resumes bit for bit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from tddpo_jax.errors import UserError
from tddpo_jax.placement.shardings import path_name
from tddpo_jax.system.agreement import agree, several


class Checkpoints:
    """The two newest states of a run.

    A lone host saves them in the background. Several hosts save them in the foreground, for two
    reasons. Orbax's background saves wait for each other by name, so the saves of a population's
    members would be mixed up. And if one host could not write, the others would wait for it for
    twenty minutes.

    There are two states because the members of a population save one after another. If they are
    interrupted in between, only the older state exists for all of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=not several()
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def steps(self) -> set[int]:
        """The steps after which whole checkpoints were saved."""
        return set(self._manager.all_steps())

    def forget_after(self, step: int) -> None:
        """Deletes the states after `step`, because another member of the population lacks them."""
        for later in sorted(self.steps()):
            if later > step:
                self._manager.delete(later)

    def save(self, step: int, state: Any) -> None:
        """Saves a state, or starts to; the arrays may be donated when this returns.

        Args:
            step: optimiser steps so far.
            state: a tree of arrays.
        """
        self._manager.save(step, args=ocp.args.StandardSave(_by_name(state)))

    def restore(self, step: int, like: Any) -> Any:
        """Reads a saved state with the structure, shapes, dtypes and shardings of `like`.

        Args:
            step: one of `steps()`.
            like: a tree of `jax.ShapeDtypeStruct`.

        Raises:
            UserError: the checkpoint is damaged, or its arrays are not those of `like`.
        """
        try:
            restored = self._manager.restore(step, args=ocp.args.StandardRestore(_by_name(like)))
        except Exception as error:  # Orbax raises many kinds for a damaged file
            raise UserError(
                f"{self.folder / str(step)}: cannot be read ({_reason(error)}); delete this "
                "folder, and the same command resumes from the previous checkpoint or begins anew"
            ) from None
        return jax.tree_util.tree_map_with_path(lambda path, _: restored[path_name(path)], like)

    def close(self) -> None:
        """Waits until the last save is complete, and closes Orbax's manager."""
        self._manager.wait_until_finished()
        self._manager.close()


# Every question of several hosts costs a message to all of them, and the device waits for it.
STEPS_BETWEEN_QUESTIONS = 10


class SaveClock:
    """Tells when a state is due between validations, which save theirs."""

    def __init__(self, minutes: float | None) -> None:
        """Starts the clock; without minutes nothing is ever due."""
        self.minutes = minutes
        self.start()

    def start(self) -> None:
        """Notes that a state has been saved now."""
        self._began = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether the minutes have passed; every host must ask, and all get the same answer.

        Args:
            step: optimiser steps so far. Several hosts only ask each other after every tenth.
        """
        if self.minutes is None or (several() and step % STEPS_BETWEEN_QUESTIONS):
            return False
        seconds = 60 * self.minutes
        return agree(lambda: time.monotonic() - self._began >= seconds)


def read_policy(folder: Path, step: int, like: Any) -> Any:
    """Reads the trained parameters of a saved state, and not the optimiser's.

    Args:
        folder: a folder of checkpoints, which stays as it is.
        step: one of `saved_steps(folder)`.
        like: the parameters as `jax.ShapeDtypeStruct`.

    Raises:
        UserError: the checkpoint is damaged, or its arrays are not those of `like`.
    """
    wanted = _by_name({"trainable": like})
    places = ocp.checkpoint_utils.construct_restore_args(wanted)
    args = ocp.args.PyTreeRestore(wanted, restore_args=places, partial_restore=True)
    options = ocp.CheckpointManagerOptions(create=False)
    try:
        with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
            restored = manager.restore(step, args=args)
    except Exception as error:  # Orbax raises many kinds for a damaged file
        raise UserError(f"{folder / str(step)}: cannot be read ({_reason(error)})") from None
    parts = jax.tree_util.tree_map_with_path(
        lambda path, _: restored[path_name(path)], {"trainable": like}
    )
    return parts["trainable"]


def saved_steps(folder: Path) -> set[int]:
    """The steps of the whole states in a folder of checkpoints; only names are read."""
    return {int(path.name) for path in folder.glob("*") if path.name.isdecimal()}


def common_step(checkpoints: Sequence[Checkpoints]) -> int:
    """The newest step that every member of a population has saved; 0 if there is none.

    Later states of single members are deleted.
    """
    step = agree(lambda: max(set.intersection(*(m.steps() for m in checkpoints)), default=0))
    for member in checkpoints:
        member.forget_after(step)
    return step


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _by_name(state: Any) -> dict[str, Any]:
    """The arrays in a flat mapping, which can be read even if the classes around them change."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
