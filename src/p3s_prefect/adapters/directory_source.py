"""A watched directory: notifications are hints, the listing is the truth (P2), and only complete files count (P3)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import watchfiles

from p3s_prefect.adapters.directory_store import file_sha256
from p3s_prefect.adapters.listed_source import ListedSource, Tally
from p3s_prefect.core.arrival_names import MANIFEST_BYTES, kept_key, told_sha256
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import InputChanged, StoreUnreachable
from p3s_prefect.core.experiment import Instrument, Stream
from p3s_prefect.core.ports import Clock, Refusal, Seen
from p3s_prefect.core.records import Arrival, Identity

log = logging.getLogger(__name__)

_BATCH = 500
# The notifier waits this long for more of the same event; its default of 50 ms would be half of our latency.
_NOTIFY_STEP_MS = 5


class DirectorySource(ListedSource):
    """One stream's directory, as `ListedSource` says."""

    def __init__(
        self,
        name: str,
        stream: Stream,
        instrument: Instrument,
        root: Path,
        *,
        clock: Clock,
        known: Callable[[str, Sequence[str]], Awaitable[set[Identity]]],
        is_open: Callable[[DataId], bool],
    ) -> None:
        self.root = root.absolute()
        super().__init__(
            name,
            stream,
            instrument,
            clock=clock,
            known=known,
            is_open=is_open,
            place=str(self.root),
            list_every_s=stream.list_every_s,
        )

    def _prepare(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        # Not before: a file system that hangs keeps whoever asks for it waiting.
        self.root = self.root.resolve()
        self.place = str(self.root)

    # --- listing ------------------------------------------------------------------------------------------------

    async def _list(self, markers: set[DataId]) -> AsyncIterator[Seen]:
        begun = time.monotonic()
        tally = Tally()
        paths = self._walk(tally)
        try:
            while not tally.is_partial and (batch := await self._in_thread(lambda: list(islice(paths, _BATCH)))):
                found = await self._in_thread(partial(self._identify, batch, markers))
                settled = await self._settled(list(found))
                async for seen in self._examined([found[one] for one in found if one not in settled], tally):
                    yield seen
            self._looked(begun, tally)
        except OSError as error:
            self._was_away = True
            tally.complain(f"{self.root} cannot be listed: {error.strerror or error}")
        self._listed(begun, tally)

    def _walk(self, tally: Tally) -> Iterator[Path]:
        """All files below the root, and directories that bear a unit's name; links to directories are not followed."""
        pending = [self.root]
        while pending:
            directory = pending.pop()
            try:
                # Entry by entry: a directory may hold more files than should be in memory at once.
                with os.scandir(directory) as entries:
                    for entry in entries:
                        is_directory = entry.is_dir(follow_symlinks=False)
                        if not is_directory or self._names.unit(entry.name) is not None:
                            yield Path(entry.path)
                        if is_directory and not self._names.is_hidden([entry.name]):
                            pending.append(Path(entry.path))
            except OSError as error:
                # A subdirectory that cannot be read, or was just removed, must not hide the others.
                if directory == self.root:
                    raise
                if not isinstance(error, FileNotFoundError):
                    tally.complain(f"{_text(directory)} cannot be listed: {error.strerror or error}")

    def _identify(self, paths: list[Path], markers: set[DataId]) -> dict[Identity, Path]:
        """What may be a unit, by identity. Whether it is complete, which may cost reading it, is not asked yet."""
        found = {}
        for path in paths:
            if (group := self._names.closed_by(path.name)) is not None:
                markers.add(group)
            elif not self._names.is_passed_over(path.name):
                try:
                    found[self._identity(path, path.lstat())] = path
                except FileNotFoundError:
                    continue
                except OSError:
                    # In a directory that may be read but not searched: `_examine` tells so, and the rest is found.
                    found[Identity(key=self._key(path), size=-1, mtime_ns=0)] = path
        return found

    async def _examined(self, paths: list[Path], tally: Tally) -> AsyncIterator[Seen]:
        """Where examining reads, each file is told once it was read, and one that cannot be read now is the last."""
        reads = self._stream.complete.by == "manifest"
        step = 1 if reads else _BATCH
        for start in range(0, len(paths), step):
            begun = time.monotonic()
            found = await self._in_thread(partial(self._examine_all, paths[start : start + step], tally))
            if reads and (found or tally.is_partial):
                tally.once_s += time.monotonic() - begun
            for seen in found:
                yield seen
            if tally.is_partial:
                return

    def _examine_all(self, paths: list[Path], tally: Tally) -> list[Arrival | Refusal]:
        return [seen for path in paths if (seen := self._examine(path, tally)) is not None]

    # --- hints --------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while self._stream.notify:
            try:
                # The notifier looks there in the thread of the event loop, which must not hang with a file system.
                await self._in_thread(self.root.stat)
                async for changes in watchfiles.awatch(
                    self.root, watch_filter=None, step=_NOTIFY_STEP_MS, debounce=4 * _NOTIFY_STEP_MS, recursive=True
                ):
                    for _, path in changes:
                        self._take_hint(path)
            except (OSError, RuntimeError) as error:
                log.warning("no notifications for %s: %s; the listing goes on", self.root, error)
            await asyncio.sleep(self._stream.list_every_s)

    def _name_of(self, hint: str) -> str:
        return Path(hint).name

    def _examine_hinted(self, hint: str) -> Arrival | Refusal | None:
        path = Path(hint)
        # Notifications also come from where no listing looks: writers keep what is not complete in such places.
        above = [parent for parent in path.parents if self.root in parent.parents]
        if self._names.is_hidden(parent.name for parent in above) or any(parent.is_symlink() for parent in above):
            return None
        return self.examine(path.with_name(self._names.spoken_for(path.name)))

    # --- one file -----------------------------------------------------------------------------------------------

    def examine(self, path: Path) -> Arrival | Refusal | None:
        """What a file is, by its absolute path.

        None if it is not there, temporary, somebody's companion, or not complete yet.
        """
        return self._examine(path, Tally())

    def _examine(self, path: Path, tally: Tally) -> Arrival | Refusal | None:
        if self._names.is_passed_over(path.name):
            return None
        try:
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode) and self._names.unit(path.name) is None:
                return None
            if not stat.S_ISREG(found.st_mode):
                return self._refusal(path, found, "it is not a plain file")
            if found.st_mtime_ns != _kept_ns(found):
                return self._refusal(path, found, "its time of modification is centuries away")
            data_id = self._names.unit(path.name)
            if data_id is None:
                return self._refusal(path, found, self._names.unfit)
            sha256 = self._manifest_sha256(path)
            if not self._is_complete(path, sha256):
                tally.incomplete += 1
                return None
        except (FileNotFoundError, InputChanged):
            return None
        except StoreUnreachable:
            tally.incomplete, tally.is_partial = tally.incomplete + 1, True
            return None
        except OSError as error:
            tally.complain(f"{_text(path)} cannot be read: {error.strerror or error}")
            return None
        return self._arrival(self._identity(path, found), data_id, str(path), sha256)

    def _manifest_sha256(self, path: Path) -> str | None:
        if self._stream.complete.by != "manifest":
            return None
        companion = path.with_name(self._names.companion(path.name))
        # No pipe, which would never end.
        if not companion.is_file():
            return None
        with contextlib.suppress(FileNotFoundError), companion.open("rb") as told:
            return told_sha256(told.read(MANIFEST_BYTES))
        return None

    def _is_complete(self, path: Path, sha256: str | None) -> bool:
        match self._stream.complete.by:
            case "name":
                return True
            case "marker":
                return path.with_name(self._names.companion(path.name)).is_file()
            case "manifest":
                return sha256 is not None and sha256 == self._sha256(path)

    def _sha256(self, path: Path) -> str:
        """May raise InputChanged, or StoreUnreachable where it cannot be read now."""
        return file_sha256(path)

    def _refusal(self, path: Path, found: os.stat_result, reason: str) -> Refusal:
        identity = self._identity(path, found)
        return Refusal(
            stream=self.name,
            key=identity.key,
            path=_text(path),
            size=identity.size,
            mtime_ns=identity.mtime_ns,
            reason=reason,
        )

    def _identity_of(self, path: Path) -> Identity | None:
        with contextlib.suppress(OSError):
            return self._identity(path, path.lstat())
        return None

    def _identity(self, path: Path, found: os.stat_result) -> Identity:
        if stat.S_ISDIR(found.st_mode):
            # Its size and time change with what is in it, and it shall be refused once.
            return Identity(key=self._key(path), size=0, mtime_ns=0)
        return Identity(key=self._key(path), size=found.st_size, mtime_ns=_kept_ns(found))

    def _key(self, path: Path) -> str:
        # A file that lies elsewhere is processed on request only; no key below the root begins with a slash.
        return kept_key(_text(path.relative_to(self.root) if path.is_relative_to(self.root) else path))


def _kept_ns(found: os.stat_result) -> int:
    # The ledger keeps 64 bits, with which ns end in the year 2262; file systems go on.
    return max(-(2**63), min(found.st_mtime_ns, 2**63 - 1))


def _text(path: Path) -> str:
    # Names on disk are bytes; what is not text must still be shown, and stored, without harm.
    return os.fsencode(path).decode("utf-8", "backslashreplace")
