"""Stands between a pilot and a payload process, so that nothing outlives either of them.

::

    pilot ──(starts)──> keeper ──(forks)──> payload process ──> commands, and whatever they start
      └── a pipe that the keeper watches: it ends when the pilot closes it, or dies

A payload may crash its process, ignore signals, or detach what it starts from its session. All of it still descends
from the keeper, which adopts orphans and ends everything below it once the payload process or the pilot has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

# Killed processes are gone within milliseconds, unless they hang in a dead file system, for which nobody should wait.
PATIENCE_S = 5.0
# As a shell does it, so that one number tells an exit code from a signal.
SIGNAL_CODE = 128


def main() -> None:
    """The keeper's life. Its arguments are the descriptors of the pilot's pipe and of the payload's connection."""
    pilot, connection = int(sys.argv[1]), int(sys.argv[2])
    adopt_orphans()
    child_ended = _watch_children()
    payload = os.fork()
    if payload == 0:
        os.close(pilot)
        _become_payload_process(connection)
    os.close(connection)
    code = _await_end(payload, pilot, child_ended)
    end_descendants()
    os._exit(code)


def adopt_orphans() -> None:
    """From now on, what the descendants of this process leave behind becomes its child."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_descendants() -> None:
    """Kills everything below this process, which must have adopted its orphans."""
    until = time.monotonic() + PATIENCE_S
    while _has_children() and time.monotonic() < until:
        # Again and again, as one that is about to die may have started another meanwhile.
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        time.sleep(0.002)


def _has_children() -> bool:
    """Collects the children that have ended, and says whether others are left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return False
    return True


def _watch_children() -> int:
    """A descriptor that can be read once a child has ended."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    return readable


def _await_end(payload: int, pilot: int, child_ended: int) -> int:
    """Waits until the payload process or the pilot has ended; the answer is the former's exit code."""
    while True:
        ready, _, _ = select.select([pilot, child_ended], [], [])
        if pilot in ready:
            return SIGNAL_CODE + signal.SIGKILL
        os.read(child_ended, 512)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == payload:
                    code = os.waitstatus_to_exitcode(ended[1])
                    return code if code >= 0 else SIGNAL_CODE - code


def _become_payload_process(connection: int) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    adopt_orphans()
    try:
        # Not before the fork: importing may start threads, and a forked process has but one.
        from p3s_prefect.adapters.pilot.step import serve

        serve(connection)
    finally:
        os._exit(0)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
