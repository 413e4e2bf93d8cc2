"""Many tasks on many processes, of this machine or of a running dask cluster."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from kineticnet_jax.errors import IncompleteError, InputError, first_line

if TYPE_CHECKING:
    from distributed import Client

TASKS_PER_WORKER = 3
"""Tasks handed to a worker in advance, so that it never waits."""

WORKER_TIMEOUT = 120.0
"""Seconds to wait for the first worker of a cluster."""

MAPPINGS = Path("/proc/self/maps")
"""Memory mappings of this process, a line each; on Linux only."""

MOST_MAPPINGS = 20_000
"""Far from the 65,530 a process may have: beyond, compilation ends the process."""

# Freed memory stays with a worker: handing arrays of some megabytes back to the system after each
# use, as dask's own setting does, costs a third of the time.
_WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(1 << 26),
    "MALLOC_MMAP_MAX_": "0",
    # Workers import the program that runs, and with it perhaps a package that shows all messages.
    "DASK_LOGGING__DISTRIBUTED": "critical",
}


def drop_programs_if_many() -> None:
    """Forgets compiled programs when there are many; each large one takes thousands of mappings."""
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


class WorkerError(RuntimeError):
    """A task failed in a worker, or the worker died."""


def results(
    client: "Client", function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]
) -> Iterator[Any]:
    """What a function makes of each task, in the order in which they are finished.

    Args:
        client: from `connect`.
        function: of the module of a package, so that workers find it.
        tasks: its arguments.

    Raises:
        WorkerError: in one line, for whatever the function raised or the death of a worker.
    """
    from distributed import as_completed

    waiting = iter(tasks)

    def submit(count: int) -> list:
        return [client.submit(function, *task, pure=False) for task in islice(waiting, count)]

    futures = as_completed(submit(TASKS_PER_WORKER * max(1, len(client.ncores()))))
    for future in futures:
        try:
            result = future.result()
        except Exception as error:  # Whatever a worker raised, or its death.
            name = type(error).__name__
            raise WorkerError(f"a worker failed ({name}: {first_line(error)})") from error
        future.release()
        yield result
        for extra in submit(1):
            futures.add(extra)


def check_workers(workers: int | None) -> None:
    """Checks a number of workers before anything is written.

    Raises:
        InputError: for less than one.
    """
    if workers is not None and workers < 1:
        raise InputError(f"the number of workers must be at least 1, but is {workers}")


@contextmanager
def connect(workers: int | None, scheduler: str | None) -> Iterator["Client"]:
    """A dask client of local processes, or of a running scheduler.

    Args:
        workers: number of local processes, each on one thread; by default one for each processor.
        scheduler: address of a running dask scheduler, whose workers are used instead.

    Raises:
        InputError: if no scheduler answers.
        IncompleteError: if no worker appears.
    """
    # Dask takes most of a second to import, which nothing else needs.
    import dask
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=10)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(f"no dask scheduler answers at {scheduler} ({error})") from None
        with client:
            _prepare_workers(client, 1)
            yield client
        return
    count = workers or os.cpu_count() or 1
    with dask.config.set({"distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT}):
        cluster = LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        )
        client = Client(cluster)
        try:
            _prepare_workers(client, count)
            yield client
        finally:
            # Dask may raise when it closes while a worker that died is being started again, and
            # that would hide why the run ends.
            for part in (client, cluster):
                with suppress(Exception):
                    part.close()


def _prepare_workers(client: "Client", count: int) -> None:
    client.register_worker_callbacks(
        partial(_use_one_thread, jax.config.values["jax_compilation_cache_dir"])
    )
    try:
        client.wait_for_workers(count, timeout=WORKER_TIMEOUT)
    except TimeoutError:
        raise IncompleteError(
            f"no dask worker appeared within {WORKER_TIMEOUT:.0f} s; start workers and try again"
        ) from None


def _use_one_thread(cache: str | None) -> None:
    """Makes a worker compute on one thread, before it computes anything.

    The sums of a program on several threads depend on their number; and as many workers as
    processors are faster than threads.
    """
    flag = "--xla_cpu_multi_thread_eigen=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    os.environ["PJRT_NPROC"] = "1"
    jax.config.update("jax_platforms", "cpu")
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
