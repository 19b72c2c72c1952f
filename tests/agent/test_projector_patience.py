"""What the projector waits for, and what it leaves out in the end; no server is needed for that."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing

import httpx
import pytest
from ledger_rows import T0
from recorded_books import Books

from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.ledger import agent_cursor
from p3s_prefect.agent.projector import Projector
from p3s_prefect.agent.record import PassRecord
from p3s_prefect.core.errors import ServiceError

DONE = {"quick": "done", "later": "done"}


class Record:
    """A server's record: what it has, by name, and which groups it takes and does not record."""

    def __init__(self, *lost: str) -> None:
        self.lost, self.is_well = lost, True
        self.names: set[str] = set()
        self.asked = 0

    async def write(self, passes: Sequence[PassRecord]) -> None:
        self.asked += 1
        if any(record.facts.group in self.lost for record in passes):
            raise ServiceError("the server took it, and did not record it")
        self.names |= {record.flow_run().name for record in passes}

    async def ping(self) -> None:
        if not self.is_well:
            raise httpx.ConnectError("nobody there")

    def forget(self) -> None:
        """Knows nothing by heart."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_PAUSE_S", "_LONGEST_PAUSE_S", "_LOOK_EVERY_S"):
        monkeypatch.setattr(f"p3s_prefect.agent.projector.{name}", 0.02)


@asynccontextmanager
async def recording(books: Books, record: Record) -> AsyncIterator[asyncio.Task[None]]:
    """A projector at work."""
    projector = Projector(books.home.read(), books.ledger, record, SystemClock())  # type: ignore[arg-type]
    task = asyncio.create_task(projector.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


def behind(books: Books) -> int:
    with books.ledger.reading() as connection:
        return agent_cursor.record_facts(connection, T0).behind


@pytest.fixture
def two(books: Books) -> Books:
    """A pass of run 1, and one of run 2."""
    with books.writing() as rows:
        books.unit(rows, 0, DONE)
        books.pass_id = rows.production_pass(rows.group("run=2"), "dqm")
        books.unit(rows, 1, DONE)
    return books


async def test_what_the_server_takes_and_never_records_keeps_nothing_else_back(
    two: Books, caplog: pytest.LogCaptureFixture
) -> None:
    """V21: after some tries the rest is recorded; the log names what was left out."""
    record = Record("run=1")
    async with recording(two, record):
        await until(lambda: behind(two) == 0)
    assert record.names == {"dqm run=2 pass 0"}
    assert "left out of the record: dqm run=1 pass 0" in caplog.text


@pytest.mark.parametrize(("lost", "is_well"), [(("run=1", "run=2"), True), (("run=1",), False)])
async def test_a_server_that_is_not_well_has_nothing_left_out(
    two: Books, caplog: pytest.LogCaptureFixture, lost: tuple[str, ...], is_well: bool
) -> None:
    """V21: where it records none of several passes, or does not answer for its health, no pass is to blame."""
    record = Record(*lost)
    record.is_well = is_well
    async with recording(two, record):
        await until(lambda: record.asked > 12)
        assert behind(two) == 6
        record.lost, record.is_well = (), True
        await until(lambda: behind(two) == 0)
    assert record.names == {"dqm run=1 pass 0", "dqm run=2 pass 0"}
    assert "left out of the record" not in caplog.text


async def test_an_agent_that_starts_while_the_ledger_is_away_goes_on_when_it_is_back(
    two: Books, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """V20, V21: its file is locked by another program for longer than a writer waits."""
    monkeypatch.setattr("p3s_prefect.adapters.ledger.sqlite.BUSY_TIMEOUT_S", 0.05)
    two.ledger.close()
    two.ledger = two.home.ledger(two.home.read())
    with closing(sqlite3.connect(two.ledger.url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        async with recording(two, Record()) as task:
            await until(lambda: task.done() or "the ledger cannot be written" in caplog.text)
            other.execute("ROLLBACK")
            await until(lambda: task.done() or behind(two) == 0)
            assert not task.done()
