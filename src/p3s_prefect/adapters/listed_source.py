"""What all sources have in common: hints may be lost, the listing is the truth, and markers come after their files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from p3s_prefect.core.arrival_names import ArrivalNames
from p3s_prefect.core.closing import Sight
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Instrument, Stream
from p3s_prefect.core.ports import Clock, MarkerSeen, Seen
from p3s_prefect.core.records import Arrival, Identity

log = logging.getLogger(__name__)

_T = TypeVar("_T")
# A listing may take a tenth of the time: with 100,000 files it lasts seconds, and would else leave no core free.
LISTING_SHARE = 0.1
_MOST_HINTS = 10_000


class ListedSource(ABC):
    """One stream's place.

    `known` says which identities under some keys are settled, `is_open` whether a group can be closed; both are the
    ledger's knowledge, so that the source keeps nothing for each file.
    """

    def __init__(
        self,
        name: str,
        stream: Stream,
        instrument: Instrument,
        *,
        clock: Clock,
        known: Callable[[str, Sequence[str]], Awaitable[set[Identity]]],
        is_open: Callable[[DataId], bool],
        place: str,
        list_every_s: float,
    ) -> None:
        self.name = name
        self.place = place
        """Where it looks, for people."""
        self._stream = stream
        self._names = ArrivalNames(stream, instrument)
        self._clock = clock
        self._known = known
        self._is_open = is_open
        self._hints: asyncio.Queue[str] = asyncio.Queue(maxsize=_MOST_HINTS)
        self._list_every_s = list_every_s
        self.period_s = list_every_s
        self.listed_at: float | None = None
        """When the last look ended, UTC in seconds since 1970, for people; None before the first."""
        self.looked_s = -math.inf
        """When the last look that told everything ended, by the monotonic clock, which nobody sets."""
        self.seen_s = -math.inf
        """What stood there at this moment, by the monotonic clock, has been told."""
        self.back_s = -math.inf
        """When it was first listed again after it could not be, by the monotonic clock."""
        self._was_away = False
        """Whether it could not be listed since the last listing of everything."""
        self.incomplete = 0
        self.trouble = ""

    @property
    def looks_every_s(self) -> float:
        """How long after a look the next one is due, at the latest."""
        return self.period_s

    @property
    def sight(self) -> Sight:
        """From when to when it is known what came: quiet time does not count while nobody can look."""
        return sight_now(self._clock, since_s=self.back_s, until_s=self.seen_s)

    async def arrivals(self) -> AsyncGenerator[Seen, None]:
        """See `ArrivalSource.arrivals`; it never ends."""
        await self._in_thread(self._prepare)
        watcher = asyncio.create_task(self._watch())
        try:
            markers: set[DataId] = set()
            while True:
                # A marker that stood there before a listing began has all of its group's files in that listing.
                before, begun = {group for group in markers if self._is_open(group)}, time.monotonic()
                markers = set()
                async for seen in self._list(markers):
                    yield seen
                if self.seen_s < begun:
                    # Not everything was told: the files beside those markers may be among the rest.
                    markers |= before
                else:
                    for group in before:
                        yield MarkerSeen(group=group, name=self._names.marker(group))
                    if any(self._is_open(group) for group in markers - before):
                        continue
                async for seen in self._meanwhile(time.monotonic() + self.period_s):
                    yield seen
        finally:
            await end(watcher)

    # --- what differs -------------------------------------------------------------------------------------------

    def _prepare(self) -> None:  # noqa: B027 -- some have nothing to do
        """Makes the place, if that is the source's to do."""

    async def _watch(self) -> None:  # noqa: B027 -- as above
        """Gathers hints, for as long as it is not cancelled."""

    @abstractmethod
    def _list(self, markers: set[DataId]) -> AsyncIterator[Seen]:
        """Lists everything, and adds the groups whose markers it meets."""

    @abstractmethod
    def _examine_hinted(self, hint: str) -> Seen | None:
        """What a hint is about, as `arrivals` tells it; None for what is nothing, or not yet."""

    @abstractmethod
    def _name_of(self, hint: str) -> str:
        """The file name in a hint."""

    # --- for all ------------------------------------------------------------------------------------------------

    async def _meanwhile(self, moment: float) -> AsyncIterator[Seen]:
        """What is found until the next listing is due or a marker asks for it."""
        async for seen in self._hinted_until(moment):
            if isinstance(seen, MarkerSeen):
                return
            yield seen

    async def _hinted_until(self, moment: float) -> AsyncIterator[Seen]:
        """What hints point to; a marker of an open group is the last of it."""
        while (left_s := moment - time.monotonic()) > 0:
            try:
                # Not `wait_for`, which in Python 3.11 swallows the cancel that comes together with a hint.
                async with asyncio.timeout(left_s):
                    hint = await self._hints.get()
            except TimeoutError:
                return
            name = self._name_of(hint)
            if (group := self._names.closed_by(name)) is not None:
                if self._is_open(group):
                    yield MarkerSeen(group=group, name=name)
                    return
                continue
            seen = await self._look_at(hint)
            if seen is not None:
                yield seen

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        """Does what may take its time; some have a thread of their own for it."""
        return await asyncio.to_thread(call)

    async def _look_at(self, hint: str) -> Seen | None:
        return await self._in_thread(partial(self._examine_hinted, hint))

    def _take_hint(self, hint: str) -> None:
        with contextlib.suppress(asyncio.QueueFull):  # the listing will find it
            self._hints.put_nowait(hint)

    async def _settled(self, found: Sequence[Identity]) -> set[Identity]:
        return await self._known(self.name, [identity.key for identity in found]) if found else set()

    def _looked(self, begun: float, tally: Tally) -> None:
        """A look that began at `begun`, by the monotonic clock, has ended; it told everything unless partial."""
        self.listed_at = self._clock.now()
        if tally.is_partial:
            return
        self.looked_s, self.seen_s = time.monotonic(), begun
        if self._was_away:
            self._was_away, self.back_s = False, self.looked_s

    def _listed(self, begun: float, tally: Tally) -> None:
        """A listing that began at `begun`, by the monotonic clock, has ended."""
        self.incomplete, self.trouble = tally.incomplete, tally.trouble
        self.period_s = max(self._list_every_s, (time.monotonic() - begun - tally.once_s) / LISTING_SHARE)

    def _arrival(self, identity: Identity, data_id: DataId, path: str, sha256: str | None) -> Arrival:
        return Arrival(
            stream=self.name,
            dataset_type=self._stream.dataset_type,
            path=path,
            identity=identity,
            data_id=data_id,
            arrived_at=self._clock.now(),
            sha256=sha256,
        )


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks, and waits until they have ended; whoever cancels that is heard."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def sight_now(clock: Clock, *, since_s: float, until_s: float) -> Sight:
    """What is known from when to when by the monotonic clock, as `clock` stands now, which somebody may have set."""
    ahead_s = clock.now() - time.monotonic()
    return Sight(since=ahead_s + since_s, until=ahead_s + until_s)


@dataclass(slots=True)
class Tally:
    """What one listing meets on its way."""

    incomplete: int = 0
    trouble: str = ""
    is_partial: bool = False
    """Whether something could not be read now, which may be complete; later it may."""
    once_s: float = 0.0
    """Time that the next listing does not take again."""

    def complain(self, trouble: str) -> None:
        """Notes what could not be looked at; the first such thing is shown."""
        log.warning("%s", trouble)
        self.trouble = self.trouble or trouble
