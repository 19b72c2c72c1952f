"""Reading the online buffer, which the DAQ writes: under a lease, in small blocks, and never faster than allowed."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import BinaryIO

from p3s_prefect.core.buffer_limits import BufferLimits
from p3s_prefect.core.errors import InputChanged, StoreError, StoreUnreachable
from p3s_prefect.core.other_input import OtherInput
from p3s_prefect.core.ports import BufferLeases
from p3s_prefect.core.records import BufferUse

# How long a reader is deaf at most to whoever wants to stop it.
_LOOK_EVERY_S = 0.5
# Dask gives the lease of whoever has not refreshed it for 30 s to somebody else, and that is done every 6 s: a process
# that was frozen for so long may have lost it.
_LOST_AFTER_S = 20.0
# Then it is not this process that is slow.
_MOST_LOST = 3
_KEEP = "Files must not change in place."


@dataclass(frozen=True, kw_only=True)
class BufferCopy:
    """What was read of a file."""

    size: int
    mtime_ns: int
    sha256: str


class _LeaseLost(Exception):
    """Somebody else may be reading by now."""


class BufferReader:
    """Reads files of the buffer, and says how much that was.

    `go_on` is called again and again while it waits and reads; what it raises ends the read. Who has waited for
    `patience_s` for others to have read gives up.
    """

    def __init__(
        self, leases: BufferLeases, go_on: Callable[[], None] = lambda: None, *, patience_s: float = inf
    ) -> None:
        self._leases = leases
        self._go_on = go_on
        self._patience_s = patience_s
        self._alive_at = 0.0
        self.use = BufferUse()

    def read(
        self, path: Path, limits: BufferLimits, target: Path | None = None, *, size: int | None = None
    ) -> BufferCopy:
        """Reads a file to its end, into `target` if it is given.

        Raises:
            InputChanged: it has another size than this, is no file, or changed while it was read.
            OSError: it is not there, or cannot be read.
            StoreError: the target cannot be written.
            StoreUnreachable: nobody says whether it may be read now, others read, or it takes for ever.
        """
        for _ in range(_MOST_LOST):
            with suppress(_LeaseLost), self._lease(limits):
                found = self._copied(path, limits, target, size)
                self.use = self.use.and_then(BufferUse(reads=1, bytes=found.size))
                return found
        raise StoreUnreachable(
            f"{path.name} in the online buffer was silent for {_LOST_AFTER_S:g} s at a time, while it was read",
            fix="It is tried again; look at the buffer's disk, and the way to it.",
        )

    # --- inside -------------------------------------------------------------------------------------------------

    @contextmanager
    def _lease(self, limits: BufferLimits) -> Iterator[None]:
        begun = time.monotonic()
        try:
            while not self._leases.acquire(limits, _LOOK_EVERY_S):
                self._go_on()
                if time.monotonic() - begun > self._patience_s:
                    raise StoreUnreachable("others read the online buffer", fix="It is tried again.")
        finally:
            self.use = self.use.and_then(BufferUse(waited_s=time.monotonic() - begun))
        try:
            self._alive_at = time.monotonic()
            self._tick()
            yield
        finally:
            self._leases.release(limits)

    def _copied(self, path: Path, limits: BufferLimits, target: Path | None, size: int | None) -> BufferCopy:
        with open(path, "rb", buffering=0, opener=_opened) as source:
            before = os.fstat(source.fileno())
            if not stat.S_ISREG(before.st_mode) or size not in (None, before.st_size):
                raise InputChanged(f"{path.name} {OtherInput.REPLACED}", fix=_KEEP)
            digest = hashlib.sha256()
            with closing(_Target(target or Path(os.devnull))) as copy:
                for block in self._blocks(source, limits):
                    digest.update(block)
                    copy.write(block)
            after = os.fstat(source.fileno())
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise InputChanged(f"{path.name} {OtherInput.CHANGED}", fix=_KEEP)
        return BufferCopy(size=after.st_size, mtime_ns=after.st_mtime_ns, sha256=digest.hexdigest())

    def _blocks(self, source: BinaryIO, limits: BufferLimits) -> Iterator[bytes]:
        """A file's bytes; the pause after the last block is part of reading it."""
        while True:
            begun = time.monotonic()
            self._tick()
            block = source.read(limits.block_bytes)
            if not block:
                return
            yield block
            self._pause(limits.pause_s(len(block), time.monotonic() - begun))

    def _pause(self, pause_s: float) -> None:
        until = time.monotonic() + pause_s
        while (left_s := until - time.monotonic()) > 0:
            self._tick()
            time.sleep(min(left_s, _LOOK_EVERY_S))

    def _tick(self) -> None:
        now = time.monotonic()
        silent_s, self._alive_at = now - self._alive_at, now
        self._go_on()
        if silent_s > _LOST_AFTER_S:
            raise _LeaseLost


class _Target:
    """A file that is written; whatever fails there is not the buffer's trouble."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._own_trouble():
            self._file = path.open("wb")

    def write(self, block: bytes) -> None:
        with self._own_trouble():
            self._file.write(block)

    def close(self) -> None:
        with self._own_trouble():
            self._file.close()

    @contextmanager
    def _own_trouble(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = f"{self._path.name} cannot be copied to {self._path.parent}: {error.strerror or error}"
            raise StoreError(what, fix="Make room there, or look at the disk; it is tried again.") from error


def _opened(path: str, flags: int) -> int:
    # A link in a file's place may lead anywhere, and a pipe keeps whoever opens it waiting.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
