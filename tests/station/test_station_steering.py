"""What people set by command, on a station that runs: who goes first, who waits, and how it is told."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from clusters import Cluster
from sites import Declared, NewSite, Site, declare, obey
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from p3s_prefect.adapters.ledger import overrides, requests, schema
from p3s_prefect.adapters.steering import Steering
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.overrides import Override, OverrideKind, Target

pytestmark = pytest.mark.sockets

TWO_STAGES: dict[str, Declared] = {
    "quick": {"steps": [obey("quick")]},
    "deep": {"after": ["quick"], "steps": [obey("deep")]},
}


def steer(site: Site) -> Steering:
    return Steering(site.experiment, site.ledger, by="ana")


def begun(site: Site) -> list[str]:
    """Data ids of attempts in the order in which they were opened."""
    stage_of = {row.id: row.sub_job_id for row in site.rows(schema.stage_run)}
    unit_of = {row.id: row.data_id for row in site.rows(schema.sub_job)}
    return [unit_of[stage_of[row.stage_run_id]] for row in site.rows(schema.attempt)]


def number(site: Site, state: str) -> int:
    return Counter(site.stages().values())[state]


async def test_a_priority_changes_the_order_of_what_waits_and_nothing_else(new_site: NewSite, tmp_path: Path) -> None:
    """P10: what was queued last goes next, in the order that was asked for; what runs is not touched."""
    gate = tmp_path / "gate"
    site = new_site(declare())
    async with site.running(slots=2) as running:
        for subrun in range(2):
            site.arrive(subrun, f"until {gate}", age_s=100 - subrun)
        await site.until(lambda: number(site, "running") == 2)
        for subrun in range(3, 8):
            site.arrive(subrun, age_s=100 - subrun)
        await site.until(lambda: number(site, "queued") == 5)
        steer(site).priority("run=1 subrun=6", 20, why="the shift wants it")
        steer(site).priority("dqm run=1 subrun=7", 10, why="and then this one")
        steer(site).priority("run=1 subrun=3", -1, why="this one may wait")
        await running.until_steered()
        assert number(site, "running") == 2
        assert site.count(schema.attempt) == 2
        gate.touch()
        await site.until_done(7)
    order = [int(unit.rpartition("=")[2]) for unit in begun(site)]
    assert sorted(order[:2]) == [0, 1]
    assert order[2:] == [6, 7, 4, 5, 3]
    assert all(row.state == "done" for row in site.rows(schema.attempt))


async def test_what_was_held_while_the_station_was_stopped_does_not_expire(new_site: NewSite, tmp_path: Path) -> None:
    """P10, P14: though its deadline passed before the station could see the command."""
    gate, stages = tmp_path / "gate", {"quick": {"steps": [obey()], "deadline_s": 6.0}}
    site = new_site(declare(station={"lease_s": 60}, pipelines={"dqm": {"stages": stages, "limit": 1}}))
    station = site.spawn()
    station.until_up()
    site.arrive(0, f"until {gate}")
    await site.until(lambda: number(site, "running") == 1)
    for subrun in (1, 2):
        site.arrive(subrun)
    await site.until(lambda: number(site, "queued") == 2)
    station.signal(signal.SIGSTOP)
    steer(site).hold("run=1 subrun=1", why="look first")
    await asyncio.sleep(7.0)  # Its deadline passes: there is nothing to wait for.
    station.signal(signal.SIGCONT)
    await site.until(lambda: number(site, "expired") == 1)
    gate.touch()
    await site.until_done(1)
    assert {row.data_id: row.state for row in site.rows(schema.sub_job)} == {
        "run=1 subrun=0": "done",
        "run=1 subrun=1": "arrived",
        "run=1 subrun=2": "expired",
    }
    assert number(site, "held") == 1
    assert station.end(signal.SIGTERM) == 0


@pytest.mark.alone
async def test_a_command_acts_within_a_second(new_site: NewSite) -> None:
    """P10: by the ledger's own times, in the median of three tries."""
    site = new_site(declare())
    async with site.running() as running:
        steer(site).pause("dqm", why="so that it waits")
        await running.until_steered()
        site.arrive(0)
        await site.until(lambda: number(site, "queued") == 1)
        given_at = []
        for _ in range(3):
            given_at.append(steer(site).hold("run=1", why="look first").set_at)
            await site.until(lambda: number(site, "held") == 1)
            steer(site).release("run=1", why="go on")
            await site.until(lambda: number(site, "queued") == 1)
    acted = [row for row in site.rows(schema.journal) if row.kind == "stage.held"]
    took_s = sorted(row.at - at for row, at in zip(acted, given_at, strict=True))
    assert 0 <= took_s[0] <= took_s[1] < 1
    assert "look first" in acted[0].detail["reason"]
    assert "ana" in acted[0].detail["reason"]


