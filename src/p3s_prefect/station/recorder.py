"""Commit records: beside each published attempt, so that the ledger can be rebuilt from the store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING

from p3s_prefect.adapters.ledger import execution
from p3s_prefect.adapters.ledger.commit_records import configuration_content
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.commit_record import CommitRecord, configuration_key, read_commit_record
from p3s_prefect.core.errors import LedgerAway, ObjectExists, RecordUnreadable, StoreError
from p3s_prefect.core.ports import ObjectStore

if TYPE_CHECKING:
    from p3s_prefect.station.committer import Committer

log = logging.getLogger(__name__)

_RETRY_S = 5.0
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


class Recorder:
    """Writes commit records behind the publications, in their order."""

    def __init__(self, store: ObjectStore, committer: Committer, ledger: Ledger) -> None:
        self._writer = RecordWriter(store, ledger)
        self._committer = committer
        self._waiting: asyncio.Queue[CommitRecord] = asyncio.Queue()
        self._written: list[int] = []
        self.trouble = ""

    def add(self, record: CommitRecord) -> None:
        """Takes a commit record."""
        self._waiting.put_nowait(record)

    async def run(self) -> None:
        """Writes records until cancelled."""
        while True:
            try:
                record = await asyncio.wait_for(self._waiting.get(), _NOTE_EVERY_S if self._written else None)
            except TimeoutError:
                await self.note()
                continue
            await self._write(record)
            self._written.append(record.attempt.id)
            if len(self._written) >= 1000:
                await self.note()

    async def drain(self) -> None:
        """Writes what waits, and notes it; what cannot be written within a few seconds, the next station writes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                while not self._waiting.empty():
                    record = self._waiting.get_nowait()
                    await self._write(record)
                    self._written.append(record.attempt.id)
        await self.note()

    async def note(self) -> None:
        """Notes in the ledger which records are written."""
        written, self._written = self._written, []
        if written:
            await self._committer.do(lambda connection: execution.mark_recorded(connection, written))

    async def _write(self, record: CommitRecord) -> None:
        while True:
            try:
                await asyncio.to_thread(self._writer.write, record)
            except (StoreError, LedgerAway) as error:
                # Of the ledger the committer tells.
                self.trouble = error.what if isinstance(error, StoreError) else ""
                log.error("%s; trying again", error)
                await asyncio.sleep(_RETRY_S)
            else:
                self.trouble = ""
                return
