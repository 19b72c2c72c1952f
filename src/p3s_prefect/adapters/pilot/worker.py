"""The pilot as a Dask worker has it: one stage runner for the worker's process."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import tempfile
from collections.abc import Collection
from math import inf
from pathlib import Path
from threading import Lock

from distributed import get_worker

from p3s_prefect.adapters.buffer_leases import DaskLeases
from p3s_prefect.adapters.pilot.draining import Draining
from p3s_prefect.adapters.pilot.payload_process import PayloadProcesses
from p3s_prefect.adapters.pilot.stage_runner import StageRunner
from p3s_prefect.adapters.pilot.waiting_outputs import WaitingOutputs, waiting_root
from p3s_prefect.core.records import StageOrder, StageReport, WaitingTold

_runner: StageRunner | None = None
_waiting: dict[Path, WaitingOutputs] = {}
_lock = Lock()


def run_stage(order: StageOrder) -> StageReport:
    """What is submitted to Dask."""
    return stage_runner().run(order)


def stop_attempt(attempt_id: int) -> bool:
    """Kills an attempt; False if it does not run in this worker."""
    return _runner is not None and _runner.stop(attempt_id)


def stop_all() -> int:
    """Kills whatever attempts run in this worker; returns how many have not ended yet."""
    running = [] if _runner is None else _runner.running()
    for attempt_id in running:
        stop_attempt(attempt_id)
    return len(running)


def count_running() -> int:
    """How many attempts run in this worker."""
    return 0 if _runner is None else len(_runner.running())


def drain(directory: str | None) -> None:
    """From now on what waits in this place of the machine is taken to its stores; None for the usual one."""
    _drained(directory)


def waiting_told(directory: str | None, store_url: str) -> WaitingTold:
    """What waits for a store on this machine."""
    return _drained(directory).told(store_url)


async def drop_waiting(directory: str | None, store_url: str, prefixes: Collection[str]) -> int:
    """Removes what waits of attempts that matter no more; returns of how many executions.

    To remove thousands takes seconds, in which this worker hears what else it is asked.
    """
    return await asyncio.to_thread(_drained(directory).drop, store_url, prefixes)


def buffer_quiet_s() -> float:
    """How long no attempt in this worker has waited for the online buffer, or read it."""
    return inf if _runner is None else _runner.buffer_quiet_s()


def stage_runner(modules: tuple[str, ...] = (), scratch: Path | None = None) -> StageRunner:
    """This process's stage runner; the first call makes it, with a payload process that has imported `modules`.

    It works below `scratch`; without one, below that of the Dask worker whose task this is.
    """
    global _runner
    with _lock:
        if _runner is None:
            processes = PayloadProcesses(modules)
            processes.warm()
            pilot = f"{os.uname().nodename}:{os.getpid()}"
            _runner = StageRunner(processes, scratch or _scratch(), pilot=pilot, leases=DaskLeases())
        return _runner


def _drained(directory: str | None) -> WaitingOutputs:
    root = waiting_root(directory)
    with _lock:
        if root not in _waiting:
            _waiting[root] = WaitingOutputs(root)
            Draining(_waiting[root]).begin()
        return _waiting[root]


def _scratch() -> Path:
    try:
        return Path(get_worker().local_directory)
    except ValueError:
        return _temporary_directory()


def _temporary_directory() -> Path:
    """Removed when the process ends, unless it is killed."""
    found = Path(tempfile.mkdtemp(prefix="p3s-pilot-"))
    atexit.register(shutil.rmtree, found, ignore_errors=True)
    return found


def leave() -> None:
    """Ends this process at once: the last resort against a stage that cannot be killed."""
    os._exit(1)
