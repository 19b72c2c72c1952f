"""A warm process that runs payloads and can be killed with everything that they have started."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from threading import Lock

import psutil
from pebble import ProcessExpired, ProcessPool

from p3s_prefect.adapters.pilot import step
from p3s_prefect.core.errors import PayloadFailed, PayloadTimeout


class PayloadProcess:
    """One process, kept warm between steps and replaced when it dies."""

    def __init__(self, modules: tuple[str, ...] = ()) -> None:
        self._pool = ProcessPool(
            max_workers=1,
            # A forked child would inherit the pilot's threads' locks in whatever state they are.
            context=multiprocessing.get_context("spawn"),
            initializer=_initialize,
            initargs=[modules],
        )
        self._pid: int | None = None

    def run(self, call: step.StepCall, timeout_s: float) -> str:
        """Runs a step and returns what went wrong, if anything.

        Raises:
            PayloadTimeout: it was killed after `timeout_s`.
            PayloadFailed: the process died, by its payload's doing or by `kill`.
        """
        if self._pid is None:
            self._pid = self._pool.schedule(os.getpid).result()
        future = self._pool.schedule(step.execute, args=[call])
        try:
            return str(future.result(timeout=timeout_s))
        except FutureTimeout:
            self.kill()
            with contextlib.suppress(ProcessExpired):
                future.result()
            raise PayloadTimeout(
                f"step {call.step.name} was killed after its {timeout_s:g} s",
                fix="Raise its timeout_s, or look into its log for what it waited for.",
            ) from None
        except ProcessExpired as error:
            self._pid = None
            raise PayloadFailed(
                f"step {call.step.name} ended its process ({_cause(error)})", fix="See its log."
            ) from error

    def kill(self) -> None:
        """Kills what runs in it, in native code too, with all that it has started."""
        pid, self._pid = self._pid, None
        if pid is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            # Children first: once their reaper is gone, nobody knows whose they are.
            process.suspend()
            for child in process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()

    def close(self) -> None:
        """Ends the process."""
        self.kill()
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()


class PayloadProcesses:
    """The payload processes of one pilot: as many as it has stages running at once, kept for the next."""

    def __init__(self, modules: tuple[str, ...] = ()) -> None:
        self._modules = modules
        self._idle: list[PayloadProcess] = []
        self._lock = Lock()

    def warm(self) -> None:
        """Starts a process now, so that the first stage does not wait for its imports."""
        with self._lock:
            self._idle.append(PayloadProcess(self._modules))

    @contextlib.contextmanager
    def borrow(self) -> Iterator[PayloadProcess]:
        """A process that nobody else uses meanwhile."""
        with self._lock:
            process = self._idle.pop() if self._idle else PayloadProcess(self._modules)
        try:
            yield process
        finally:
            with self._lock:
                self._idle.append(process)

    def close(self) -> None:
        """Ends all processes that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()


def _initialize(modules: tuple[str, ...]) -> None:
    step.become_payload_process()
    step.warm(modules)


def _cause(error: ProcessExpired) -> str:
    code = error.exitcode
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
