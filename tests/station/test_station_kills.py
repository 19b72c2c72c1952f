"""The station killed at any moment: nothing is lost, nothing is published twice, nobody sees half an output."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters import Cluster
from postgresql import Ledgers, server
from s3_servers import BUCKET, SeaweedServer
from sites import Declared, NewSite, Site, declare, obey, shell, total
from sqlalchemy import select

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.core.records import Manifest

pytestmark = pytest.mark.sockets

KILLS = int(os.environ.get("P3S_KILLS", "15"))


class Reader(threading.Thread):
    """Reads ledger and store all the time, and notes what it should never see."""

    def __init__(self, site: Site) -> None:
        super().__init__(daemon=True)
        self._site = site
        self._ended = threading.Event()
        self.last = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self._ended.is_set():
            self.look()
            time.sleep(0.02)

    def look(self) -> None:
        query = select(schema.dataset, schema.attempt.c.state).join(schema.attempt)
        new = query.where(schema.dataset.c.id > self.last).order_by(schema.dataset.c.id)
        for row in self._site.read(lambda connection: connection.execute(new).all()):
            self.last = row.id
            content = self._site.store.read_bytes(row.key)
            if hashlib.sha256(content).hexdigest() != row.sha256 or len(content) != row.size:
                self.wrong.append(f"{row.key} is not whole")
            if row.state != "done":
                self.wrong.append(f"{row.key} belongs to an attempt that is {row.state}")

    def end(self) -> None:
        self._ended.set()
        self.join()
        self.look()


Place = Callable[[Declared], Site]


@pytest.fixture
def on_servers(own_server: SeaweedServer, pilots: Cluster, new_site: NewSite) -> Iterator[Place]:
    """Makes a site whose results are in a bucket, and whose ledger is on a PostgreSQL server."""
    with server() as found, Ledgers(found).new() as name:

        def make(declared: Declared) -> Site:
            store = declared["store"] | {"url": f"s3://{BUCKET}/site", "endpoint": own_server.endpoint}
            there = {"store": store, "ledger": {"url": found.url(name)}}
            return new_site(declared | there, scheduler=pilots.address)

        yield make


@pytest.mark.timeout(300 + 20 * KILLS)
async def test_the_station_killed_at_random_moments(new_site: NewSite) -> None:
    """V13, V20, P22: kill -9, 15 times or P3S_KILLS, over 16 units each, with two stages and a total of each run."""
    await _killed_at_random_moments(new_site, KILLS, lease_s=60)


@pytest.mark.timeout(300 + 20 * KILLS)
async def test_the_station_killed_at_random_moments_beside_servers(on_servers: Place) -> None:
    """V13, V20, S3, S4: the same, a fifth as often; the next station waits until the lease of the last is over."""
    await _killed_at_random_moments(on_servers, KILLS // 5, lease_s=3)


async def _killed_at_random_moments(place: Place, kills: int, *, lease_s: float) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    units = 16 * kills
    stages = {
        "quick": {"steps": [obey("quick")]},
        "deep": {"after": ["quick"], "steps": [obey("deep")]},
        "total": total(),
    }
    closing, store = {"count": units // 4}, {"sweep_after_s": 0.8}
    site = place(declare(stages, instrument={"closing": closing}, station={"lease_s": lease_s}, store=store))
    reader = Reader(site)
    reader.start()
    station = site.spawn()
    for kill in range(kills):
        for number in range(16 * kill, 16 * (kill + 1)):
            site.arrive(number % (units // 4), run=1 + number // (units // 4))
        if kill % 5:
            station.until_up()
        await asyncio.sleep(chance.uniform(0, 0.8))  # any moment will do
        assert station.end(signal.SIGKILL) == -signal.SIGKILL
        station = site.spawn()
    await site.until_settled(units + 4, patience_s=120)
    await site.until(lambda: site.count(schema.attempt, state="done", is_recorded=False) == 0, "all are recorded")
    await site.until(lambda: not _orphans(site), "orphans are swept")
    assert station.end(signal.SIGTERM) == 0
    reader.end()
    assert reader.wrong == []
    _everything_once(site, units)


def _everything_once(site: Site, units: int) -> None:
    assert Counter(site.stages().values()) == {"done": 2 * units + 4}
    published = Counter((row.dataset_type, row.data_id) for row in site.rows(schema.dataset))
    assert set(published.values()) == {1}
    assert len(published) == 2 * units + 4
    done = [row for row in site.rows(schema.attempt) if row.state == "done"]
    assert len({row.stage_run_id for row in done}) == len(done) == 2 * units + 4
    for row in done:
        manifest = Manifest.model_validate_json(site.store.read_bytes(f"{row.prefix}/{row.execution}/manifest.json"))
        assert manifest.attempt_id == row.id
        assert site.store.read_bytes(f"{row.prefix}/{row.execution}/commit.json")
    assert all(row.coverage == {"done": units // 4} for row in done if row.coverage)
    assert {row.losses for row in site.rows(schema.stage_run)} == {0}


def _orphans(site: Site) -> set[str]:
    """Objects that nothing in the ledger names."""
    kept = set()
    for row in site.rows(schema.attempt):
        kept |= {f"{row.prefix}/{row.execution}/{name}" for name in ("commit.json", "manifest.json")} | {row.log_key}
    kept |= {row.key for table in (schema.dataset, schema.product) for row in site.rows(table)}
    return {found.key for found in site.store.list("runs/")} - kept


async def test_a_complete_manifest_is_published_without_running_again(new_site: NewSite, tmp_path: Path) -> None:
    """V13: killed while the pilot finishes: the restart publishes what stands in the store; the payload ran once."""
    notes = tmp_path / "notes"
    site = new_site(declare({"quick": {"steps": [obey(notes=str(notes))]}}))
    station = site.spawn()
    station.until_up()
    site.arrive(0, f"until {tmp_path}/go")
    site.arrive(1, f"until {tmp_path}/go")
    await site.until(lambda: notes.exists() and notes.read_text().count("begin") == 2)
    # Frozen, it hears nothing of what its pilots report.
    station.signal(signal.SIGSTOP)
    (tmp_path / "go").touch()
    await site.until(lambda: len(_named(site, "/manifest.json")) == 2, "the pilots have finished")
    station.end(signal.SIGKILL)
    assert site.rows(schema.dataset) == []
    async with site.running():
        await site.until_done(2)
    assert notes.read_text().count("begin") == 2
    assert [row.state for row in site.rows(schema.attempt)] == ["done", "done"]
    assert len(_named(site, "/commit.json")) == 2


def _named(site: Site, ending: str) -> list[str]:
    return [found.key for found in site.store.list("runs/") if found.key.endswith(ending)]


async def test_orphans_are_swept_and_logs_of_failures_kept(new_site: NewSite) -> None:
    """V13, V18 (sweep_after_s): what no publication names goes; what explains a failure, or was published, stays."""
    script = 'echo x > "$P3S_OUTPUT_MADE"; grep -q bad "$P3S_INPUT_RAW" && { echo because >&2; exit 1; }; exit 0'
    steps = [{**shell(script), "outputs": {"made": "made-kind"}}]
    declared = declare({"quick": {"steps": steps, "retries": 1, "backoff_s": 0}}, store={"sweep_after_s": 0.5})
    site = new_site(declared)
    store = site.store
    half = site.path / "store" / "runs" / ".writing-0123"
    half.parent.mkdir(parents=True)
    half.write_text("half")
    async with site.running():
        site.arrive(0, "bad")
        site.arrive(1, "good")
        await site.until_settled(2)
        collection = f"runs/{site.rows(schema.run_collection)[0].name}"
        # A unit and a stage may bear the words that keys are made of.
        foreign = f"{collection}/run=1/subrun=attempt1/attempt2/attempt0"
        store.put_bytes(f"{foreign}/e1/made.txt", b"of a station that died")
        store.put_bytes(f"{collection}/run=1/subrun=2/quick/attempt0/e1/made.txt", b"published")
        store.put_bytes(f"{collection}/run=1/subrun=2/quick/attempt0/e1/commit.json", b"{}")
        store.put_bytes(f"{collection}/run=1/subrun=2/quick/attempt0/e2/made.txt", b"executed twice")
        await site.until(lambda: f"{foreign}/e1/made.txt" not in _named(site, ""), "the orphan is swept")
        await site.until(lambda: not half.exists(), "what was half written is swept")
    logs = [site.store.read_bytes(row.log_key) for row in site.rows(schema.attempt) if row.state == "failed"]
    assert [log.splitlines()[0] for log in logs] == [b"because"] * 2
    assert site.text("made-kind", "run=1 subrun=1") == "x\n"
    # Published according to its commit record: it is the ledger that does not know of it.
    left = {key.rpartition("attempt0/")[2] for key in _named(site, "") if "subrun=2" in key}
    assert {"e1/made.txt", "e1/commit.json"} <= left


async def test_two_stations_do_not_write_at_once(new_site: NewSite) -> None:
    """V13, B7 (one site): a second station waits for the lease, and takes over at once when the first is killed."""
    site = new_site(declare(station={"lease_s": 3600}))
    first = site.spawn()
    first.until_up()
    second = site.spawn()
    site.arrive(0)
    await site.until_done(1)
    assert site.home.station().pid == first.pid  # type: ignore[union-attr]
    first.end(signal.SIGKILL)
    # The lease would last for an hour.
    second.until_up()
    site.arrive(1)
    await site.until_done(2)
    (lease,) = site.rows(schema.lease)
    assert lease.holder.rpartition(":")[2] == str(second.pid)
    assert second.end(signal.SIGTERM) == 0


async def test_a_station_that_was_replaced_stops(new_site: NewSite) -> None:
    """V13, V18 (lease_s): frozen beyond its lease, it finds another in its place, and says why it ends."""
    site = new_site(declare(station={"lease_s": 1}))
    first = site.spawn()
    first.until_up()
    first.signal(signal.SIGSTOP)
    second = site.spawn()
    second.until_up()
    for subrun in range(3):
        site.arrive(subrun)
    first.signal(signal.SIGCONT)
    # Not as after a complaint, with which it would be left alone: started anew, it is a spare.
    assert first.join() == 1
    assert not (site.home.run / "complaint.json").exists()
    said = site.log.read_text()
    assert "no longer holds the lease on 'test'" in said
    assert "Another station has taken over" in said
    assert site.home.station().pid == second.pid  # type: ignore[union-attr]
    await site.until_done(3)
    assert second.end(signal.SIGTERM) == 0
    assert len(site.rows(schema.sub_job)) == 3
