"""Which machine this is, for whoever finds the number of a process written down."""

from __future__ import annotations

import platform
from contextlib import suppress
from hashlib import sha256
from pathlib import Path


def this_machine() -> str:
    """Its name, since when it runs, and where its processes have numbers of their own.

    A container may bear the machine's name, and after a restart each number is somebody else's.
    """
    parts = [Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")]
    with suppress(OSError):
        number = sha256((parts[0].read_text() + str(parts[1].readlink())).encode()).hexdigest()[:8]
        return f"{platform.node()}-{number}"
    return platform.node()


def is_this_machine(named: str) -> bool:
    """Whether this machine has called itself so since it runs; its name may have changed meanwhile."""
    return named.rpartition("-")[2] == this_machine().rpartition("-")[2]
