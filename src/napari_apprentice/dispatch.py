"""The cases of a project, done by several processes at once: on this machine, or on a Dask cluster that is there already.

Both ways do nothing but call `casework.run_case` for every case somewhere. The state of the cases is in the project's folder, which every
machine of a cluster has to see at the same place; whatever dies on the way, the cases that are done stay done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from napari_apprentice.casework import Outcome, Plan, run_case
from napari_apprentice.computers import processes
from napari_apprentice.types import ApprenticeError, InputError, SessionError

__all__ = ["PATIENCE_S", "on_cluster", "on_this_machine"]

PATIENCE_S = 30.0
"""So long a cluster may have no worker, or not be reached, before it counts as gone."""

_LOOK_S = 0.5


def on_this_machine(folder: Path, names: Sequence[str], plan: Plan, *, jobs: int = 1) -> Iterator[Outcome]:
    """Do cases; yields what became of each as soon as it is known.

    Parameters
    ----------
    jobs : number of processes; 1 does them in this one

    Raises
    ------
    SessionError : one of the processes died
    ApprenticeError : as `casework.run_case`
    """
    if jobs < 1:
        raise InputError(f"{jobs} jobs arrived; expected at least one")
    if jobs == 1 or len(names) < 2:
        yield from (run_case(folder, name, plan) for name in names)
        return
    with processes(min(jobs, len(names))) as pool:  # what they are in the middle of when it ends is begun anew by the next run
        pending: set[Future[Outcome]] = {pool.submit(run_case, folder, name, plan) for name in names}
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


def on_cluster(folder: Path, names: Sequence[str], plan: Plan, address: str, *, patience_s: float = PATIENCE_S) -> Iterator[Outcome]:
    """Do cases on the workers of a Dask cluster; yields what became of each as soon as it is known.

    Parameters
    ----------
    folder : of the project, at the same place on all machines
    address : of the scheduler, such as "tcp://10.0.0.1:8786"
    patience_s : see `PATIENCE_S`

    Raises
    ------
    SessionError : dask.distributed is not installed here, or the cluster cannot be reached, has no workers, or goes away
    ApprenticeError : as `casework.run_case`, from a worker
    """
    try:
        from distributed import Client
        from distributed.comm import get_address_host_port
    except ImportError as error:
        raise SessionError(
            f"a cluster at {address} was asked for, but dask.distributed is not installed; expected pip install '.[cluster]'"
        ) from error
    try:
        get_address_host_port(address)  # here, as a client that finds out is neither made nor closed, and waits for that
        client = Client(address, timeout=min(patience_s, 10.0), set_as_default=False, name="apprentice")
    except (OSError, ValueError) as error:
        raise SessionError(
            f"the Dask cluster at {address} cannot be reached ({_short(error)}); expected the address of a scheduler that runs"
        ) from error
    try:
        futures = {name: client.submit(run_case, folder, name, plan, pure=False) for name in names}
        yield from _results(client, futures, address, patience_s)
    finally:
        _leave(client)


def _results(client: Any, futures: dict[str, Any], address: str, patience_s: float) -> Iterator[Outcome]:
    """What comes back, until everything has, or nothing can come any more."""
    heard = time.monotonic()
    while futures:
        done = [name for name, future in futures.items() if future.done()]
        for name in done:
            future = futures.pop(name)
            if future.cancelled() or future.status == "lost":
                raise _gone(address, "it lost its cases")
            if (error := future.exception(timeout=10)) is not None:
                raise _from_worker(name, error)
            yield future.result(timeout=10)
        if done or _works(client):
            heard = time.monotonic()
        if futures and time.monotonic() - heard > patience_s:
            raise _gone(address, "it has no workers" if client.status == "running" else "it does not answer")
        if futures and not done:
            time.sleep(_LOOK_S)


def _works(client: Any) -> bool:
    """Whether the scheduler answers and has workers."""
    with suppress(Exception):
        return client.status == "running" and bool(client.scheduler_info()["workers"])
    return False


def _gone(address: str, why: str) -> SessionError:
    return SessionError(
        f"the Dask cluster at {address} went away ({why}); what is done stays done, expected the same command again for the others"
    )


def _from_worker(name: str, error: BaseException) -> ApprenticeError:
    """What a worker raised, in a sentence."""
    if isinstance(error, ApprenticeError):
        return SessionError(f"a worker of the cluster could not begin with case {name!r}: {error}")
    return SessionError(
        f"a worker of the cluster failed with case {name!r} ({type(error).__name__}: {_short(error)}); "
        f"expected napari-apprentice of the same version on all machines, and workers that live"
    )


def _leave(client: Any) -> None:
    """Close a client, also of a cluster that is gone."""
    with suppress(Exception):
        client.close(timeout=2)


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". ")
