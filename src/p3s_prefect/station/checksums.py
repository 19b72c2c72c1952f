"""Checksums of files that arrived, as the station itself needs them: what lies in the online buffer is read under its
limits, one file at a time, and not while everybody else wants to read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

from p3s_prefect.adapters.bucket_objects import copy_arrived, is_bucket_path
from p3s_prefect.adapters.buffer_places import BufferPlaces
from p3s_prefect.adapters.buffer_reader import BufferReader
from p3s_prefect.adapters.directory_store import file_sha256
from p3s_prefect.adapters.ledger.arrivals import Rival
from p3s_prefect.core.errors import InputChanged, InputGone, StoreUnreachable
from p3s_prefect.core.other_input import OtherInput
from p3s_prefect.core.ports import BufferLeases
from p3s_prefect.core.records import Arrival, BufferUse

# The pilots' reads are more urgent; what is not read now is asked for again at the next listing.
_PATIENCE_S = 2.0
# Half of the arrivals that are let in at once: what needs no look into the buffer passes by.
_MOST_WAITING = 32


class Checksums:
    """Reads whole files, in threads other than that of the event loop."""

    def __init__(self, leases: BufferLeases) -> None:
        self._leases = leases
        self._reading = Lock()
        self._thread = ThreadPoolExecutor(1, "buffer")
        self._waiting = 0
        self._ended = False
        self.use = BufferUse()
        """What was read of the online buffer so far."""

    def end(self) -> None:
        """Nothing more is read of the buffer."""
        self._ended = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def sha256(
        self, places: BufferPlaces, stream: str, path: Path, is_wanted: Callable[[], bool] = lambda: True
    ) -> str:
        """SHA-256 (hex) of a stream's file; a read of the buffer ends early once it is wanted no more.

        Raises:
            InputChanged: it changed while it was read.
            OSError: it cannot be read.
            StoreUnreachable: it is in the buffer, which cannot be read now, or need not be.
        """
        place = places.of(stream, str(path))
        if place is None:
            return file_sha256(path)
        reader = BufferReader(self._leases, partial(self._go_on, is_wanted), patience_s=_PATIENCE_S)
        with self._alone():
            try:
                return reader.read(path, place.limits).sha256
            finally:
                self.use = self.use.and_then(reader.use)

    def both(self, places: BufferPlaces, seen: Arrival, rival: Rival) -> tuple[Arrival, Rival]:
        """The arrival with its checksum, and the file that was taken before as it stands now.

        Raises:
            OSError: the arrival's file cannot be read.
            InputChanged: it is no longer the one that arrived.
            StoreError: it cannot be read now.
        """
        before = self._as_it_stands(places, seen.stream, rival)
        if is_bucket_path(seen.path):
            sha256 = copy_arrived(seen.path, seen.identity.etag)[1]
        else:
            sha256 = self.sha256(places, seen.stream, Path(seen.path))
            if _as_listed(seen.path) != (seen.identity.size, seen.identity.mtime_ns):
                raise InputChanged(f"{seen.path} {OtherInput.CHANGED}", fix="It is listed again.")
        return replace(seen, sha256=sha256), before

    async def compare(self, places: BufferPlaces, seen: Arrival, rival: Rival) -> tuple[Arrival, Rival]:
        """As `both`, from the event loop's thread."""
        if not any(_is_in_buffer(places, seen.stream, path) for path in (seen.path, rival.path)):
            return await asyncio.to_thread(self.both, places, seen, rival)
        if self._waiting >= _MOST_WAITING:
            raise StoreUnreachable("many files of the online buffer are to be read", fix="It is tried again.")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self.both, places, seen, rival)
        finally:
            self._waiting -= 1

    # --- inside -------------------------------------------------------------------------------------------------

    def _as_it_stands(self, places: BufferPlaces, stream: str, rival: Rival) -> Rival:
        """The file that was taken before, with its checksum if it still is that file."""
        if rival.sha256 is not None:
            return rival
        try:
            if is_bucket_path(rival.path):
                return replace(rival, sha256=copy_arrived(rival.path, rival.identity.etag)[1])
            taken = (rival.identity.size, rival.identity.mtime_ns)
            if _as_listed(rival.path) == taken:
                sha256 = self.sha256(places, stream, Path(rival.path))
                return replace(rival, sha256=sha256 if _as_listed(rival.path) == taken else None)
        except (InputGone, FileNotFoundError, NotADirectoryError):
            return replace(rival, is_gone=True)
        except InputChanged:
            pass
        except OSError as error:
            if places.of(stream, rival.path) is not None:
                what = f"{rival.path} in the online buffer cannot be read: {error.strerror or error}"
                raise StoreUnreachable(what, fix="It is tried again.") from error
        return rival

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._reading.acquire(timeout=_PATIENCE_S):
            raise StoreUnreachable("the station reads another file of the online buffer", fix="It is tried again.")
        try:
            yield
        finally:
            self._reading.release()

    def _go_on(self, is_wanted: Callable[[], bool]) -> None:
        if self._ended:
            raise StoreUnreachable("the station ends", fix="Its next one reads the online buffer.")
        if not is_wanted():
            raise StoreUnreachable("nobody waits for it any more", fix="Whoever follows the stream now reads it.")


def _is_in_buffer(places: BufferPlaces, stream: str, path: str) -> bool:
    return not is_bucket_path(path) and places.of(stream, path) is not None


def _as_listed(path: str) -> tuple[int, int]:
    """Size [bytes] and modification time [ns] of a file as it stands now, by which listings tell files apart."""
    found = os.lstat(path)
    return found.st_size, found.st_mtime_ns
