"""A bucket, and in its place the online buffer for as long as the bucket cannot be reached."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor

from p3s_prefect.adapters.bucket_objects import ask_bucket
from p3s_prefect.adapters.bucket_source import BucketSource
from p3s_prefect.adapters.buffer_source import BufferSource
from p3s_prefect.adapters.listed_source import ListedSource, end, sight_now
from p3s_prefect.core.closing import Sight
from p3s_prefect.core.errors import StoreError, StoreUnreachable
from p3s_prefect.core.notices import Notice
from p3s_prefect.core.ports import Clock, Seen

log = logging.getLogger(__name__)

# One small request each.
_ASK_EVERY_S = 1.0
# A server that grows its volumes was silent for 2 s. To move costs a listing, and comparing what then comes twice.
_SILENT_S = 2.0
# One directory entry.
_LOOK_IN_EVERY_S = 30.0


class BufferedSource:
    """Tells what comes from the bucket; while that is away, and until it was listed again, what is in the buffer.

    Each place is told in its own order, so that a marker comes after the files that stand beside it. What one place
    told and the other tells again is the ledger's to know.
    """

    def __init__(self, bucket: BucketSource, buffer: BufferSource, clock: Clock) -> None:
        self.name = bucket.name
        self.bucket = bucket
        self.buffer = buffer
        self.why_buffer = ""
        """Why it is fed from the buffer; empty while it is not."""
        self.moved_at: float | None = None
        """When it last moved, UTC in seconds since 1970, for people; None if it never did."""
        self._moved_s = -math.inf
        """When it last turned to the other place, by the monotonic clock, which nobody sets."""
        self._clock = clock
        self._silent_since: float | None = None
        """When the bucket was first asked in vain, by the monotonic clock; None if it has answered since."""

    @property
    def fed_from(self) -> ListedSource:
        """The place that counts now."""
        return self.buffer if self.why_buffer else self.bucket

    @property
    def sight(self) -> Sight:
        """As `ListedSource.sight`; nor does quiet time count while the source moves."""
        since_s = max(self._moved_s, self.fed_from.back_s)
        return sight_now(self._clock, since_s=since_s, until_s=max(self.bucket.seen_s, self.buffer.seen_s))

    def hint(self, notice: Notice) -> bool:
        """See `BucketSource.hint`."""
        return self.bucket.hint(notice)

    async def arrivals(self) -> AsyncGenerator[Seen, None]:
        """See `ArrivalSource.arrivals`; it never ends."""
        told: asyncio.Queue[Seen] = asyncio.Queue(maxsize=1)
        feeding = asyncio.create_task(self._feed(told))
        taking: asyncio.Task[Seen] | None = None
        try:
            while True:
                taking = asyncio.create_task(told.get())
                await asyncio.wait({taking, feeding}, return_when=asyncio.FIRST_COMPLETED)
                if feeding.done():
                    feeding.result()  # it ends only by failing
                yield taking.result()
        finally:
            await end(*filter(None, (taking, feeding)))

    # --- inside -------------------------------------------------------------------------------------------------

    async def _feed(self, told: asyncio.Queue[Seen]) -> None:
        """Follows the place that can be reached, and asks the bucket again and again, until cancelled."""
        followed: dict[ListedSource, asyncio.Task[None]] = {}
        # Those threads that all share may be waiting for the same server.
        thread = ThreadPoolExecutor(1, thread_name_prefix=f"ask-{self.name}")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._look_in())
                while True:
                    await self._ask(thread)
                    wanted = self._wanted()
                    for source in followed.keys() - wanted:
                        await end(followed.pop(source))
                    for source in wanted - followed.keys():
                        followed[source] = tasks.create_task(_tell(source, told))
                    await asyncio.sleep(_ASK_EVERY_S)
        finally:
            thread.shutdown(wait=False)

    async def _look_in(self) -> None:
        """Whoever needs the buffer shall not learn only then that it is not there."""
        while True:
            if not self.why_buffer:
                await self.buffer.look_in()
            await asyncio.sleep(_LOOK_IN_EVERY_S)

    async def _ask(self, thread: ThreadPoolExecutor) -> None:
        begun = time.monotonic()
        try:
            await asyncio.get_running_loop().run_in_executor(thread, ask_bucket, self.bucket.bucket)
        except StoreUnreachable as error:
            self._silent_since = begun if self._silent_since is None else self._silent_since
            if self._is_silent and not self.why_buffer:
                self._move(error.what, self._clock.now())
        except StoreError as error:
            # To refuse is an answer; the bucket's own listing tells why, but nobody looks there as long as it is away.
            self._silent_since = None
            self.why_buffer = self.why_buffer and error.what
        else:
            self._silent_since = None

    @property
    def _is_silent(self) -> bool:
        return self._silent_since is not None and time.monotonic() - self._silent_since >= _SILENT_S

    def _wanted(self) -> set[ListedSource]:
        if not self.why_buffer:
            return {self.bucket}
        if self._silent_since is not None:
            return {self.buffer}
        if self.bucket.looked_s > self._moved_s:
            # As of the listing that brings it back: there is no other before the next look is due.
            self._move("", self.bucket.listed_at)
            return {self.bucket}
        return {self.bucket, self.buffer}

    def _move(self, why_buffer: str, moved_at: float | None) -> None:
        self.why_buffer, self.moved_at, self._moved_s = why_buffer, moved_at, time.monotonic()
        if why_buffer:
            log.warning("%s: from the buffer, %s: %s", self.name, self.buffer.place, why_buffer)
        else:
            log.warning("%s: from the bucket again, %s", self.name, self.bucket.place)


async def _tell(source: ListedSource, told: asyncio.Queue[Seen]) -> None:
    async with contextlib.aclosing(source.arrivals()) as arrivals:
        async for seen in arrivals:
            await told.put(seen)
