"""The projector: follows the journal, and records in Prefect what happened. Nothing that computes waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

import httpx

from p3s_prefect.adapters.ledger import agent_cursor
from p3s_prefect.adapters.ledger.agent_cursor import Cursor
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.ledger.pass_facts import PassFacts, Touched
from p3s_prefect.adapters.ledger.projection import read_pass, touched
from p3s_prefect.agent.prefect_record import PrefectRecord
from p3s_prefect.agent.record import PassRecord
from p3s_prefect.core.errors import LedgerAway, ServiceError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.ports import Clock

log = logging.getLogger(__name__)

# A look at the newest number takes 0.1 ms.
_LOOK_EVERY_S = 0.25
# A line of the journal gives one or two events, of which a server records 100 to 250 a second.
_MOST_LINES = 500
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
# Each sign of life is a write to the ledger's disk.
_SIGN_EVERY_S = 10.0
# The server's own start takes 8 to 24 s: only what lasts longer is a problem.
_FORGIVEN_S = 30.0
# A server that finds the same thing malformed so often, or takes it and does not record it, will not do so the next
# time. A wrong key or address is no reason to leave anything out.
_MOST_REFUSALS = 3
_MALFORMED = (400, 413, 422)


class Projector:
    """Brings one ledger's journal into the record; its cursor is kept in the ledger."""

    def __init__(self, experiment: Experiment, ledger: Ledger, record: PrefectRecord, clock: Clock) -> None:
        self._experiment = experiment
        self._ledger = ledger
        self._record = record
        self._clock = clock
        self._signed_at = 0.0
        self._refusals = 0
        self._failing_since: float | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Records until it is cancelled."""
        loop = asyncio.get_running_loop()
        with self._ledger.listening(lambda: loop.call_soon_threadsafe(self._news.set)):
            await self._follow()

    async def _follow(self) -> None:
        cursor: Cursor | None = None
        while True:
            try:
                if cursor is None:
                    cursor = await asyncio.to_thread(self._open)
                    log.info("recording from line %d of the journal on", cursor.number)
                cursor = await self.step(cursor) or await self._rest(cursor)
            except LedgerAway as error:
                log.warning("%s; trying again in %.1f s", error.what, _LONGEST_PAUSE_S)
                await asyncio.sleep(_LONGEST_PAUSE_S)
            except (httpx.HTTPError, ServiceError) as error:
                await self._wait(error)
            else:
                self._refusals, self._failing_since, self._pause_s = 0, None, _FIRST_PAUSE_S

    async def step(self, cursor: Cursor) -> Cursor | None:
        """Records the next lines of the journal; None if there were none.

        Raises:
            httpx.HTTPError: the server cannot be reached, or refuses. Nothing is lost: it may be repeated.
            ServiceError: it did not record what it took.
        """
        read = await asyncio.to_thread(self._read, cursor)
        if read is None:
            return None
        found, passes = read
        records = [
            PassRecord(
                facts,
                site=cursor.site,
                experiment=self._experiment.experiment,
                most_units=self._experiment.prefect.record_units,
            )
            for facts in passes
        ]
        if self._refusals < _MOST_REFUSALS:
            await self._record.write(records)
        else:
            await self._write_what_goes(records)
        await asyncio.to_thread(self._move, found.number)
        return Cursor(site=cursor.site, number=found.number)

    # --- inside -------------------------------------------------------------------------------------------------

    async def _write_what_goes(self, records: Sequence[PassRecord]) -> None:
        """One pass that the server refuses again and again must not keep all that follow from being recorded.

        Where it takes several and records none of them, it is the server that fails, and nothing is left out.
        """
        refused: list[tuple[PassRecord, Exception]] = []
        for record in records:
            try:
                await self._record.write([record])
            except (httpx.HTTPStatusError, ServiceError) as error:
                if not _is_refusal(error):
                    raise
                refused.append((record, error))
                # Of a server that is not well, nothing follows about the pass.
                await self._record.ping()
        unrecorded = [why for _, why in refused if isinstance(why, ServiceError)]
        if 1 < len(records) == len(unrecorded):
            raise unrecorded[-1]
        for record, why in refused:
            log.error("left out of the record: %s: %s", record.flow_run().name, why)

    async def _wait(self, error: Exception) -> None:
        now = self._clock.now()
        since = self._failing_since = now if self._failing_since is None else self._failing_since
        self._refusals += _is_refusal(error)
        problem = _told(error)
        log.warning("%s; trying again in %.1f s", problem, self._pause_s)
        self._record.forget()
        with suppress(LedgerAway):
            await asyncio.to_thread(self._sign, problem if now - since > _FORGIVEN_S else "")
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    async def _rest(self, cursor: Cursor) -> Cursor:
        if self._clock.now() - self._signed_at > _SIGN_EVERY_S:
            await self._record.ping()
            await asyncio.to_thread(self._sign, "")
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_EVERY_S):
                await self._news.wait()
        self._news.clear()
        return cursor

    def _open(self) -> Cursor:
        with self._ledger.transaction() as connection:
            return agent_cursor.open_cursor(connection, self._clock.now())

    def _read(self, cursor: Cursor) -> tuple[Touched, list[PassFacts]] | None:
        with self._ledger.reading() as connection:
            found = touched(connection, cursor.number, _MOST_LINES)
            if found is None:
                return None
            return found, [
                read_pass(
                    connection,
                    pass_id,
                    most_units=self._experiment.prefect.record_units,
                    touched=sub_jobs,
                    changed_at=found.changed_at,
                )
                for pass_id, sub_jobs in found.passes.items()
            ]

    def _move(self, number: int) -> None:
        self._signed_at = self._clock.now()
        with self._ledger.transaction() as connection:
            agent_cursor.move(connection, number, self._signed_at)

    def _sign(self, problem: str) -> None:
        self._signed_at = self._clock.now()
        with self._ledger.transaction() as connection:
            agent_cursor.sign_of_life(connection, self._signed_at, problem)


def _is_refusal(error: Exception) -> bool:
    """Whether it may be the fault of what was sent: malformed, or taken and not recorded."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _MALFORMED
    return isinstance(error, ServiceError)


def _told(error: Exception) -> str:
    if isinstance(error, ServiceError):
        return error.what
    if isinstance(error, httpx.HTTPStatusError):
        return f"Prefect answers {error.response.status_code} to {error.request.url.path}"
    return f"Prefect cannot be reached: {type(error).__name__}"
