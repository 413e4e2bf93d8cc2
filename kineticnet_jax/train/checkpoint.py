"""Checkpoints of a training run; the only place that knows orbax."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from kineticnet_jax.errors import InputError
from kineticnet_jax.train.step import TrainState

KEPT = 2
"""Number of checkpoints kept; if the newest is damaged the one before it is there."""


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
        """Writes a state under the number of its step, if that is not there yet."""
        step = int(state.step)
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state))

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
            reason = str(error).strip().splitlines()[0][:200]
            raise InputError(
                f"{place}: damaged or of another network ({reason}); "
                "delete this folder to go on from the checkpoint before it"
            ) from None
        _check_shapes(place, state, like)
        return state

    def close(self) -> None:
        """Waits for everything to be written."""
        self._manager.close()


def _check_shapes(place: Path, state: Any, like: Any) -> None:
    shapes = [jax.tree.map(np.shape, tree) for tree in (state, like)]
    if shapes[0] != shapes[1]:
        raise InputError(f"{place}: the checkpoint is that of another network")
