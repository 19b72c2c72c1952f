"""From arrivals to sub-jobs, and from open groups to closed ones."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from p3s_prefect.adapters.bucket_objects import copy_arrived, is_bucket_path
from p3s_prefect.adapters.directory_store import file_sha256
from p3s_prefect.adapters.ledger import arrivals, groups
from p3s_prefect.core.closing import GroupFact, closes_by_count, quiet_at
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import InputChanged, StoreError
from p3s_prefect.core.experiment import Closing
from p3s_prefect.core.ports import ArrivalSource, Clock, MarkerSeen, Refusal
from p3s_prefect.core.records import Arrival, Verdict
from p3s_prefect.station.gate import Gate

if TYPE_CHECKING:
    from p3s_prefect.station.committer import Committer
    from p3s_prefect.station.feed import Feed
    from p3s_prefect.station.generations import Generations
    from p3s_prefect.station.handout import Handout

log = logging.getLogger(__name__)

# Ingested at once, so that one commit takes many; few enough that a burst does not fill the memory.
_MOST_AT_ONCE = 64


class Intake:
    """Takes what the sources tell, once each, and closes groups by the experiment's rule."""

    def __init__(
        self, catalogue: Generations, committer: Committer, handout: Handout, feed: Feed, clock: Clock
    ) -> None:
        self._catalogue = catalogue
        self._committer = committer
        self._handout = handout
        self._feed = feed
        self._clock = clock
        self.gate = Gate()
        """Whatever is being let in, or closed, is inside."""
        self._groups: dict[DataId, GroupFact] = {}
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
        async with asyncio.TaskGroup() as tasks:
            async for seen in source.arrivals():
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
            now = self._clock.now()
            for group in list(self._groups.values()):
                if reason := self._reason_to_close(group, now):
                    async with self.gate.inside():
                        await self._close(group, reason)
            next_at = min((quiet_at(self._closing, group) for group in self._groups.values()), default=math.inf)
            self._wake.clear()
            wait_s = None if math.isinf(next_at) else max(0.0, next_at - self._clock.now())
            try:
                await asyncio.wait_for(self._wake.wait(), wait_s)
            except TimeoutError:
                continue

    def wake(self) -> None:
        """The rule by which groups close may have changed: look again."""
        self._wake.set()

    # --- inside -------------------------------------------------------------------------------------------------

    async def _take_one(self, seen: Arrival | Refusal, room: asyncio.Semaphore) -> None:
        try:
            async with self.gate.inside():
                await (self._refuse(seen) if isinstance(seen, Refusal) else self._take(seen))
        finally:
            room.release()

    async def _refuse(self, seen: Refusal) -> None:
        now = self._clock.now()
        if await self._committer.do(lambda connection: arrivals.refuse(connection, seen, now)):
            log.warning("refused %s: %s", seen.key, seen.reason)
            self._feed.tell("arrival", verdict=Verdict.REFUSED)

    async def _take(self, seen: Arrival) -> None:
        intake = self._catalogue.now.intake(seen, offer=self._handout.offer)
        try:
            taken = await self._commit(seen, intake)
            for sub_job in taken.sub_jobs:
                await self._handout.add(sub_job)
        finally:
            for admission in intake.admissions:
                self._handout.withdraw(admission.pipeline, seen.data_id)
        if taken.verdict is None:
            return
        if taken.verdict is Verdict.CONFLICT:
            log.warning("conflict %s: %s", seen.identity.key, taken.reason)
        if taken.group is not None:
            self._groups[taken.group.data_id] = taken.group
            if reason := closes_by_count(self._closing, taken.group):
                await self._close(taken.group, reason)
            self._wake.set()
        self._feed.tell("arrival", verdict=taken.verdict, data_id=str(seen.data_id))

    async def _commit(self, seen: Arrival, intake: arrivals.Intake) -> arrivals.Taken:
        collections = self._catalogue.now.collections
        taken = await self._committer.do(lambda connection: arrivals.take(connection, seen, intake, collections))
        return taken if taken.rival is None else await self._compare(seen, intake, taken.rival)

    async def _compare(self, seen: Arrival, intake: arrivals.Intake, rival: arrivals.Rival) -> arrivals.Taken:
        """Compares the bytes with those that were taken before; both may be large, so not in this thread."""
        try:
            compared, rival_sha256 = await asyncio.to_thread(checksums, seen, rival)
        except (OSError, InputChanged, StoreError):
            return arrivals.Taken()  # gone or changed again: the next listing tells
        return await self._committer.do(
            lambda connection: arrivals.take(
                connection, compared, intake, self._catalogue.now.collections, rival_sha256=rival_sha256
            )
        )

    @property
    def _closing(self) -> Closing:
        return self._catalogue.experiment.instrument.closing

    def _reason_to_close(self, group: GroupFact, now: float) -> str | None:
        # By count too: the last station may have ended between the last arrival and the closing.
        if quiet_at(self._closing, group) <= now:
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


def checksums(seen: Arrival, rival: arrivals.Rival) -> tuple[Arrival, str | None]:
    """The arrival with its checksum, and the checksum of the file that was taken before, if it can still be had.

    Raises:
        OSError: the arrival's file cannot be read.
        InputChanged: the object in a bucket is no longer the one that arrived.
        StoreError: it cannot be read.
    """
    if is_bucket_path(seen.path):
        sha256 = copy_arrived(seen.path, seen.identity.etag)[1]
    else:
        sha256 = file_sha256(Path(seen.path))
    return replace(seen, sha256=sha256), _checksum_if_same(rival)


async def _all_free(room: asyncio.Semaphore) -> None:
    """Waits until everything that was taken before is in the ledger."""
    for _ in range(_MOST_AT_ONCE):
        await room.acquire()
    for _ in range(_MOST_AT_ONCE):
        room.release()


def _checksum_if_same(rival: arrivals.Rival) -> str | None:
    """The checksum of the file that was taken before, if it still is that file."""
    if rival.sha256 is not None:
        return rival.sha256
    if is_bucket_path(rival.path):
        with contextlib.suppress(InputChanged):
            return copy_arrived(rival.path, rival.identity.etag)[1]
        return None
    try:
        found = os.lstat(rival.path)
        if (found.st_size, found.st_mtime_ns) != (rival.identity.size, rival.identity.mtime_ns):
            return None
        return file_sha256(Path(rival.path))
    except OSError:
        return None
