"""A watched directory: notifications are hints, the listing is the truth (P2), and only complete files count (P3)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import watchfiles

from p3s_prefect.adapters.directory_store import file_sha256
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Instrument, Stream
from p3s_prefect.core.file_names import FilePattern, is_excluded
from p3s_prefect.core.ports import Clock, MarkerSeen, Refusal, Seen
from p3s_prefect.core.records import Arrival, Identity

log = logging.getLogger(__name__)

_BATCH = 500
# A listing may take a tenth of the time: with 100,000 files it lasts seconds, and would else leave no core free.
_LISTING_SHARE = 0.1
# The notifier waits this long for more of the same event; its default of 50 ms would be half of our latency.
_NOTIFY_STEP_MS = 5
_MOST_KEY = 1000


class DirectorySource:
    """One stream's directory.

    `known` says which identities under some keys are settled, `is_open` whether a group can be closed; both are the
    ledger's knowledge, so that the source keeps nothing for each file.
    """

    def __init__(
        self,
        name: str,
        stream: Stream,
        instrument: Instrument,
        home: Path,
        *,
        clock: Clock,
        known: Callable[[str, Sequence[str]], Awaitable[set[Identity]]],
        is_open: Callable[[DataId], bool],
    ) -> None:
        self.name = name
        self.root = (home / stream.directory).resolve()
        self._stream = stream
        self._clock = clock
        self._known = known
        self._is_open = is_open
        self._pattern = FilePattern(stream.pattern, instrument.dimensions)
        marker = instrument.closing.marker
        group = {name: instrument.dimensions[name] for name in instrument.group}
        self._marker = FilePattern(marker, group) if marker is not None else None
        self._hints: asyncio.Queue[str] = asyncio.Queue(maxsize=10_000)
        self.period_s = stream.list_every_s
        self.listed_at: float | None = None
        self.incomplete = 0
        self.trouble = ""

    async def arrivals(self) -> AsyncIterator[Seen]:
        """See `ArrivalSource.arrivals`; it never ends."""
        self.root.mkdir(parents=True, exist_ok=True)
        watcher = asyncio.create_task(self._watch()) if self._stream.notify else None
        try:
            markers: set[DataId] = set()
            while True:
                # A marker that stood there before a listing began has all of its group's files in that listing.
                before = {group for group in markers if self._is_open(group)}
                markers = set()
                async for seen in self._list(markers):
                    yield seen
                for group in before:
                    yield MarkerSeen(group=group, name=self._marker.format(group) if self._marker else "")
                if any(self._is_open(group) for group in markers - before):
                    continue
                async for seen in self._hinted_until(time.monotonic() + self.period_s):
                    yield seen
        finally:
            if watcher is not None:
                watcher.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watcher

    # --- listing ------------------------------------------------------------------------------------------------

    async def _list(self, markers: set[DataId]) -> AsyncIterator[Seen]:
        begun = time.monotonic()
        tally = _Tally()
        paths = self._walk(tally)
        try:
            while batch := await asyncio.to_thread(lambda: list(islice(paths, _BATCH))):
                unknown = await self._unknown(await asyncio.to_thread(self._identify, batch, markers))
                for seen in await asyncio.to_thread(self._examine_all, unknown, tally):
                    yield seen
            self.listed_at = self._clock.now()
        except OSError as error:
            tally.complain(f"{self.root} cannot be listed: {error.strerror or error}")
        self.incomplete, self.trouble = tally.incomplete, tally.trouble
        self.period_s = max(self._stream.list_every_s, (time.monotonic() - begun) / _LISTING_SHARE)

    def _walk(self, tally: _Tally) -> Iterator[Path]:
        """All files below the root, and directories that bear a unit's name; links to directories are not followed."""
        pending = [self.root]
        while pending:
            directory = pending.pop()
            try:
                # Entry by entry: a directory may hold more files than should be in memory at once.
                with os.scandir(directory) as entries:
                    for entry in entries:
                        is_directory = entry.is_dir(follow_symlinks=False)
                        if not is_directory or self._pattern.match(entry.name) is not None:
                            yield Path(entry.path)
                        if is_directory and not is_excluded(entry.name, self._stream.exclude):
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
            group = self._marker.match(path.name) if self._marker is not None else None
            if group is not None:
                markers.add(group)
            elif not self._is_passed_over(path):
                try:
                    found[self._identity(path, path.lstat())] = path
                except FileNotFoundError:
                    continue
                except OSError:
                    # In a directory that may be read but not searched: `_examine` tells so, and the rest is found.
                    found[Identity(key=self._key(path), size=-1, mtime_ns=0)] = path
        return found

    async def _unknown(self, found: dict[Identity, Path]) -> list[Path]:
        if not found:
            return []
        known = await self._known(self.name, [identity.key for identity in found])
        return [path for identity, path in found.items() if identity not in known]

    def _examine_all(self, paths: list[Path], tally: _Tally) -> list[Arrival | Refusal]:
        return [seen for path in paths if (seen := self._examine(path, tally)) is not None]

    # --- hints --------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            try:
                async for changes in watchfiles.awatch(
                    self.root, watch_filter=None, step=_NOTIFY_STEP_MS, debounce=4 * _NOTIFY_STEP_MS, recursive=True
                ):
                    for _, path in changes:
                        with contextlib.suppress(asyncio.QueueFull):  # the listing will find it
                            self._hints.put_nowait(path)
            except (OSError, RuntimeError) as error:
                log.warning("no notifications for %s: %s; the listing goes on", self.root, error)
            await asyncio.sleep(self._stream.list_every_s)

    async def _hinted_until(self, moment: float) -> AsyncIterator[Seen]:
        """What notifications point to, until the next listing is due or a marker asks for it."""
        while (left_s := moment - time.monotonic()) > 0:
            try:
                path = Path(await asyncio.wait_for(self._hints.get(), left_s))
            except TimeoutError:
                return
            if self._marker is not None and (group := self._marker.match(path.name)) is not None:
                if self._is_open(group):
                    return
                continue
            seen = await asyncio.to_thread(self._examine_hinted, self._data_file(path))
            if seen is not None:
                yield seen

    def _examine_hinted(self, path: Path) -> Arrival | Refusal | None:
        # Notifications also come from where no listing looks: writers keep what is not complete in such places.
        above = [parent for parent in path.parents if self.root in parent.parents]
        if any(is_excluded(parent.name, self._stream.exclude) or parent.is_symlink() for parent in above):
            return None
        return self.examine(path)

    def _data_file(self, path: Path) -> Path:
        """The file that a hint is about: a marker or manifest of a file speaks for the file beside it."""
        complete = self._stream.complete
        if complete.by != "name" and path.name.endswith(complete.suffix):
            return path.with_name(path.name.removesuffix(complete.suffix))
        return path

    # --- one file -----------------------------------------------------------------------------------------------

    def examine(self, path: Path) -> Arrival | Refusal | None:
        """What a file is, by its absolute path.

        None if it is not there, temporary, somebody's companion, or not complete yet.
        """
        return self._examine(path, _Tally())

    def _examine(self, path: Path, tally: _Tally) -> Arrival | Refusal | None:
        if self._is_passed_over(path):
            return None
        try:
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode) and self._pattern.match(path.name) is None:
                return None
            if not stat.S_ISREG(found.st_mode):
                return self._refusal(path, found, "it is not a plain file")
            if found.st_mtime_ns != _kept_ns(found):
                return self._refusal(path, found, "its time of modification is centuries away")
            data_id = self._pattern.match(path.name)
            if data_id is None:
                return self._refusal(path, found, f"its name does not fit {self._stream.pattern}")
            sha256 = self._manifest_sha256(path)
            if not self._is_complete(path, sha256):
                tally.incomplete += 1
                return None
        except FileNotFoundError:
            return None
        except OSError as error:
            tally.complain(f"{_text(path)} cannot be read: {error.strerror or error}")
            return None
        return Arrival(
            stream=self.name,
            dataset_type=self._stream.dataset_type,
            path=str(path),
            identity=self._identity(path, found),
            data_id=data_id,
            arrived_at=self._clock.now(),
            sha256=sha256,
        )

    def _is_passed_over(self, path: Path) -> bool:
        return is_excluded(path.name, self._stream.exclude) or self._is_companion(path)

    def _is_companion(self, path: Path) -> bool:
        complete = self._stream.complete
        return complete.by != "name" and path.name.endswith(complete.suffix)

    def _manifest_sha256(self, path: Path) -> str | None:
        if self._stream.complete.by != "manifest":
            return None
        companion = path.with_name(path.name + self._stream.complete.suffix)
        # No pipe, which would never end, and no more of it than a checksum needs.
        if not companion.is_file():
            return None
        with contextlib.suppress(FileNotFoundError, UnicodeDecodeError, IndexError), companion.open("rb") as told:
            return told.read(4096).decode("ascii").split()[0].lower()
        return None

    def _is_complete(self, path: Path, sha256: str | None) -> bool:
        match self._stream.complete.by:
            case "name":
                return True
            case "marker":
                return path.with_name(path.name + self._stream.complete.suffix).is_file()
            case "manifest":
                return sha256 is not None and sha256 == file_sha256(path)

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

    def _identity(self, path: Path, found: os.stat_result) -> Identity:
        if stat.S_ISDIR(found.st_mode):
            # Its size and time change with what is in it, and it shall be refused once.
            return Identity(key=self._key(path), size=0, mtime_ns=0)
        return Identity(key=self._key(path), size=found.st_size, mtime_ns=_kept_ns(found))

    def _key(self, path: Path) -> str:
        # A file that lies elsewhere is processed on request only; no key below the root begins with a slash.
        key = _text(path.relative_to(self.root) if path.is_relative_to(self.root) else path)
        if len(key) <= _MOST_KEY:
            return key
        return f"{key[: _MOST_KEY - 65]}…{hashlib.sha256(key.encode()).hexdigest()}"


def _kept_ns(found: os.stat_result) -> int:
    # The ledger keeps 64 bits, with which ns end in the year 2262; file systems go on.
    return max(-(2**63), min(found.st_mtime_ns, 2**63 - 1))


def _text(path: Path) -> str:
    # Names on disk are bytes; what is not text must still be shown, and stored, without harm.
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(slots=True)
class _Tally:
    """What one listing meets on its way."""

    incomplete: int = 0
    trouble: str = ""

    def complain(self, trouble: str) -> None:
        log.warning("%s", trouble)
        self.trouble = self.trouble or trouble
