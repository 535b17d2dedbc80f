"""The last training states on disk, by Orbax, for resuming bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from tddpo_jax.errors import UserError
from tddpo_jax.placement.shardings import path_name
from tddpo_jax.system.agreement import agree, several


class Checkpoints:
    """The two newest states of a run, saved in the background; by several hosts in the foreground.

    Orbax's background saves of several hosts wait for each other by name, so those of the members
    of a population would meet each other; and where one host could not write, the others wait for
    it for twenty minutes.

    Two, because the members of a population save one after another: when they are interrupted in
    between, the older state is the one that all of them have.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=not several()
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def steps(self) -> set[int]:
        """Numbers of optimiser steps of the whole checkpoints."""
        return set(self._manager.all_steps())

    def forget_after(self, step: int) -> None:
        """Deletes the states after `step`, which another member of the population lacks."""
        for later in sorted(self.steps()):
            if later > step:
                self._manager.delete(later)

    def save(self, step: int, state: Any) -> None:
        """Saves a tree of arrays, the state after `step` steps, or starts to; they may be donated.

        Args:
            step: optimiser steps so far.
            state: the arrays.
        """
        self._manager.save(step, args=ocp.args.StandardSave(_by_name(state)))

    def restore(self, step: int, like: Any) -> Any:
        """The saved state, with the structure of `like`, its shapes, dtypes and shardings.

        Args:
            step: one of `steps`.
            like: a tree of `jax.ShapeDtypeStruct`.

        Raises:
            UserError: the checkpoint is damaged, or holds other arrays than `like`.
        """
        try:
            restored = self._manager.restore(step, args=ocp.args.StandardRestore(_by_name(like)))
        except Exception as error:  # whatever Orbax makes of it
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"{self.folder / str(step)}: cannot be read ({reason}); without this folder the "
                "same command goes on from the state before, or else begins anew"
            ) from None
        return jax.tree_util.tree_map_with_path(lambda path, _: restored[path_name(path)], like)

    def close(self) -> None:
        """Waits until the last save is whole."""
        self._manager.wait_until_finished()
        self._manager.close()


def saved_steps(folder: Path) -> set[int]:
    """The steps whose whole states a folder of checkpoints holds; opens and makes nothing."""
    return {int(path.name) for path in folder.glob("*") if path.name.isdecimal()}


def common_step(checkpoints: Sequence[Checkpoints]) -> int:
    """The newest step that every member of a population has saved; 0 if there is none."""
    step = agree(lambda: max(set.intersection(*(m.steps() for m in checkpoints)), default=0))
    for member in checkpoints:
        member.forget_after(step)
    return step


def _by_name(state: Any) -> dict[str, Any]:
    """A flat mapping: the checkpoint then outlives changes of the classes that held the arrays."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
