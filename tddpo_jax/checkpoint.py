"""The last training state on disk, by Orbax, for resuming bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from tddpo_jax.sharding import path_name


class Checkpoints:
    """The newest state of a run, saved in the background; the older goes when it is whole."""

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def latest_step(self) -> int | None:
        """Number of optimiser steps in the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Starts to save the state after `step` steps; its arrays may be donated at once."""
        if step != self.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(_by_name(state)))

    def restore(self, step: int, like: Any) -> Any:
        """The saved state, with the structure, dtypes and shardings of `like`.

        Raises:
            ValueError: the checkpoint holds other arrays than `like`.
        """
        restored = self._manager.restore(
            step, args=ocp.args.StandardRestore(jax.tree.map(_abstract, _by_name(like)))
        )
        return jax.tree_util.tree_map_with_path(lambda path, _: restored[path_name(path)], like)

    def close(self) -> None:
        """Waits until the last save is whole."""
        self._manager.wait_until_finished()
        self._manager.close()


def _by_name(state: Any) -> dict[str, jax.Array]:
    """A flat mapping: the checkpoint then outlives changes of the classes that held the arrays."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
