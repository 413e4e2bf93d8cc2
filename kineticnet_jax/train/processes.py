"""A training on several devices and by several processes: who computes and who writes what.

All processes draw the same random numbers. Each reads the geometries of its own devices, and only
the first one writes files. In one process everything here does nothing.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kineticnet_jax.errors import IncompleteError, InputError

AXIS = "geometries"
"""Axis of the device mesh over which the geometries of a group are spread."""

LAUNCHERS = {
    "JAX_NUM_PROCESSES": "JAX_PROCESS_ID",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",
}
"""Environment variables with the number of processes and that of this one, as a user, Open MPI or
SLURM's `srun` set them. Those of a SLURM job that `srun` did not start are not among them."""

GOODBYE = 60
"""Seconds a process that ends waits for the others: longer than writing figures takes."""


def join() -> None:
    """Meets the other processes, if the environment says that there are any; before JAX starts.

    Raises:
        InputError: if the environment does not say where the first process is.
    """
    for count, number in LAUNCHERS.items():
        if os.environ.get(count, "1") == "1":
            continue
        try:
            jax.distributed.initialize(
                num_processes=int(os.environ[count]),
                process_id=int(os.environ[number]),
                shutdown_timeout_seconds=GOODBYE,
            )
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{count} is {os.environ[count]}, but the processes do not find each other "
                f"({error}): set {number}, and JAX_COORDINATOR_ADDRESS to HOST:PORT of the first "
                "one"
            ) from None
        return


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def on_first(function: Callable[[], Any]) -> bool:
    """Calls a function in the first process; the others wait until it is done.

    Args:
        function: what is to be done once.

    Returns:
        Whether its result is true, in all processes.

    Raises:
        IncompleteError: in the other processes, if it raised an error in the first one.
    """
    result, error = False, None
    if is_first():
        try:
            result = bool(function())
        except Exception as raised:  # Whatever it is, the others must not wait forever.
            error = raised
    result, failed = multihost_utils.broadcast_one_to_all((result, error is not None))
    if error is not None:
        raise error
    if failed:
        raise IncompleteError("the first process has stopped, and says why")
    return bool(result)


def share(count: int) -> slice:
    """Those of so many things that this process cares for: as many as any other, if that goes."""
    first, processes = jax.process_index(), jax.process_count()
    return slice(first * count // processes, (first + 1) * count // processes)


def total(values: np.ndarray) -> np.ndarray:
    """The sum of an array over all processes, which all must ask for it."""
    return multihost_utils.process_allgather(values).sum(axis=0)


def device_mesh(devices: int) -> Mesh | None:
    """The devices of all processes, one process after the other; None if there is one device.

    Args:
        devices: of each process.

    Raises:
        InputError: if a process has fewer.
    """
    local = [jax.local_devices(process) for process in range(jax.process_count())]
    available = min(map(len, local))
    if not 1 <= devices <= available:
        raise InputError(f"devices must be 1 to {available}, but is {devices}")
    chosen = np.array([device for some in local for device in some[:devices]])
    return Mesh(chosen, (AXIS,)) if len(chosen) > 1 else None


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Arrays that all processes have, on all devices."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec()), tree)


def spread(group: Any, mesh: Mesh) -> Any:
    """A group on all devices, made of the geometries of each process.

    Args:
        group: the share of this process, with the method `map_axes` of `Group`.
        mesh: from `device_mesh`.
    """
    shared, batched = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))
    return jax.make_array_from_process_local_data(group.map_axes(shared, batched), group)


def local(tree: Any) -> Any:
    """Replicated arrays on one device of this process, to compute with them alone."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
