"""The station's ledger on a PostgreSQL server that is cut off, killed and started again; and the next station."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from postgresql import Ledgers, Server, server
from sites import Declared, NewSite, Site, StationProcess, declare, obey
from sqlalchemy import Connection, select
from tcp_proxy import TcpProxy
from typer.testing import CliRunner

from p3s_prefect.adapters.free_ports import free_port
from p3s_prefect.adapters.ledger import journal, postgresql, schema
from p3s_prefect.adapters.ledger.database import Lease, Ledger, acquire
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.errors import LeaseLost, LedgerAway, LedgerError
from p3s_prefect.station import committer as committing
from p3s_prefect.station import replacing, upkeep
from p3s_prefect.station.committer import Committer

pytestmark = pytest.mark.sockets


@pytest.fixture(scope="module")
def reached() -> Iterator[Server]:
    """A server on a port, which these tests may end and start again."""
    with server(port=free_port()) as found:
        yield found


@pytest.fixture(scope="module")
def ledgers(reached: Server) -> Ledgers:
    return Ledgers(reached)


@pytest.fixture
def proxy(reached: Server) -> Iterator[TcpProxy]:
    with closing(TcpProxy(reached.port)) as found:
        yield found


@pytest.fixture
def name(ledgers: Ledgers) -> Iterator[str]:
    """An empty database."""
    with ledgers.new() as found:
        yield found


@pytest.fixture
def ledger(reached: Server, name: str) -> Iterator[Ledger]:
    with closing(Ledger(reached.url(name))) as found:
        yield found


@pytest.fixture
async def committer(
    ledger: Ledger, reached: Server, proxy: TcpProxy, name: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Committer]:
    """One that reaches the server through the proxy."""
    monkeypatch.setattr(committing, "_RETRY_S", 0.05)
    with ledger.transaction() as connection:
        lease = acquire(connection, namespace="test", holder="here:1", lease_s=60, now=0)
    with closing(Ledger(reached.url(name, port=proxy.port))) as through:
        async with Committer(through, lease) as found:
            yield found


def note(connection: Connection, text: str) -> str:
    journal.write(connection, 0.0, text, "test")
    return text


def notes(ledger: Ledger) -> list[tuple[int, str]]:
    with ledger.reading() as connection:
        rows = connection.execute(select(schema.journal).order_by(schema.journal.c.number))
        return [(row.number, row.kind) for row in rows]


# --- a commit whose end nobody has seen -----------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["commit", "answer"])
async def test_a_commit_whose_end_was_not_seen_is_done_once(
    ledger: Ledger, committer: Committer, proxy: TcpProxy, lost: str
) -> None:
    """V13, V20: the connection is lost before the commit, or before its answer; either way all is written once."""
    assert await committer.do(lambda c: note(c, "before")) == "before"
    proxy.lose = lost
    found = await asyncio.gather(*(committer.do(lambda c, n=n: note(c, f"note {n}")) for n in range(5)))  # type: ignore[misc]
    assert proxy.lost.is_set()
    assert found == [f"note {number}" for number in range(5)]
    assert await committer.do(lambda c: note(c, "after")) == "after"
    told = ["before", *found, "after"]
    assert notes(ledger) == list(enumerate(told, start=1))


async def test_the_server_dies_again_and_again_while_it_is_written(
    ledger: Ledger, committer: Committer, reached: Server
) -> None:
    """V20: as by `pg_ctl -m immediate`, three times at any moment; nothing is lost, and nothing is there twice."""
    told: list[str] = []

    async def write() -> None:
        while len(told) < 60 or not killed.done():
            told.append(await committer.do(lambda c: note(c, f"note {len(told)}")))

    async def kill() -> None:
        for _ in range(3):
            begun = len(told)
            while len(told) < begun + 7:
                await asyncio.sleep(0.005)
            # Not in a thread: the server ends with the thread that has started it.
            reached.stop()
            await asyncio.sleep(0.1)
            reached.start()

    killed = asyncio.create_task(kill())
    await asyncio.wait_for(asyncio.gather(write(), killed), 60)
    assert notes(ledger) == list(enumerate(told, start=1))
    assert committer.trouble == ""


async def test_a_server_that_falls_silent_is_told(
    committer: Committer, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P19, V20: no error comes, and no answer either."""
    monkeypatch.setattr(committing, "_PATIENCE_S", 0.2)
    await committer.do(lambda c: note(c, "before"))
    proxy.cut()
    doing = asyncio.create_task(committer.do(lambda c: note(c, "late")))
    async with asyncio.timeout(10):
        while not committer.trouble:
            await asyncio.sleep(0.02)
    assert committer.trouble.startswith("the ledger has not answered for ")
    proxy.mend()
    assert await asyncio.wait_for(doing, 20) == "late"
    assert committer.trouble == ""


# --- the fence ------------------------------------------------------------------------------------------------------


