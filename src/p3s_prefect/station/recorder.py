"""Commit records: beside each published attempt, so that the ledger can be rebuilt from the store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p3s_prefect.adapters.ledger import execution
from p3s_prefect.adapters.ledger.commit_records import configuration_content
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.commit_record import CommitRecord, configuration_key, read_commit_record
from p3s_prefect.core.errors import LedgerAway, ObjectExists, P3sError, RecordUnreadable, StoreError
from p3s_prefect.core.ports import ObjectStore

if TYPE_CHECKING:
    from p3s_prefect.station.committer import Committer

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 5.0
_DRAIN_S = 5.0
# That a record was written is noted in the ledger this often: at worst, so many seconds' records are written again.
_NOTE_EVERY_S = 1.0


class RecordWriter:
    """Writes commit records, and before the first of a configuration what stands behind its number."""

    def __init__(self, store: ObjectStore, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger
        self._configurations: set[str] = set()

    def write(self, record: CommitRecord) -> None:
        """Writes a commit record; writing it again changes nothing."""
        number = record.collection.configuration_id
        if number not in self._configurations:
            with self._ledger.reading() as connection:
                content = configuration_content(connection, number)
            self._store.put_bytes(configuration_key(number), json.dumps(content, sort_keys=True).encode())
            self._configurations.add(number)
        try:
            self._store.put_bytes(record.key, record.content())
        except ObjectExists:
            # Written before this was noted; what has changed since, such as another stage's state, is no matter.
            if not self._stands(record):
                raise

    def _stands(self, record: CommitRecord) -> bool:
        with contextlib.suppress(RecordUnreadable):
            return read_commit_record(self._store.read_bytes(record.key)).attempt == record.attempt
        return False


@dataclass(frozen=True, kw_only=True)
class _Refused:
    """A record that could not be written."""

    record: CommitRecord
    why: str
    """What the store said; empty where the ledger could not be read, of which the committer tells."""
    pause_s: float
    """How long it rests before it is tried again,"""
    due_at: float
    """which is then, by the clock of the event loop."""


class Recorder:
    """Writes commit records behind the publications; those that the store refuses hold up no others."""

    def __init__(self, store: ObjectStore, committer: Committer, ledger: Ledger) -> None:
        self._writer = RecordWriter(store, ledger)
        self._committer = committer
        self._waiting: asyncio.Queue[CommitRecord] = asyncio.Queue()
        self._refused: dict[int, _Refused] = {}
        """By attempt; each is tried again at its own time."""
        self._written: list[int] = []
        self._note_at: float | None = None
        """When those are noted, by the clock of the event loop; None if there are none."""

    @property
    def refused(self) -> int:
        """How many records the store does not take."""
        return sum(bool(one.why) for one in self._refused.values())

    @property
    def trouble(self) -> str:
        """Why the first of them is refused; empty if none is."""
        return next((one.why for one in self._refused.values() if one.why), "")

    def add(self, record: CommitRecord) -> None:
        """Takes a commit record."""
        self._waiting.put_nowait(record)

    async def run(self) -> None:
        """Writes records until cancelled."""
        while True:
            record = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._next_at()):
                    record = await self._waiting.get()
            if record is not None:
                await self._write(record)
            # One at a time: a new record waits for one that is refused at most.
            await self._try_again()
            if self._note_at is not None and _now() >= self._note_at:
                await self.note()

    async def drain(self) -> None:
        """Writes what waits, and notes it; what cannot be written within a few seconds, the next station writes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                while not self._waiting.empty():
                    await self._write(self._waiting.get_nowait())
                for refused in list(self._refused.values()):
                    await self._write(refused.record)
        await self.note()

    async def note(self) -> None:
        """Notes in the ledger which records are written."""
        written, self._written, self._note_at = self._written, [], None
        if written:
            await self._committer.do(lambda connection: execution.mark_recorded(connection, written))

    # --- inside -------------------------------------------------------------------------------------------------

    def _next_at(self) -> float | None:
        """When there is something to do though no new record comes."""
        times = [one.due_at for one in self._refused.values()]
        return min(times if self._note_at is None else [*times, self._note_at], default=None)

    async def _try_again(self) -> None:
        first = min(self._refused.values(), key=lambda one: one.due_at, default=None)
        if first is not None and _now() >= first.due_at:
            await self._write(first.record)

    async def _write(self, record: CommitRecord) -> None:
        attempt_id = record.attempt.id
        try:
            await asyncio.to_thread(self._writer.write, record)
        except (StoreError, LedgerAway) as error:
            self._refuse(record, error)
        else:
            self._refused.pop(attempt_id, None)
            self._written.append(attempt_id)
            if self._note_at is None:
                self._note_at = _now() + _NOTE_EVERY_S

    def _refuse(self, record: CommitRecord, error: P3sError) -> None:
        before, why = self._refused.get(record.attempt.id), error.what if isinstance(error, StoreError) else ""
        if before is None or before.why != why:
            log.error("%s; trying again", error)
        pause_s = _FIRST_RETRY_S if before is None else min(2 * before.pause_s, _LAST_RETRY_S)
        self._refused[record.attempt.id] = _Refused(
            record=record,
            why=why,
            pause_s=pause_s,
            due_at=_now() + pause_s,
        )


def _now() -> float:
    return asyncio.get_running_loop().time()
