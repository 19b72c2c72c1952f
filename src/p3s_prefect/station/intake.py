"""From arrivals to sub-jobs, and from open groups to closed ones."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from p3s_prefect.adapters.ledger import arrivals, groups
from p3s_prefect.core.closing import GroupFact, Sight, closes_by_count, quiet_at
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import InputChanged, StoreError
from p3s_prefect.core.experiment import Closing
from p3s_prefect.core.ports import ArrivalSource, Clock, MarkerSeen, Refusal
from p3s_prefect.core.records import Arrival, Identity, Verdict
from p3s_prefect.station.gate import Gate

if TYPE_CHECKING:
    from p3s_prefect.station.checksums import Checksums
    from p3s_prefect.station.committer import Committer
    from p3s_prefect.station.feed import Feed
    from p3s_prefect.station.generations import Generations
    from p3s_prefect.station.handout import Handout

log = logging.getLogger(__name__)

# Ingested at once, so that one commit takes many; few enough that a burst does not fill the memory.
_MOST_AT_ONCE = 64
# A group whose time has come waits for the next look at its place.
_LOOK_AGAIN_S = 0.2


class Intake:
    """Takes what the sources tell, once each, and closes groups by the experiment's rule."""

    def __init__(
        self,
        catalogue: Generations,
        committer: Committer,
        handout: Handout,
        feed: Feed,
        clock: Clock,
        checksums: Checksums,
    ) -> None:
        self._catalogue = catalogue
        self._committer = committer
        self._handout = handout
        self._feed = feed
        self._clock = clock
        self._checksums = checksums
        self.gate = Gate()
        """Whatever is being let in, or closed, is inside."""
        self.sight: Callable[[], Sight] = Sight
        """From when to when it is known what came; whoever has the sources says so."""
        self._groups: dict[DataId, GroupFact] = {}
        self._comparing: set[tuple[str, Identity]] = set()
        self._room_to_compare = asyncio.Semaphore(_MOST_AT_ONCE)
        self._wake = asyncio.Event()

    def is_open(self, group: DataId) -> bool:
        """Whether a group can be closed."""
        return group in self._groups

    def resume(self, open_groups: list[GroupFact]) -> None:
        """Takes over the groups that were open when the last station ended.

        How long it was quiet counts from now: what came meanwhile is still to be found.
        """
        now = self._clock.now()
        self._groups = {
            group.data_id: replace(group, last_arrival_at=max(group.last_arrival_at, now)) for group in open_groups
        }

    async def follow(self, source: ArrivalSource) -> None:
        """Takes everything that a source tells, in batches, until cancelled."""
        room = asyncio.Semaphore(_MOST_AT_ONCE)
        async with asyncio.TaskGroup() as tasks, contextlib.aclosing(source.arrivals()) as arrivals:
            async for seen in arrivals:
                if isinstance(seen, MarkerSeen):
                    await _all_free(room)
                    async with self.gate.inside():
                        await self._close(self._groups.get(seen.group), f"marker {seen.name}")
                else:
                    await room.acquire()
                    tasks.create_task(self._take_one(seen, room))

    async def close_when_quiet(self) -> None:
        """Closes groups to which nothing more comes, and those that were complete at the start, until cancelled."""
        while True:
            now, sight = self._clock.now(), self.sight()
            for group in list(self._groups.values()):
                if reason := self._reason_to_close(group, now, sight):
                    async with self.gate.inside():
                        await self._close(group, reason)
            quiet = (quiet_at(self._closing, group, sight.since) for group in self._groups.values())
            next_at = min(quiet, default=math.inf)
            self._wake.clear()
            wait_s = None if math.isinf(next_at) else max(_LOOK_AGAIN_S, next_at - self._clock.now())
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def wake(self) -> None:
        """The rule by which groups close may have changed: look again."""
        self._wake.set()

    # --- inside -------------------------------------------------------------------------------------------------

    async def _take_one(self, seen: Arrival | Refusal, room: asyncio.Semaphore) -> None:
        rival = None
        try:
            async with self.gate.inside():
                if isinstance(seen, Refusal):
                    await self._refuse(seen)
                else:
                    rival = await self._take(seen)
        finally:
            room.release()
        if rival is not None and isinstance(seen, Arrival):
            await self._compare_once(seen, rival)

    async def _refuse(self, seen: Refusal) -> None:
        now = self._clock.now()
        if await self._committer.do(lambda connection: arrivals.refuse(connection, seen, now)):
            log.warning("refused %s: %s", seen.key, seen.reason)
            self._feed.tell("arrival", verdict=Verdict.REFUSED)

    async def _take(self, seen: Arrival, compared: arrivals.Rival | None = None) -> arrivals.Rival | None:
        """Returns what it must be compared with first."""
        intake = self._catalogue.now.intake(seen, offer=self._handout.offer)
        collections = self._catalogue.now.collections
        try:
            taken = await self._committer.do(
                lambda connection: arrivals.take(connection, seen, intake, collections, compared=compared)
            )
            for sub_job in taken.sub_jobs:
                await self._handout.add(sub_job)
        finally:
            for admission in intake.admissions:
                self._handout.withdraw(admission.pipeline, seen.data_id)
        if taken.verdict is not None:
            await self._tell(seen, taken)
        return taken.rival

    async def _tell(self, seen: Arrival, taken: arrivals.Taken) -> None:
        if taken.verdict is Verdict.CONFLICT:
            log.warning("conflict %s: %s", seen.identity.key, taken.reason)
        if taken.group is not None:
            self._groups[taken.group.data_id] = taken.group
            if reason := closes_by_count(self._closing, taken.group):
                await self._close(taken.group, reason)
            self._wake.set()
        self._feed.tell("arrival", verdict=taken.verdict, data_id=str(seen.data_id))

    async def _compare_once(self, seen: Arrival, rival: arrivals.Rival) -> None:
        """What a listing tells again while it is compared is not read again."""
        one = (seen.stream, seen.identity)
        if one in self._comparing:
            return
        self._comparing.add(one)
        try:
            async with self._room_to_compare:
                await self._compare(seen, rival)
        finally:
            self._comparing.discard(one)

    async def _compare(self, seen: Arrival, rival: arrivals.Rival) -> None:
        """Compares the bytes with those that were taken before; both may be large, and nobody waits for that."""
        try:
            read, compared = await self._checksums.compare(self._catalogue.now.buffered, seen, rival)
        except (OSError, InputChanged, StoreError):
            return  # gone, changed again, or not to be read now: the next listing tells
        async with self.gate.inside():
            await self._take(read, compared)

    @property
    def _closing(self) -> Closing:
        return self._catalogue.experiment.instrument.closing

    def _reason_to_close(self, group: GroupFact, now: float, sight: Sight) -> str | None:
        # By count too: the last station may have ended between the last arrival and the closing.
        if quiet_at(self._closing, group, sight.since) <= min(now, sight.until):
            return f"quiet for {self._closing.quiet_s:g} s"
        return closes_by_count(self._closing, group)

    async def _close(self, group: GroupFact | None, reason: str) -> None:
        if group is None or self._groups.pop(group.data_id, None) is None:
            return
        now = self._clock.now()
        sub_jobs = await self._committer.do(
            lambda connection: groups.close(connection, group, reason, self._catalogue.now.group_admissions, now)
        )
        log.info("group %s closed: %s", group.data_id, reason)
        for sub_job in sub_jobs:
            await self._handout.add(sub_job)
        self._feed.tell("group", group=str(group.data_id))


async def _all_free(room: asyncio.Semaphore) -> None:
    """Waits until everything that was taken before is in the ledger."""
    for _ in range(_MOST_AT_ONCE):
        await room.acquire()
    for _ in range(_MOST_AT_ONCE):
        room.release()
