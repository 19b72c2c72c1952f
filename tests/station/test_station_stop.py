"""A station that is asked to stop does so gracefully, and the next one goes on where it ended."""

from __future__ import annotations

import signal
import time

import pytest
from sites import NewSite, Site, StationProcess, declare, obey

from p3s_prefect.adapters.ledger import schema

pytestmark = pytest.mark.sockets


def up(site: Site) -> StationProcess:
    process = site.spawn()
    process.until_up()
    return process


async def test_sigterm_gives_what_runs_its_grace_and_the_rest_back(new_site: NewSite) -> None:
    """V22, V18 (grace_s): no new unit; what ends within the grace is published, the rest is queued again."""
    site = new_site(declare({"quick": {"steps": [{**obey(), "timeout_s": 60}]}}, station={"grace_s": 3}))
    process = up(site)
    site.arrive(0, "sleep 0.8")
    site.arrive(1, "sleep 30")
    for subrun in range(2, 8):
        site.arrive(subrun)
    await site.until(lambda: len(site.rows(schema.sub_job)) == 8)
    await site.until(lambda: site.stages().get(("run=1 subrun=1", "quick")) == "running")
    begun = time.monotonic()
    process.signal(signal.SIGTERM)
    process.signal(signal.SIGTERM)  # a second one is harmless
    await site.until(lambda: "stopping; what runs gets 3 s" in site.log.read_text())
    site.arrive(9)
    assert process.join() == 0
    # Not earlier than its grace; nor did it wait for what runs longer, which was stopped and is not done.
    assert time.monotonic() - begun > 2.9
    states = site.stages()
    assert states["run=1 subrun=0", "quick"] == "done"
    assert states["run=1 subrun=1", "quick"] == "queued"
    assert set(states.values()) == {"done", "queued"}
    (stopped,) = [row for row in site.rows(schema.attempt) if row.state == "stopped"]
    assert stopped.reason == "it was stopped"
    assert site.home.station() is None
    assert sorted(site.units()) == [f"run=1 subrun={subrun}" for subrun in range(8)]


async def test_a_restart_finishes_what_was_given_back(new_site: NewSite) -> None:
    """V22: nothing is lost by a stop in the middle of the work, and the next station needs no waiting for the lease."""
    site = new_site(declare(station={"grace_s": 0, "lease_s": 3600}))
    process = up(site)
    for subrun in range(30):
        site.arrive(subrun, "sleep 0.1")
    await site.until_done(3)
    assert process.end(signal.SIGTERM) == 0
    done = list(site.units().values()).count("done")
    assert done < 30
    assert site.count(schema.attempt, state="running") == 0
    async with site.running():
        await site.until_done(30)
    assert site.count(schema.stage_run, failures=0, losses=0) == 30
    assert len(site.rows(schema.dataset)) == 30


async def test_what_no_pilot_has_begun_is_taken_back(new_site: NewSite) -> None:
    """V22, P11: the third of three stages in flight on two slots never begins once the station stops.

    It was handed out in advance, as all before had been short.
    """
    site = new_site()
    notes = site.path / "notes"
    site.declare(declare({"quick": {"steps": [obey(notes=str(notes))]}}, station={"grace_s": 0}))
    async with site.running():
        for subrun in range(20):
            site.arrive(subrun)
        await site.until_done(20)
        notes.unlink()
        for subrun in range(20, 25):
            site.arrive(subrun, "sleep 20")
        await site.until(lambda: site.count(schema.stage_run, state="running") == 3)
        await site.until(lambda: notes.exists() and len(notes.read_text().splitlines()) == 2)
    assert set(site.stages().values()) == {"done", "queued"}
    assert len(notes.read_text().splitlines()) == 2
    reasons = sorted(row.reason for row in site.rows(schema.attempt) if row.state != "done")
    assert reasons[:2] == ["it was stopped"] * 2
    assert "taken back before it began" in reasons[2]


async def test_a_stop_before_anything_is_connected_is_a_stop(new_site: NewSite) -> None:
    """V22: a station that waits for pilots that never come ends at once."""
    site = new_site(scheduler="tcp://127.0.0.1:9")
    process = up(site)
    site.arrive(0)
    await site.until(lambda: len(site.rows(schema.sub_job)) == 1)
    assert process.end(signal.SIGINT) == 0
    assert set(site.stages().values()) == {"queued"}
