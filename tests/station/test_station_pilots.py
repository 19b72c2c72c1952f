"""Pilots that appear, vanish, hang and freeze, under a station that has work for them."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest
from clusters import Cluster
from sites import NewSite, declare, obey

from p3s_prefect.adapters.ledger import schema

pytestmark = pytest.mark.sockets


async def test_workers_join_late_and_are_killed_under_load(
    new_site: NewSite, fragile_cluster: Cluster, tmp_path: Path
) -> None:
    """P12: units wait for the first worker; those of a killed one are done elsewhere, and nothing is lost."""
    go, notes = tmp_path / "go", tmp_path / "notes"
    declared = declare({"quick": {"steps": [obey(notes=str(notes))]}})
    site = new_site(declared, scheduler=fragile_cluster.address)
    async with site.running(slots=0) as running:
        for subrun in range(12):
            site.arrive(subrun, f"until {go}")
        await site.until(lambda: list(site.stages().values()).count("queued") == 12, "they wait")
        status = await running.get("/api/status")
        assert next(row["status"] for row in status["health"] if row["name"] == "pilots") == "down"
        fragile_cluster.add_worker()
        fragile_cluster.add_worker()
        await site.until(lambda: notes.exists() and notes.read_text().count("begin") == 2, "both have begun")
        fragile_cluster.kill_worker()
        await site.until(lambda: running.station.pilots.slots() == 1)
        go.touch()
        fragile_cluster.add_worker()
        await site.until_done(12)
    lost = [row for row in site.rows(schema.attempt) if row.state == "lost"]
    assert 1 <= len(lost) <= 2
    assert {row.reason for row in lost} == {"its pilot was lost"}
    assert len(site.rows(schema.dataset)) == 12
    assert {row.failures for row in site.rows(schema.stage_run)} == {0}


async def test_a_worker_retires_under_load(new_site: NewSite, fragile_cluster: Cluster, tmp_path: Path) -> None:
    """P12: asked to go by SIGTERM, it leaves, and what it had goes on elsewhere; one publication, nobody is blamed.

    It waits for the stage that it has, which gives results too late to count.
    """
    go, notes = tmp_path / "go", tmp_path / "notes"
    site = new_site(declare({"quick": {"steps": [obey(notes=str(notes))]}}), scheduler=fragile_cluster.address)
    leaving = fragile_cluster.add_worker()
    async with site.running() as running:
        for subrun in range(4):
            site.arrive(subrun, f"until {go}")
        await site.until(lambda: notes.exists() and "begin" in notes.read_text(), "it has a stage")
        leaving.send_signal(signal.SIGTERM)
        await site.until(lambda: running.station.pilots.slots() == 0, "it has said so")
        fragile_cluster.add_worker()
        await site.until(lambda: notes.read_text().count("begin") == 2, "another one begins")
        go.touch()
        await site.until_done(4)
        await site.until(lambda: leaving.poll() is not None, "it leaves")
    assert len(site.rows(schema.dataset)) == 4
    states = Counter(row.state for row in site.rows(schema.attempt))
    # One more may have been in flight for its slot, which never began.
    assert (states.pop("done"), states.pop("lost") in (1, 2), states) == (4, True, {})
    assert {row.failures for row in site.rows(schema.stage_run)} == {0}


async def test_a_frozen_payload_is_killed_and_its_slot_is_clean(new_site: NewSite) -> None:
    """P12, V18 (timeout_s): stopped by a signal, it does not even hear SIGTERM."""
    site = new_site(declare({"quick": {"steps": [{**obey(), "timeout_s": 0.8}], "retries": 0}}))
    async with site.running():
        site.arrive(0, "freeze")
        site.arrive(1, "freeze")
        await site.until_settled(2)
        site.arrive(2)
        site.arrive(3)
        await site.until_done(2)
    states = [row.state for row in site.rows(schema.attempt)]
    assert states == ["failed", "failed", "done", "done"]


async def test_a_unit_that_takes_its_pilots_with_it_fails_in_the_end(
    new_site: NewSite, fragile_cluster: Cluster
) -> None:
    """P12, P7: after the third lost pilot it counts as the unit's own failure; the others go on."""
    site = new_site(scheduler=fragile_cluster.address)
    workers = [fragile_cluster.add_worker()]
    async with site.running():
        site.arrive(0, "kill pilot")
        while site.units().get("run=1 subrun=0") != "failed":
            await site.until(lambda: workers[-1].poll() is not None, "the pilot is lost")
            workers.append(fragile_cluster.add_worker())
            await site.until(lambda: site.count(schema.attempt, state="lost") == len(workers) - 1)
        site.arrive(1)
        await site.until_done(1)
    assert [row.state for row in site.rows(schema.attempt)] == ["lost"] * 3 + ["done"]
    assert site.units() == {"run=1 subrun=0": "failed", "run=1 subrun=1": "done"}


async def test_the_scheduler_killed_again_and_again(new_site: NewSite, fragile_cluster: Cluster) -> None:
    """P12, V20: work goes on with the next one; nobody is blamed, and nothing is tried in vain meanwhile."""
    site = new_site(scheduler=fragile_cluster.address)
    fragile_cluster.add_worker()
    async with site.running() as running:
        for subrun in range(20):
            site.arrive(subrun, "sleep 0.2")
        for _ in range(2):
            done = list(site.units().values()).count("done")
            await site.until_done(done + 2)
            fragile_cluster.kill_scheduler()
            await site.until(lambda: running.station.pilots.slots() == 0)
            await site.until(lambda: site.count(schema.attempt, state="running") == 0)
            while any(worker.poll() is None for worker in fragile_cluster.workers):
                fragile_cluster.kill_worker()
            fragile_cluster.start_scheduler()
            fragile_cluster.add_worker()
        await site.until_done(20)
    assert {(row.failures, row.losses) for row in site.rows(schema.stage_run)} == {(0, 0)}
    assert site.count(schema.attempt) <= 20 + 2 * 4
    assert len(site.rows(schema.dataset)) == 20
