"""Stands between a pilot and a payload process, so that nothing outlives either of them.

::

    pilot ──(starts)──> keeper ──(forks)──> payload process ──> commands, and whatever they start
      └── a pipe that the keeper watches: it ends when the pilot closes it, or dies

A payload may crash its process, ignore signals, or detach what it starts from its session. All of it still descends
from the keeper, which adopts orphans and ends everything below it once the payload process or the pilot has ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys

from p3s_prefect.adapters.pilot.descendants import adopt_orphans, die_with_parent, end_descendants

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
    die_with_parent()
    adopt_orphans()
    try:
        # Not before the fork: importing may start threads, and a forked process has but one.
        from p3s_prefect.adapters.pilot.step import serve

        serve(connection)
    finally:
        os._exit(0)
