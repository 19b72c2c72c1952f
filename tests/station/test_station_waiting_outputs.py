"""The store away while units are processed: results wait with the pilots, and nothing is lost or doubled (P13).

Real pilots, a real S3 server, each of which is killed, as is the station.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
from collections import Counter
from collections.abc import Collection
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clusters import Cluster
from damaged_stores import OneIsBad
from s3_servers import BUCKET, SeaweedServer
from sites import Declared, NewSite, Running, Site, declare, obey, total
from test_station_requests import ask
from typer.testing import CliRunner

from p3s_prefect.adapters import s3_away
from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.ledger import execution, schema
from p3s_prefect.adapters.pilot.waiting_outputs import WaitingOutputs
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.errors import ChecksumMismatch, ObjectMissing, StoreError, StoreUnreachable
from p3s_prefect.core.records import Manifest, WaitingTold
from p3s_prefect.station import production, service, waiting
from p3s_prefect.station.store_watch import StoreWatch

pytestmark = pytest.mark.sockets

QUICK = {"steps": [obey()], "retries": 0}
DEEP = {"after": ["quick"], "steps": [{**obey("deep"), "inputs": {"raw": "made-quick"}}], "retries": 0}
# A server that was started again, and pilots that ask every 10 s.
PATIENCE_S = 90.0


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process asks, it asks often; pilots are as they are."""
    monkeypatch.setattr(service, "StoreWatch", partial(StoreWatch, ask_every_s=0.3, ask_again_s=0.3))
    monkeypatch.setattr(s3_away, "_REMEMBERED_S", 0.2)
    monkeypatch.setattr(waiting, "_LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(waiting, "_ASK_PILOTS_S", 0.3)


@pytest.fixture
def away(tmp_path: Path) -> Path:
    """Where outputs wait."""
    return tmp_path / "waiting"


def _declared(server: SeaweedServer, away: Path, stages: Declared | None = None, **other: Any) -> Declared:
    pilots = {"waiting_directory": str(away), "cache_directory": f"{away}-cache", **other.pop("pilots", {})}
    return declare(
        stages or {"quick": QUICK},
        pipeline={"breaker": {"failures": 1, "share": 0.01}},
        store={"url": f"s3://{BUCKET}/site", "endpoint": server.endpoint, "sweep_after_s": 3600},
        pilots=pilots,
        **other,
    )


def waits(site: Site) -> int:
    return sum(row.state == "running" and row.waits_since is not None for row in site.rows(schema.attempt))


async def until_waiting(site: Site, number: int) -> None:
    await site.until(lambda: waits(site) == number, f"{number} wait", PATIENCE_S)


async def until_recorded(site: Site) -> None:
    await site.until(lambda: site.count(schema.attempt, state="done", is_recorded=False) == 0, "all are recorded", 60)


def everything_once(site: Site, away: Path, stage_runs: int, *, tried_once: bool = True) -> None:
    """Ledger, store and commit records agree, each stage run was done by one attempt, and nothing waits any more."""
    assert Counter(site.stages().values()) == {"done": stage_runs}
    attempts = site.rows(schema.attempt)
    done = [row for row in attempts if row.state == "done"]
    assert len({row.stage_run_id for row in done}) == len(done) == stage_runs
    if tried_once:
        assert done == attempts
    assert {(row.failures, row.losses) for row in site.rows(schema.stage_run)} == {(0, 0)}
    datasets = site.rows(schema.dataset)
    assert len({(row.dataset_type, row.data_id) for row in datasets}) == len(datasets) == stage_runs
    for row in datasets:
        assert hashlib.sha256(site.store.read_bytes(row.key)).hexdigest() == row.sha256
    for row in done:
        place = f"{row.prefix}/{row.execution}"
        assert Manifest.model_validate_json(site.store.read_bytes(f"{place}/manifest.json")).attempt_id == row.id
        assert json.loads(site.store.read_bytes(f"{place}/commit.json"))["attempt"]["id"] == row.id
    assert {path.name for path in away.iterdir()} <= {".lock"}


async def told(site: Site, *words: str) -> str:
    """What a command says, beside the station in this process, which it asks."""
    given = [*words, "--home", str(site.path)]
    answer = await asyncio.to_thread(CliRunner().invoke, commands(), given, catch_exceptions=False)
    return " ".join(answer.output.split())


async def test_results_wait_with_the_pilots_and_other_units_go_on(
    own_server: SeaweedServer, pilots: Cluster, new_site: NewSite, away: Path
) -> None:
    """P13, V18 (waiting_directory): three times as many units as slots; each runs once, though no retry is allowed."""
    stages = {"quick": QUICK, "deep": DEEP, "total": total("deep")}
    site = new_site(_declared(own_server, away, stages, instrument={"closing": {"count": 7}}), scheduler=pilots.address)
    async with site.running(slots=2) as running:
        site.arrive(0)
        await site.until_done(1)
        own_server.kill()
        for subrun in range(1, 7):
            site.arrive(subrun)
        await until_waiting(site, 6)
        assert site.stages("deep")["run=1 subrun=3", "deep"] == "waiting"
        assert running.station.handout.dispatcher.in_flight == 0
        await _is_told(site, running)
        own_server.start()
        await site.until_settled(8, patience_s=PATIENCE_S)
        await until_recorded(site)
        await site.until(lambda: not running.station.store_watch.trouble, "the page says that the store is back")
        rows = {row["name"] for row in (await running.get("/api/status"))["health"]}
        assert "waiting outputs" not in rows
    everything_once(site, away, 15)
    assert site.text("total", "run=1").startswith("done=7")


async def _is_told(site: Site, running: Running) -> None:
    """The page, `p3s why` and `p3s show` say where the results are."""
    await site.until(lambda: running.station.store_watch.trouble, "the store is missed")
    await site.until(lambda: running.station.waiting.size_bytes, "the pilots are asked")
    status = await running.get("/api/status")
    row = next(row for row in status["health"] if row["name"] == "waiting outputs")
    assert (row["status"], "of 6 stages" in row["actual"]) == ("degraded", True)
    assert status["station"]["waiting_bytes"] > 6 * len("data of 1 1")
    why = await told(site, "why", "run=1 subrun=3")
    assert "Its results have been waiting on" in why
    assert "pilots.waiting_bytes" in why
    assert "results wait on" in await told(site, "show", "run=1 subrun=3")


async def test_everybody_is_killed_while_results_wait_and_drain(
    own_server: SeaweedServer, pilots: Cluster, new_site: NewSite, away: Path
) -> None:
    """P13, V20: kill -9 of all pilots and of the station while outputs wait; of pilots while they drain.

    The next station starts without its store, and takes up what waits: nothing runs again.
    """
    site = new_site(_declared(own_server, away), scheduler=pilots.address)
    station = site.spawn()
    station.until_up()
    own_server.kill()
    for subrun in range(12):
        site.arrive(subrun, "x" * 5000)
    await until_waiting(site, 12)
    assert station.end(signal.SIGKILL) == -signal.SIGKILL
    for _ in range(2):
        pilots.kill_worker()
        pilots.add_worker()
    station = site.spawn()
    station.until_up()
    assert waits(site) == 12
    site.arrive(12)
    await until_waiting(site, 13)
    own_server.start()
    for _ in range(6):
        await asyncio.sleep(0.3)  # any moment will do
        pilots.kill_worker()
        pilots.add_worker()
    await site.until_settled(13, patience_s=PATIENCE_S)
    await until_recorded(site)
    assert station.end(signal.SIGTERM) == 0
    await site.until(lambda: {path.name for path in away.iterdir()} <= {".lock"}, "nothing waits", PATIENCE_S)
    everything_once(site, away, 13)


async def test_a_station_that_ended_while_a_stage_ran_leaves_it_to_the_store(
    own_server: SeaweedServer, pilots: Cluster, new_site: NewSite, away: Path, tmp_path: Path
) -> None:
    """P13, V13, V20: its outputs waited before anybody heard of them; what was killed on the way runs again."""
    notes = tmp_path / "notes"
    stages = {"quick": {"steps": [obey(notes=str(notes))], "retries": 0}}
    site = new_site(_declared(own_server, away, stages), scheduler=pilots.address)
    station = site.spawn()
    station.until_up()
    site.arrive(0, f"until {tmp_path}/go")
    site.arrive(1, f"until {tmp_path}/never")
    await site.until(lambda: notes.exists() and notes.read_text().count("begin") == 2)
    own_server.kill()
    # Frozen, it hears nothing of what its pilots report.
    station.signal(signal.SIGSTOP)
    (tmp_path / "go").touch()
    await site.until(lambda: list(away.glob("*/about.json")), "one of them waits", PATIENCE_S)
    station.end(signal.SIGKILL)
    async with site.running(slots=2):
        assert waits(site) == 2
        assert "which can tell" in await told(site, "why", "run=1 subrun=1")
        (tmp_path / "never").touch()
        own_server.start()
        await site.until_settled(2, patience_s=PATIENCE_S)
        await until_recorded(site)
    everything_once(site, away, 2, tried_once=False)
    assert Counter(row.state for row in site.rows(schema.attempt)) == {"done": 2, "stopped": 1}
    assert notes.read_text().count("begin quick run=1 subrun=0 ") == 1


async def test_outputs_that_are_gone_with_their_machine_are_made_again(
    own_server: SeaweedServer, pilots: Cluster, new_site: NewSite, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P13: not counted against the unit, and only when a machine had time to come back."""
    monkeypatch.setattr(waiting, "_MACHINE_RESTARTS_S", 1.0)
    site = new_site(_declared(own_server, away), scheduler=pilots.address)
    async with site.running(slots=2):
        own_server.kill()
        site.arrive(0)
        site.arrive(1)
        await until_waiting(site, 2)
        away.rename(f"{away}-gone")
        await asyncio.sleep(2.0)
        assert waits(site) == 2, "while the store is away nobody can tell"
        own_server.start()
        await site.until_settled(2, patience_s=PATIENCE_S)
        await until_recorded(site)
    assert Counter(row.state for row in site.rows(schema.attempt)) == {"done": 2, "stopped": 2}
    away.mkdir(exist_ok=True)
    everything_once(site, away, 2, tried_once=False)


async def test_outputs_that_the_store_can_never_take_fail_their_unit(
    own_server: SeaweedServer, pilots: Cluster, new_site: NewSite, away: Path
) -> None:
    """P7, P13: the group closes without it; pilots say it until the station has heard it."""
    stages = {"quick": QUICK, "total": total("quick")}
    declared = _declared(own_server, away, stages, instrument={"closing": {"count": 2}})
    site = new_site(declared, scheduler=pilots.address)
    async with site.running(slots=2):
        own_server.kill()
        site.arrive(0)
        site.arrive(1)
        await until_waiting(site, 2)
        prefix = next(row.prefix for row in site.rows(schema.attempt))
        await site.until(lambda: _give_up(WaitingOutputs(away), prefix), "nobody is at it")
        own_server.start()
        await site.until_settled(3, patience_s=PATIENCE_S)
        await until_recorded(site)
        await site.until(lambda: {path.name for path in away.iterdir()} <= {".lock"}, "the pilots were told")
    assert site.text("total", "run=1").startswith("done=1 failed=1")
    assert Counter(row.state for row in site.rows(schema.attempt)) == {"done": 2, "failed": 1}
    assert {row.reason for row in site.rows(schema.attempt) if row.state == "failed"} == {"it is bad"}


def _give_up(there: WaitingOutputs, prefix: str) -> bool:
    """As a pilot does."""
    for found in there.executions():
        about = there.about(found)
        if about is not None and about.prefix == prefix:
            with there.alone(found) as is_ours:
                if is_ours:
                    there.give_up(about, "it is bad")
                    there.remove(found)
                    return True
    return False


async def test_what_is_cancelled_while_it_waits_is_removed(
    own_server: SeaweedServer, pilots: Cluster, new_site: NewSite, away: Path
) -> None:
    """P13: what waited on the machine goes, and what comes to the store of it is never published.

    Pilots are told once of all that is cancelled together.
    """
    site = new_site(_declared(own_server, away, {"quick": QUICK, "deep": DEEP}), scheduler=pilots.address)
    async with site.running(slots=2) as running:
        own_server.kill()
        for subrun in range(5):
            site.arrive(subrun)
        await until_waiting(site, 5)
        assert (await ask(site, "cancel", target="run=1 subrun=1")).is_granted
        await site.until(lambda: len(list(away.glob("*/about.json"))) == 4, "its outputs are removed")
        dropped: list[Collection[str]] = []
        drop = running.station.pilots.drop_waiting

        async def noted(prefixes: Collection[str]) -> None:
            dropped.append(prefixes)
            await drop(prefixes)

        running.station.pilots.drop_waiting = noted  # type: ignore[method-assign]
        facts = await running.station.committer.do(execution.open_sub_jobs)
        both = [fact for fact in facts if str(fact.data_id) in {"run=1 subrun=3", "run=1 subrun=4"}]
        await running.station.handout.cancel(both, "they are not wanted")
        assert [len(prefixes) for prefixes in dropped] == [2]
        await site.until(lambda: len(list(away.glob("*/about.json"))) == 2, "their outputs are removed")
        own_server.start()
        await site.until_settled(5, patience_s=PATIENCE_S)
        await until_recorded(site)
    states = Counter(site.stages().values())
    assert states == {"done": 4, "cancelled": 6}
    assert {row.data_id for row in site.rows(schema.dataset)} == {"run=1 subrun=0", "run=1 subrun=2"}
    assert Counter(row.state for row in site.rows(schema.attempt)) == {"done": 4, "stopped": 3}


async def test_what_is_cancelled_while_its_loss_is_committed_does_not_run_again(
    own_server: SeaweedServer, pilots: Cluster, new_site: NewSite, away: Path
) -> None:
    """P13: at that moment it neither waits nor runs."""
    site = new_site(_declared(own_server, away), scheduler=pilots.address)
    async with site.running(slots=2) as running:
        own_server.kill()
        site.arrive(0)
        await until_waiting(site, 1)
        handout = running.station.handout
        facts = await running.station.committer.do(execution.open_sub_jobs)
        (one,) = handout.waiting.values()
        losing = asyncio.create_task(handout.lose_waiting(one))
        await asyncio.sleep(0)
        assert not handout.waiting
        assert not losing.done()
        await handout.cancel(facts, "it is not wanted")
        await losing
        await site.until(lambda: set(site.stages().values()) == {"cancelled"}, "it is cancelled")
        own_server.start()
        await site.until(lambda: not running.station.store_watch.trouble, "the store is back", PATIENCE_S)
    assert [row.state for row in site.rows(schema.attempt)] == ["stopped"]


class _Held:
    """What waits, and which of it is lost."""

    def __init__(self, *found: execution.Waiting) -> None:
        self.waiting = {one.stage_run_id: one for one in found}

    def wait_on(self, one: execution.Waiting) -> None:
        self.waiting[one.stage_run_id] = self.waiting.pop(one.stage_run_id)

    async def publish_waiting(self, one: execution.Waiting, manifest: Manifest) -> None:
        assert manifest.attempt_id == one.attempt_id
        del self.waiting[one.stage_run_id]

    async def lose_waiting(self, one: execution.Waiting) -> None:
        del self.waiting[one.stage_run_id]


class _Clock:
    """A wall clock that somebody sets."""

    def __init__(self, time: float) -> None:
        self.time = time

    def now(self) -> float:
        return self.time


class _NobodyHas:
    """Pilots that have nothing."""

    asked = 0

    async def waiting(self) -> WaitingTold:
        self.asked += 1
        return WaitingTold()


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
async def test_a_clock_that_is_set_neither_stops_the_asking_nor_ends_the_patience(
    tmp_path: Path, step_s: float
) -> None:
    """P13: a machine has its ten minutes to come back, by a clock that nobody sets."""
    clock, passed_s = _Clock(20_000.0), [5.0]
    one = execution.Waiting(
        attempt_id=1, stage_run_id=1, prefix="runs/a1", opened_at=9_000.0, since=10_000.0, pilot="there"
    )
    held, pool = _Held(one), _NobodyHas()
    parts: list[Any] = [held, DirectoryStore(tmp_path), SimpleNamespace(trouble=""), pool, clock]
    looks = waiting.WaitingAttempts(*parts, lambda: passed_s[0])
    await looks.look()
    clock.time += step_s
    passed_s[0] += 10.0
    await looks.look()
    assert (pool.asked, len(held.waiting)) == (2, 1)
    passed_s[0] += 600.0
    await looks.look()
    assert (pool.asked, len(held.waiting)) == (3, 0)


def _waits(number: int) -> execution.Waiting:
    return execution.Waiting(
        attempt_id=number,
        stage_run_id=number,
        prefix=f"runs/a{number}",
        opened_at=0.0,
        since=0.0,
        pilot="there",
        execution=f"e{number}",
    )


class _Tells:
    """Pilots that tell this."""

    def __init__(self, told: WaitingTold) -> None:
        self.told = told

    async def waiting(self) -> WaitingTold:
        return self.told


async def test_one_that_nobody_can_read_is_named_and_the_others_can_be_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """P13, S8: with its size; it may still be read, and is not taken for lost."""
    passed_s = [5.0]
    held = _Held(_waits(0), _waits(1))
    pool = _Tells(WaitingTold(unreadable={"e0": 2000}))
    parts: list[Any] = [held, DirectoryStore(tmp_path), SimpleNamespace(trouble=""), pool, _Clock(100.0)]
    looks = waiting.WaitingAttempts(*parts, lambda: passed_s[0])
    for _ in range(3):
        await looks.look()
        assert looks.size_bytes == 2000
        passed_s[0] += 400.0
    assert list(held.waiting) == [0]
    (told,) = [record.getMessage() for record in caplog.records]
    assert ("execution e0" in told, "2.0 kB" in told) == (True, True)


async def test_what_was_cancelled_while_it_was_missed_is_not_remembered(tmp_path: Path) -> None:
    """P13: a station runs for months."""
    held = _Held(_waits(0), _waits(1))
    parts: list[Any] = [held, DirectoryStore(tmp_path), SimpleNamespace(trouble=""), _NobodyHas(), _Clock(100.0)]
    looks = waiting.WaitingAttempts(*parts)
    await looks.look()
    assert looks._missed_since.keys() == {0, 1}
    del held.waiting[0]
    await looks.look()
    assert looks._missed_since.keys() == {1}


def _left(one: execution.Waiting) -> Manifest:
    """What an execution without outputs leaves."""
    return Manifest(
        attempt_id=one.attempt_id,
        execution="e1",
        collection="c",
        data_id="run=1",
        stage="quick",
        outputs=[],
        products=[],
        summary={},
        lineage=[],
        coverage={},
        steps=[],
        log=None,
        pilot="there",
        started_at=0.0,
        ended_at=1.0,
    )


@pytest.mark.parametrize("error", [ChecksumMismatch, ObjectMissing, StoreError, StoreUnreachable])
async def test_one_that_cannot_be_read_keeps_no_other_from_being_published(
    tmp_path: Path, error: type[StoreError]
) -> None:
    """P13, S8: of more than are looked at in one go, the others are published in two."""
    number = waiting._AT_ONCE + 1
    store = OneIsBad(tmp_path, "runs/a00/", error("it is bad"))
    many = [
        execution.Waiting(
            attempt_id=one, stage_run_id=one, prefix=f"runs/a{one:02}", opened_at=0.0, since=0.0, pilot="there"
        )
        for one in range(number)
    ]
    for one in many:
        store.put_bytes(f"{one.prefix}/e1/manifest.json", _left(one).model_dump_json().encode())
    held = _Held(*many)
    parts: list[Any] = [held, store, SimpleNamespace(trouble=""), _NobodyHas(), _Clock(100.0)]
    looks = waiting.WaitingAttempts(*parts)
    for _ in range(2):
        await looks.look()
    assert list(held.waiting) == [0]


async def test_what_waits_when_the_configuration_changes_is_processed_again(
    own_server: SeaweedServer, pilots: Cluster, new_site: NewSite, away: Path
) -> None:
    """P13, V23: in a new pass, as everything that was open; the old results are published nowhere."""
    site = new_site(_declared(own_server, away), scheduler=pilots.address)
    async with site.running(slots=2):
        own_server.kill()
        site.arrive(0)
        await until_waiting(site, 1)
    changed = {"quick": {"steps": [{**obey(), "timeout_s": 21}], "retries": 0}}
    site.declare(_declared(own_server, away, changed))
    async with site.running(slots=2):
        await site.until(lambda: waits(site) == 1 and site.count(schema.attempt) == 2, "it waits in a new pass")
        own_server.start()
        await site.until_settled(2, patience_s=PATIENCE_S)
        await until_recorded(site)
    assert [row.state for row in site.rows(schema.attempt)] == ["stopped", "done"]
    assert [row.state for row in site.rows(schema.sub_job)] == ["cancelled", "done"]


async def test_without_room_to_wait_units_wait_in_the_queue_and_none_fails(
    own_server: SeaweedServer, pilots: Cluster, new_site: NewSite, away: Path
) -> None:
    """P13, V17, V18 (waiting_bytes): no retry is allowed and the breaker is strict, and neither counts an outage."""
    site = new_site(_declared(own_server, away, pilots={"waiting_bytes": 0}), scheduler=pilots.address)
    async with site.running(slots=2) as running:
        own_server.kill()
        for subrun in range(4):
            site.arrive(subrun)
        await site.until(lambda: len(site.rows(schema.attempt)) >= 6, "they are tried again", PATIENCE_S)
        assert {row.state for row in site.rows(schema.attempt)} <= {"stopped", "running"}
        assert not running.station.breakers.facts()
        assert "does not count" in await told(site, "why", "run=1 subrun=0")
        assert not away.exists()
        own_server.start()
        await site.until_settled(4, patience_s=PATIENCE_S)
        await until_recorded(site)
    away.mkdir()
    everything_once(site, away, 4, tried_once=False)
    # The first few cost a second each, and each next one waits twice as long as the one before.
    assert max(Counter(row.stage_run_id for row in site.rows(schema.attempt)).values()) <= 6


async def test_a_production_finds_what_waits_and_does_not_wait_for_it(
    own_server: SeaweedServer, pilots: Cluster, new_site: NewSite, away: Path
) -> None:
    """P13: on the plain road nobody looks for it later; what is not in the store runs again."""
    site = new_site(_declared(own_server, away), scheduler=pilots.address)
    async with site.running(slots=2):
        own_server.kill()
        site.arrive(0)
        await until_waiting(site, 1)
    pilots.close()
    own_server.start()
    await site.until(lambda: _serves(site), "the server finds its objects again", PATIENCE_S)
    with production.opened(site.path, site.experiment):
        assert [(row.state, row.waits_since) for row in site.rows(schema.attempt)] == [("stopped", None)]


def _serves(site: Site) -> bool:
    with contextlib.suppress(StoreUnreachable):
        return bool(site.store.read_bytes("owner.json"))
    return False
