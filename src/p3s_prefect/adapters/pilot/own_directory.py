"""A directory that the pilots of one machine share, and nobody else: who may write there, and who holds what in it.

Locks are those of `flock`, which the kernel forgets with their process.
"""

from __future__ import annotations

import fcntl
import os
import stat
from io import BufferedReader
from pathlib import Path


def make_own(root: Path) -> None:
    """Makes the directory, and makes sure that nobody else can put anything there, as in /tmp they could."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_own(root):
        raise PermissionError(f"others can write to {root}")


def is_own(root: Path) -> bool:
    """Whether the directory is there, and nobody else can have put anything there."""
    try:
        found = root.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def locked(path: Path, kind: int, flags: int = 0) -> BufferedReader | None:
    """A file with a lock; None if there is none, or somebody is in the way: by a lock, or by taking its name away."""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | flags, 0o600), "rb")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        if still_named(file, path):
            return file
    except BlockingIOError:
        pass
    file.close()
    return None


def still_named(file: BufferedReader, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
