"""A warm process that runs payloads and can be killed with everything that they have started."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from threading import Lock

from p3s_prefect.adapters.pilot.descendants import PATIENCE_S
from p3s_prefect.adapters.pilot.keeper import SIGNAL_CODE
from p3s_prefect.adapters.pilot.step import StepCall, signal_name
from p3s_prefect.core.at_limit import killed_at_limit
from p3s_prefect.core.errors import PayloadFailed, PayloadTimeout

_KEEPER = "import sys; sys.path[:] = sys.argv[3:]; from p3s_prefect.adapters.pilot.keeper import main; main()"
# Importing the payloads of the telescope camera on a busy machine takes up to 4.5 s.
START_TIMEOUT_S = 60.0
# poll(2) counts milliseconds in 32 bits, which a timeout of a month would overflow.
_LONGEST_POLL_S = 86_400.0


class PayloadProcess:
    """One process, kept warm between steps. Once it has died, or was killed, it runs nothing any more."""

    def __init__(self, modules: tuple[str, ...] = ()) -> None:
        self._lock = Lock()
        self._ready: bool | None = None
        self._connection, theirs = multiprocessing.Pipe()
        keeper_end, self._lifeline = os.pipe()
        try:
            # A process of its own, not a fork, which would inherit the pilot's locks in whatever state they are; and
            # not one of `multiprocessing`, which Dask forbids its workers to have.
            self._keeper = subprocess.Popen(  # noqa: S603 -- it is this interpreter
                [sys.executable, "-c", _KEEPER, str(keeper_end), str(theirs.fileno()), *sys.path],
                # Our own settings, such as a token, are none of the payload's business.
                env={name: value for name, value in os.environ.items() if not name.startswith("P3S_")},
                pass_fds=(keeper_end, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(keeper_end)
            theirs.close()
        with contextlib.suppress(OSError):
            self._connection.send(modules)

    @property
    def is_alive(self) -> bool:
        """Whether it can run anything."""
        return self._keeper.poll() is None

    def is_ready(self) -> bool:
        """Waits until it has started; False if it died meanwhile, or took longer than `START_TIMEOUT_S`."""
        if self._ready is None:
            try:
                self._ready = self._connection.poll(START_TIMEOUT_S) and bool(self._connection.recv())
            except (EOFError, OSError):
                self._ready = False
        return self._ready

    def run(self, call: StepCall, timeout_s: float) -> str:
        """Runs a step and returns what went wrong, if anything.

        Raises:
            PayloadTimeout: it was killed after `timeout_s`.
            PayloadFailed: the process died, by its payload's doing or by `kill`.
        """
        try:
            self._connection.send(call)
            if not self._answers_within(timeout_s):
                self.kill()
                raise PayloadTimeout(
                    killed_at_limit(timeout_s, call.step.name),
                    fix="Raise its timeout_s, or look into its log for what it waited for.",
                )
            return str(self._connection.recv())
        except (EOFError, OSError) as error:
            raise PayloadFailed(
                f"step {call.step.name} ended its process ({_cause(self._end())})", fix="See its log."
            ) from error

    def kill(self) -> None:
        """Kills what runs in it, in native code too, with all that it has started, and waits until it is gone."""
        with self._lock:
            if self._lifeline >= 0:
                os.close(self._lifeline)
                self._lifeline = -1
        self._end()

    def close(self) -> None:
        """Ends the process."""
        self.kill()
        self._connection.close()

    def _answers_within(self, timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        while not self._connection.poll(min(_LONGEST_POLL_S, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                return False
        return True

    def _end(self) -> int:
        """Waits for the keeper, which ends after all that it keeps; returns its exit code."""
        try:
            return self._keeper.wait(2 * PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            return self._keeper.wait()


class PayloadProcesses:
    """The payload processes of one pilot: as many as it has stages running at once, kept for the next."""

    def __init__(self, modules: tuple[str, ...] = ()) -> None:
        self._modules = modules
        self._idle: list[PayloadProcess] = []
        self._lock = Lock()

    def warm(self) -> None:
        """Starts a process now, so that the first stage does not wait for its imports."""
        process = PayloadProcess(self._modules)
        with self._lock:
            self._idle.append(process)

    @contextlib.contextmanager
    def borrow(self) -> Iterator[PayloadProcess]:
        """A process that nobody else uses meanwhile.

        Raises:
            PayloadFailed: none can be started.
        """
        process = self._take()
        try:
            yield process
        finally:
            if process.is_alive:
                with self._lock:
                    self._idle.append(process)
            else:
                process.close()

    def close(self) -> None:
        """Ends all processes that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()

    def _take(self) -> PayloadProcess:
        while (process := self._pop()) is not None:
            if self._can_run(process):
                return process
        for modules in dict.fromkeys([self._modules, ()]):
            if self._can_run(process := PayloadProcess(modules)):
                return process
        raise PayloadFailed("no payload process can be started", fix="Look into the pilot's log for the reason.")

    def _can_run(self, process: PayloadProcess) -> bool:
        if not process.is_ready():
            # A payload whose import ends the process, or never ends, must not take the others with it.
            self._modules = ()
        elif process.is_alive:
            return True
        process.close()
        return False

    def _pop(self) -> PayloadProcess | None:
        with self._lock:
            return self._idle.pop() if self._idle else None


def _cause(code: int) -> str:
    return signal_name(code - SIGNAL_CODE) if code > SIGNAL_CODE else f"exit code {code}"