@pytest.mark.alone
async def test_a_priority_that_is_typed_acts_within_a_second_on_thousands(new_site: NewSite) -> None:
    """P10: from when it was given until the unit begins, less the service that it may have to wait for.

    By the ledger's own times, in the median of three tries.
    """
    service_s, units, took_s = 0.2, 2000, []
    site = new_site(declare())
    async with site.running() as running:
        steer(site).pause("dqm", why="so that all wait")
        await running.until_steered()
        for subrun in range(units):
            site.arrive(subrun, f"sleep {service_s}")
        await site.until(lambda: len(site.units()) == units, patience_s=120)
        steer(site).release("dqm", why="go on")
        await site.until_done(1)
        # Far from whichever end is worked at.
        for subrun in (units // 2, units // 2 + 1, units // 2 + 2):
            words = ["priority", f"run=1 subrun={subrun}", "9", "--why", "a test", "--home", str(site.path)]
            typed = await asyncio.to_thread(CliRunner().invoke, commands(), words, catch_exceptions=False)
            assert typed.exit_code == 0
            given_at = max(one.set_at for one in site.read(overrides.in_force))
            began_at = await site.until(lambda unit=f"run=1 subrun={subrun}": _began_at(site, unit))
            took_s.append(began_at - given_at)
    assert min(took_s) >= 0
    assert statistics.median(took_s) < 1 + service_s


def _began_at(site: Site, unit: str) -> float | None:
    query = (
        select(schema.attempt.c.opened_at)
        .join(schema.stage_run, schema.stage_run.c.id == schema.attempt.c.stage_run_id)
        .join(schema.sub_job, schema.sub_job.c.id == schema.stage_run.c.sub_job_id)
        .where(schema.sub_job.c.data_id == unit)
    )
    return site.read(lambda connection: connection.scalar(query))


@pytest.mark.parametrize(
    ("command", "deep_of_begun", "quick_of_new", "deep_of_new"),
    [
        ("pause", "queued", "queued", "waiting"),
        ("drain", "done", "queued", "waiting"),
        ("hold", "held", "held", "held"),
    ],
)
async def test_pause_drain_and_hold_are_three_things(
    new_site: NewSite, tmp_path: Path, command: str, deep_of_begun: str, quick_of_new: str, deep_of_new: str
) -> None:
    """P14: what runs goes on to its end; what comes after that differs. `release` lifts each."""
    gate = tmp_path / "gate"
    site = new_site(declare(TWO_STAGES))
    async with site.running() as running:
        site.arrive(0, f"quick: until {gate}")
        await site.until(lambda: number(site, "running") == 1)
        getattr(steer(site), command)("run=1", why="a test")
        await running.until_steered()
        site.arrive(1)
        await site.until(lambda: len(site.units()) == 2)
        gate.touch()
        wanted = {
            ("run=1 subrun=0", "quick"): "done",
            ("run=1 subrun=0", "deep"): deep_of_begun,
            ("run=1 subrun=1", "quick"): quick_of_new,
            ("run=1 subrun=1", "deep"): deep_of_new,
        }
        await site.until(lambda: site.stages() == wanted, f"{wanted}")
        # Another run passes meanwhile, so that there were slots and decisions.
        site.arrive(0, run=2)
        await site.until_done(2 if command == "drain" else 1)
        assert {name: state for name, state in site.stages().items() if "run=1 " in name[0]} == wanted
        (lifted,) = steer(site).release("run=1", why="the test is over")
        assert lifted.kind == command
        await site.until_done(3)
    kinds = [row.kind for row in site.rows(schema.journal)]
    assert kinds.count(f"{command}.set") == kinds.count(f"{command}.cleared") == 1


async def test_a_limit_queues_what_is_above_it(new_site: NewSite, fragile_cluster: Cluster, tmp_path: Path) -> None:
    """P14: of 10 arrivals 3 run and 7 wait, with 4 slots; when it is lifted, the others are handed out too."""
    gate, notes = tmp_path / "gate", tmp_path / "notes"
    for _ in range(4):
        fragile_cluster.add_worker()
    site = new_site(declare({"quick": {"steps": [obey(notes=str(notes))]}}), scheduler=fragile_cluster.address)
    # Set while no station runs: it counts from the start.
    steer(site).limit("dqm", 3, why="leave a slot free")
    async with site.running(slots=4) as running:
        for subrun in range(10):
            site.arrive(subrun, f"until {gate}")
        await site.until(lambda: (number(site, "running"), number(site, "queued")) == (3, 7))
        await site.until(lambda: notes.exists() and notes.read_text().count("begin") == 3)
        assert running.station.handout.dispatcher.in_flight == 3
        steer(site).limit("dqm", 4, why="take it")
        await site.until(lambda: number(site, "running") == 4)
        gate.touch()
        await site.until_done(10)
    assert site.count(schema.attempt) == 10


async def test_overrides_survive_a_restart_and_are_shown(new_site: NewSite) -> None:
    """S9: in the status, in the health rows, with the unit, and in the journal, with who and why."""
    site = new_site(declare())
    steer(site).hold("dqm", why="look at the file")
    for _ in range(2):
        async with site.running() as running:
            if not site.units():
                site.arrive(0)
            await site.until(lambda: number(site, "held") == 1)
            status = await running.get("/api/status")
            (shown,) = status["overrides"]
            assert (shown["kind"], shown["target"], shown["by"]) == ("hold", "dqm", "ana")
            row = next(row for row in status["health"] if row["name"] == "commands")
            assert row["status"] == "degraded"
            assert "look at the file" in row["cause"]
            assert "p3s release dqm" in row["action"]
    async with site.running():
        steer(site).release("dqm")
        await site.until_done(1)
        told = next(row for row in site.rows(schema.journal) if row.kind == "hold.set")
        assert (told.subject, told.detail["by"], told.detail["why"]) == ("dqm", "ana", "look at the file")


async def test_an_override_ends_by_itself(new_site: NewSite) -> None:
    """S9: nothing begins before its time, and what waited begins then; the station writes it into the journal."""
    site = new_site(declare())
    pause: Override = steer(site).pause("all", why="until the beam is back", for_s=2.0)
    async with site.running():
        site.arrive(0)
        await site.until_done(1)
    (attempt,) = site.rows(schema.attempt)
    assert pause.expires_at is not None
    assert attempt.opened_at >= pause.expires_at
    ended = next(row for row in site.rows(schema.journal) if row.kind == "pause.expired")
    assert ended.at >= pause.expires_at
    assert steer(site).in_force() == ()


async def test_what_expired_while_nobody_ran_is_ended_at_the_start(new_site: NewSite) -> None:
    """S9, V19."""
    site = new_site(declare())
    yesterday = time.time() - 86_400
    with site.ledger.transaction() as connection:
        overrides.set_override(
            connection,
            kind=OverrideKind.PAUSE,
            target=Target(),
            by="ana",
            why="short",
            now=yesterday,
            expires_at=yesterday + 60,
        )
    async with site.running():
        site.arrive(0)
        await site.until_done(1)
    assert [row.kind for row in site.rows(schema.journal)].count("pause.expired") == 1


async def test_a_ledger_that_cannot_be_read_for_a_while_stops_nothing(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V20: commands and requests wait until it can; data go on."""
    site = new_site(declare())
    failed = Counter[str]()

    def fail(name: str) -> Callable[..., object]:
        def look(*_: object) -> object:
            failed[name] += 1
            raise OperationalError("SELECT", {}, sqlite3.OperationalError("disk I/O error"))

        return look

    async with site.running() as running:
        with monkeypatch.context() as patched:
            patched.setattr(overrides, "ids_in_force", fail("overrides"))
            patched.setattr(requests, "open_requests", fail("requests"))
            site.arrive(0)
            await site.until_done(1)
            await site.until(lambda: min(failed["overrides"], failed["requests"]) > 1)
        steer(site).hold("dqm", why="it can be read again")
        await running.until_steered()
        site.arrive(1)
        await site.until(lambda: number(site, "held") == 1)
