"""Checkpoints of a training run; the only place that knows orbax."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from kineticnet_jax.errors import IncompleteError, InputError
from kineticnet_jax.train.step import TrainState

KEPT = 2
"""Number of checkpoints kept; if the newest is damaged the one before it is there."""

ROOM = 4
"""Free space a checkpoint needs, in units of its arrays."""


class Checkpoints:
    """The checkpoints of a run in a folder, each complete or not there.

    Args:
        folder: where they are; made if it is missing.
    """

    def __init__(self, folder: Path):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT, create=True, enable_async_checkpointing=False
        )
        self.folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, state: TrainState) -> None:
        """Writes a state under the number of its step, if that is not there yet.

        Raises:
            IncompleteError: if it cannot be written, for instance to a full disk.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        needed = ROOM * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        try:
            if shutil.disk_usage(self.folder).free < needed:
                raise OSError("no space left on the disk")
            self._manager.save(step, args=ocp.args.StandardSave(state))
        except (ValueError, OSError) as error:
            raise IncompleteError(
                f"{self.folder}: step {step} could not be written ({_reason(error)}); what was "
                "written before is kept: make room and give the same command again"
            ) from None

    def latest(self, like: TrainState) -> TrainState | None:
        """The newest state, or None if there is none.

        Args:
            like: a state with the same arrays.

        Raises:
            InputError: if the newest checkpoint is damaged or that of another network.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        place = self.folder / str(step)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            state = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise InputError(
                f"{place}: damaged or of another network ({_reason(error)}); "
                "delete this folder to go on from the checkpoint before it"
            ) from None
        _check_shapes(place, state, like)
        return state

    def close(self) -> None:
        """Waits for everything to be written."""
        self._manager.close()


def _reason(error: Exception) -> str:
    """The end of an error's first line, where the system says what is wrong."""
    return str(error).strip().splitlines()[0][-100:]


def _check_shapes(place: Path, state: Any, like: Any) -> None:
    shapes = [jax.tree.map(np.shape, tree) for tree in (state, like)]
    if shapes[0] != shapes[1]:
        raise InputError(f"{place}: the checkpoint is that of another network")
