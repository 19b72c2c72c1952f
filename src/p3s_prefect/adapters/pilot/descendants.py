"""What a process starts, and what that starts: adopting it, and ending it. Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

# Killed processes are gone within milliseconds, unless they hang in a dead file system, for which nobody should wait.
PATIENCE_S = 5.0


def die_with_parent(parent: int | None = None) -> None:
    """From now on, this process is killed when its parent ends; and at once if it is not `parent`, which has ended."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


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


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