def test_who_was_replaced_in_the_middle_of_a_transaction_commits_nothing(
    ledger: Ledger, reached: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B7: paused before its commit, it keeps the next one waiting for a while; then the server ends it."""
    monkeypatch.setattr(postgresql, "IDLE_WRITER_S", 1)
    with ledger.transaction() as connection:
        old = acquire(connection, namespace="test", holder="a:1", lease_s=1, now=upkeep.time_of(connection))
    found: list[Lease] = []
    with closing(Ledger(reached.url(name))) as other:
        with pytest.raises(LedgerAway):
            _sleep_in_a_transaction(ledger, old, lambda: found.append(_taken(other)))
        with pytest.raises(LeaseLost), ledger.transaction(old) as connection:
            note(connection, "too late")
        (new,) = found
        with other.transaction(new) as connection:
            note(connection, "of the new holder")
    assert notes(ledger) == [(1, "of the new holder")]


def _sleep_in_a_transaction(ledger: Ledger, lease: Lease, meanwhile: Callable[[], None]) -> None:
    with ledger.transaction(lease) as connection:
        note(connection, "of the old holder")
        meanwhile()
        note(connection, "after its sleep")


def _taken(ledger: Ledger) -> Lease:
    """Waits behind the old holder's transaction, and then until its lease has run out."""
    while True:
        try:
            return upkeep.claim_lease(ledger, "test", 1)
        except LeaseLost:
            time.sleep(0.1)


def test_clocks_an_hour_apart_do_not_let_two_hold_it(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """B7: a lease runs out by the database's clock, whatever those of the stations say."""
    monkeypatch.setattr(upkeep, "_is_gone", lambda _: False)
    lease = upkeep.claim_lease(ledger, "test", 60)
    ahead, behind = time.time() + 3600, time.time() - 3600
    for clock in (ahead, behind):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        with pytest.raises(LeaseLost, match="for another"):
            upkeep.claim_lease(ledger, "test", 60)
        with ledger.transaction(lease) as connection:
            upkeep.prolong(connection, lease, 60)
    with ledger.transaction(lease) as connection:
        upkeep.release(connection, lease)
    assert upkeep.claim_lease(ledger, "test", 60).token > lease.token


def test_a_clock_that_was_set_back_does_not_keep_a_lease_alive(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """B7: who watches for the length of a lease without a sign of life takes it."""
    monkeypatch.setattr(upkeep, "_is_gone", lambda _: False)
    with ledger.transaction() as connection:
        dead = acquire(connection, namespace="test", holder="dead:1", lease_s=3600, now=upkeep.time_of(connection))
    watch = upkeep.LeaseWatch()
    with pytest.raises(LeaseLost):
        upkeep.claim_lease(ledger, "test", 0.2, watch)
    time.sleep(0.3)
    assert upkeep.claim_lease(ledger, "test", 0.2, watch).token > dead.token


# --- stations -------------------------------------------------------------------------------------------------------


NewBooks = Callable[..., Site]


@pytest.fixture
def site_on(new_site: NewSite, reached: Server, name: str) -> NewBooks:
    """Makes a site whose ledger is on the server, over loopback, by this port if one is given."""

    def make(stages: Any = None, *, port: int = 0, home: str = "home", lease_s: float = 2, **more: Any) -> Site:
        url = reached.url(name, port=port or reached.port)
        declared: Declared = declare(stages, station={"lease_s": lease_s}, ledger={"url": url}, **more)
        return new_site(declared, home=home)

    return make


async def test_a_station_runs_on_a_server_that_dies(site_on: NewBooks, reached: Server) -> None:
    """S4, V20: a whole station with real pilots; the server is killed in the middle, and it goes on by itself."""
    site = site_on(stream={"list_every_s": 0.3})
    async with site.running() as running:
        for subrun in range(4):
            site.arrive(subrun)
        await site.until_done(2)
        reached.stop()
        for subrun in range(4, 8):
            site.arrive(subrun)
        await site.until(lambda: running.station.committer.trouble, "it says that the ledger is away")
        answer = await running.get("/api/status")
        assert answer["status"] == "down"
        assert "cannot be" in next(row["cause"] for row in answer["health"] if row["name"] == "ledger")
        assert {"ledger", "pilots"} <= {row["name"] for row in await asyncio.to_thread(told, site)}
        reached.start()
        await site.until_done(8)
        assert running.station.committer.trouble == ""
        assert (await running.get("/api/status"))["account"][0]["done"] == 8
    _check_books(site, 8)


async def test_a_ledger_on_a_server_is_filled_again_from_the_store(
    site_on: NewBooks, ledgers: Ledgers, name: str
) -> None:
    """S10, S4: an emptied database has the same datasets again, and is free for the next station."""
    site = site_on()
    async with site.running():
        for subrun in range(3):
            site.arrive(subrun)
        await site.until_done(3)
        await site.until(lambda: site.count(schema.attempt, is_recorded=False) == 0, "all are recorded")
    before = site.rows(schema.dataset)
    with pytest.raises(LedgerError, match="not empty"):
        replacing.rebuild(site.home, replace=False, progress=lambda *_: None)
    ledgers.empty(name)
    done = replacing.rebuild(site.home, replace=False, progress=lambda *_: None)
    assert (done.taken.publications, done.taken.findings) == (3, [])
    assert site.rows(schema.dataset) == before
    async with site.running():
        site.arrive(3)
        await site.until(lambda: site.units().get("run=1 subrun=3") == "done", "the next unit is done")


def told(site: Site) -> Any:
    """The health rows of `p3s status`."""
    found = CliRunner().invoke(commands(), ["status", "--home", str(site.path), "--json"])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)["health"]


def _check_books(site: Site, units: int) -> None:
    """Each unit once, each result once, and no number of the journal missing."""
    done = [row for row in site.rows(schema.sub_job) if row.per == "unit"]
    assert Counter(row.data_id for row in done) == {f"run=1 subrun={n}": 1 for n in range(units)}
    made = Counter((row.dataset_type, row.data_id) for row in site.rows(schema.dataset))
    assert set(made.values()) == {1}
    assert len(made) == units
    ends = Counter(row.detail["stage_run"] for row in site.rows(schema.journal) if row.kind == "stage.done")
    assert set(ends.values()) == {1}
    assert [row.number for row in site.rows(schema.journal)] == list(range(1, site.count(schema.journal) + 1))


async def _two_stations(one: Site, other: Site) -> tuple[StationProcess, StationProcess]:
    first = one.spawn()
    await asyncio.to_thread(first.until_up)
    second = other.spawn()
    await other.until(lambda: other.log.exists() and "waiting: " in other.log.read_text(), "the second waits")
    return first, second


def test_a_station_whose_server_is_away_at_its_start_is_tried_again(new_site: NewSite) -> None:
    """V20: nobody has to start it when the server is back; what is wrong is told meanwhile."""
    nobody = f"postgresql+psycopg://p3s@127.0.0.1:{free_port()}/p3s"
    site = new_site(declare(ledger={"url": nobody}))
    assert [(row["name"], row["status"]) for row in told(site)] == [("station", "down"), ("ledger", "down")]
    shown = CliRunner().invoke(commands(), ["status", "--home", str(site.path)])
    assert shown.exit_code == 0, shown.output
    assert "not known as long as the ledger is away" in shown.output
    assert site.spawn().join() == 1
    complaint = site.home.complaint()
    assert complaint is not None
    assert complaint.is_tried_again
    assert "pg_isready" in complaint.text


async def test_a_station_is_stopped_while_its_server_is_away(site_on: NewBooks, reached: Server) -> None:
    """V22, V20: nobody has to kill it; what ran is settled by the next station, and nothing is lost."""
    site = site_on(stream={"list_every_s": 0.3}, stages={"quick": {"steps": [obey()]}})
    first = site.spawn()
    first.until_up()
    site.arrive(0, "sleep 0.5")
    await site.until(lambda: site.stages().get(("run=1 subrun=0", "quick")) == "running")
    reached.stop()
    assert await asyncio.to_thread(first.end, signal.SIGTERM) == 0
    reached.start()
    async with site.running():
        await site.until_done(1)
    _check_books(site, 1)


@pytest.mark.parametrize("how", ["killed", "paused", "cut off"])
async def test_the_next_station_takes_over(site_on: NewBooks, proxy: TcpProxy, how: str, tmp_path: Path) -> None:
    """V20, B7, B10: whatever became of the first, all is processed once, and no two stations' writes are accepted."""
    places: Declared = {
        "stream": {"directory": str(tmp_path / "home" / "incoming"), "list_every_s": 0.3},
        "store": {"directory": str(tmp_path / "store")},
    }
    first_site = site_on(port=proxy.port, home="home", **places)
    second_site = site_on(home="other", **places)
    first, second = await _two_stations(first_site, second_site)
    for subrun in range(6):
        first_site.arrive(subrun, "sleep 0.3")
    await second_site.until_done(1)
    if how == "killed":
        first.end(signal.SIGKILL)
    elif how == "paused":
        first.signal(signal.SIGSTOP)
    else:
        proxy.cut()
    await asyncio.to_thread(second.until_up)
    if how == "paused":
        first.signal(signal.SIGCONT)
    if how == "cut off":
        proxy.mend()
    if how != "killed":
        assert await asyncio.to_thread(first.join) == 1
        assert "no longer holds the lease" in first_site.log.read_text()
    for subrun in range(6, 9):
        first_site.arrive(subrun)
    await second_site.until_done(9)
    _check_books(second_site, 9)
    (lease,) = second_site.rows(schema.lease)
    assert lease.holder.rpartition(":")[2] == str(second.pid)
    assert second.end(signal.SIGTERM) == 0
