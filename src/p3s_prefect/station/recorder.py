"""Commit records: beside each published attempt, so that the ledger can be rebuilt from the store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from p3s_prefect.adapters.ledger import execution
from p3s_prefect.core.errors import StoreError
from p3s_prefect.core.ports import ObjectStore

if TYPE_CHECKING:
    from p3s_prefect.station.committer import Committer

log = logging.getLogger(__name__)

_RETRY_S = 5.0
_DRAIN_S = 5.0
# That a record was written is noted in the ledger this often: at worst, so many seconds' records are written again.
_NOTE_EVERY_S = 1.0


def write_record(store: ObjectStore, record: Mapping[str, Any]) -> None:
    """Writes a commit record; writing it again changes nothing."""
    store.put_bytes(
        f"{record['prefix']}/{record['execution']}/commit.json", json.dumps(record, sort_keys=True).encode()
    )


class Recorder:
    """Writes commit records behind the publications, in their order."""

    def __init__(self, store: ObjectStore, committer: Committer) -> None:
        self._store = store
        self._committer = committer
        self._waiting: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self._written: list[int] = []
        self.trouble = ""

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes a commit record (see `execution.commit_record`)."""
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
            self._written.append(record["attempt_id"])
            if len(self._written) >= 1000:
                await self.note()

    async def drain(self) -> None:
        """Writes what waits, and notes it; what cannot be written within a few seconds, the next station writes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                while not self._waiting.empty():
                    record = self._waiting.get_nowait()
                    await self._write(record)
                    self._written.append(record["attempt_id"])
        await self.note()

    async def note(self) -> None:
        """Notes in the ledger which records are written."""
        written, self._written = self._written, []
        if written:
            await self._committer.do(lambda connection: execution.mark_recorded(connection, written))

    async def _write(self, record: Mapping[str, Any]) -> None:
        while True:
            try:
                await asyncio.to_thread(write_record, self._store, record)
            except StoreError as error:
                self.trouble = error.what
                log.error("%s; trying again", error)
                await asyncio.sleep(_RETRY_S)
            else:
                self.trouble = ""
                return
