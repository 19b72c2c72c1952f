"""A stream's directory in the online buffer: it is the DAQ's, and the same files may have come from the bucket."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from p3s_prefect.adapters.directory_source import DirectorySource
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Instrument, Stream
from p3s_prefect.core.ports import Clock, Seen
from p3s_prefect.core.records import Identity

_T = TypeVar("_T")
# A disk that has to start turning first takes some seconds.
_HANGS_S = 10.0


class BufferSource(DirectorySource):
    """As a watched directory, but nothing is made there, and what the bucket has told is settled.

    An object in the bucket is told by its ETag, a file by its time, so one is known from the other by key and size.
    Where that were not enough, every file of the bucket would be compared byte for byte whenever the bucket is away.
    What a manifest asks for is read by `sha256`, which keeps to the buffer's limits, and ends early when what it is
    given says that nobody waits for it any more.
    """

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
        sha256: Callable[[Path, Callable[[], bool]], str],
    ) -> None:
        super().__init__(name, stream, instrument, root, clock=clock, known=known, is_open=is_open)
        self._read_sha256 = sha256
        self._is_followed = False
        # Its disk may hang, and those threads that all share with it. It ends with the source.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"buffer-{name}")

    def _prepare(self) -> None:
        """Where there is no buffer, its first listing says so."""

    async def arrivals(self) -> AsyncGenerator[Seen, None]:
        """See `ArrivalSource.arrivals`; it never ends."""
        self._is_followed = True
        try:
            async with contextlib.aclosing(super().arrivals()) as arrivals:
                async for seen in arrivals:
                    yield seen
        finally:
            self._is_followed = False

    async def look_in(self) -> None:
        """Looks whether it could be listed, while nobody lists it; `trouble` says why not."""
        try:
            async with asyncio.timeout(_HANGS_S):
                self.trouble = await self._in_thread(self._trouble_there)
        except TimeoutError:
            self.trouble = f"{self.root} does not answer"

    def _trouble_there(self) -> str:
        try:
            with os.scandir(self.root) as entries:
                next(entries, None)
        except OSError as error:
            return f"{self.root} cannot be listed: {error.strerror or error}"
        return ""

    def _sha256(self, path: Path) -> str:
        return self._read_sha256(path, lambda: self._is_followed)

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _settled(self, found: Sequence[Identity]) -> set[Identity]:
        known = await super()._settled(found)
        in_bucket = {(one.key, one.size) for one in known if one.etag}
        return {one for one in found if one in known or (one.key, one.size) in in_bucket}

    async def _look_at(self, hint: str) -> Seen | None:
        # A hint may be about a file that has long come from the bucket, and examining may cost reading it.
        path = Path(hint)
        spoken_for = path.with_name(self._names.spoken_for(path.name))
        there = await self._in_thread(partial(self._identity_of, spoken_for))
        if there is None or await self._settled([there]):
            return None
        return await super()._look_at(hint)
