"""The station's only writer, with a ledger that is locked, read-only or somebody else's."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sites import NewSite, declare
from sqlalchemy import Connection, event, make_url
from sqlalchemy.exc import IntegrityError

from p3s_prefect.adapters.ledger import journal, schema, sqlite
from p3s_prefect.adapters.ledger.database import Ledger, acquire
from p3s_prefect.core.errors import Conflict, LeaseLost
from p3s_prefect.station import committer as committing
from p3s_prefect.station.committer import Committer


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger(f"sqlite:///{tmp_path}/ledger.db")) as found:
        found.migrate()
        yield found


@pytest.fixture
async def committer(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Committer]:
    monkeypatch.setattr(committing, "_RETRY_S", 0.05)
    with ledger.transaction() as connection:
        lease = acquire(connection, namespace="test", holder="here:1", lease_s=60, now=0)
    async with Committer(ledger, lease) as found:
        yield found


def note(connection: Connection, text: str) -> str:
    journal.write(connection, 0.0, text, "test")
    return text


def notes(ledger: Ledger) -> list[str]:
    with ledger.reading() as connection:
        return [row.kind for row in connection.execute(schema.journal.select())]


async def test_what_waits_goes_into_one_commit_in_order(ledger: Ledger, committer: Committer) -> None:
    """V13: many operations, few transactions, and the order in which they came."""
    begins: list[str] = []
    event.listen(ledger._engine, "begin", lambda _: begins.append("begin"))
    texts = [f"note {number}" for number in range(100)]
    answers = await asyncio.gather(*(committer.do(lambda c, t=text: note(c, t)) for text in texts))  # type: ignore[misc]
    assert answers == texts == notes(ledger)
    assert len(begins) <= 4


async def test_an_operation_that_raises_is_undone_alone(ledger: Ledger, committer: Committer) -> None:
    """V13: what it wrote before is gone, what stands beside it in the same transaction stays."""

    def wrong(connection: Connection) -> None:
        note(connection, "wrong")
        raise Conflict("as a test wants it")

    def broken(connection: Connection) -> None:
        note(connection, "broken")
        for _ in range(2):
            connection.execute(schema.lease.insert().values(namespace="other", holder="x", token=1, expires_at=0))

    found = await asyncio.gather(
        committer.do(lambda c: note(c, "before")),
        committer.do(wrong),
        committer.do(broken),
        committer.do(lambda c: note(c, "after")),
        return_exceptions=True,
    )
    assert [type(answer) for answer in found] == [str, Conflict, IntegrityError, str]
    assert notes(ledger) == ["before", "after"]


async def test_a_locked_ledger_is_tried_again(
    ledger: Ledger, committer: Committer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V20: another process holds it for a while; meanwhile `trouble` says so, and then all is written once."""
    ledger.close()
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.1)
    ledger._engine = sqlite.make_engine(make_url(ledger.url))
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        doing = asyncio.create_task(committer.do(lambda c: note(c, "late")))
        async with asyncio.timeout(5):
            while not committer.trouble:
                await asyncio.sleep(0.01)
        assert committer.trouble == "the ledger cannot be written: database is locked"
        assert not doing.done()
        other.execute("COMMIT")
    assert await asyncio.wait_for(doing, 5) == "late"
    assert committer.trouble == ""
    assert notes(ledger) == ["late"]


async def test_a_ledger_that_cannot_be_written_is_tried_again(ledger: Ledger, committer: Committer) -> None:
    """V20: as on a disk that was mounted read-only."""
    read_only = True

    def guard(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(f"PRAGMA query_only = {'ON' if read_only else 'OFF'}")

    event.listen(ledger._engine, "checkout", guard)
    doing = asyncio.create_task(committer.do(lambda c: note(c, "late")))
    async with asyncio.timeout(5):
        while "readonly" not in committer.trouble:
            await asyncio.sleep(0.01)
    read_only = False
    assert await asyncio.wait_for(doing, 5) == "late"
    assert notes(ledger) == ["late"]


async def test_a_holder_that_was_replaced_writes_nothing_more(ledger: Ledger, committer: Committer) -> None:
    """B7 (one site): all that wait, and all that come later, hear that the lease is lost."""
    with ledger.transaction() as connection:
        acquire(connection, namespace="test", holder="there:2", lease_s=60, now=100)
    waiting = [asyncio.create_task(committer.do(lambda c: note(c, "too late"))) for _ in range(3)]
    for task in waiting:
        with pytest.raises(LeaseLost, match="here:1 no longer holds the lease"):
            await task
    with pytest.raises(LeaseLost):
        await committer.do(lambda c: note(c, "too late"))
    assert notes(ledger) == []


async def test_a_ledger_that_is_destroyed_leaves_nobody_waiting(
    ledger: Ledger, committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V20: an error that will not pass ends the station, which is started anew, instead of hanging it."""

    def broken(*_: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(ledger, "transaction", broken)
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        await asyncio.wait_for(committer.do(lambda c: note(c, "lost")), 5)
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        await asyncio.wait_for(committer.do(lambda c: note(c, "lost")), 5)


@pytest.mark.sockets
async def test_the_station_outlasts_a_locked_ledger(new_site: NewSite) -> None:
    """V20: what arrives while another process locks the ledger for two seconds is taken afterwards."""
    site = new_site(declare())
    async with site.running():
        site.arrive(0)
        await site.until_done(1)

        def lock() -> None:
            with closing(sqlite3.connect(site.path / "ledger.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                time.sleep(2)
                other.execute("ROLLBACK")

        locking = threading.Thread(target=lock)
        locking.start()
        for subrun in range(1, 10):
            site.arrive(subrun)
        await site.until_done(10)
        locking.join()
