"""A pipeline that keeps failing pauses itself on a real station, and goes on by a canary or by command (V17)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from sites import NewSite, Running, Site, declare, obey, shell

from p3s_prefect.adapters.ledger import overrides, schema
from p3s_prefect.adapters.steering import Steering
from p3s_prefect.core.overrides import BREAKER

pytestmark = pytest.mark.sockets

OPEN, HALF_OPEN, CLOSED = "breaker.open", "breaker.half-open", "breaker.closed"


# Fails while the file `broken` stands in the home.
_COPY = 'test ! -e "${P3S_INPUT_RAW%/incoming/*}/broken" || exit 3; cp "$P3S_INPUT_RAW" "$P3S_OUTPUT_MADE"'


def fragile(**breaker: Any) -> dict[str, Any]:
    """Run 1 goes through `dqm`, which can be broken, and all others through `sound`."""
    quick = {"steps": [shell(_COPY, made="made-quick")], "retries": 0}
    return declare(
        {"quick": quick},
        stream={"rules": [{"when": {"run": 1}, "pipelines": ["dqm"]}, {"pipelines": ["sound"]}]},
        pipelines={
            "dqm": {"order": "oldest-first", "stages": {"quick": quick}, "breaker": {"failures": 3, **breaker}},
            "sound": {"stages": {"plain": {"steps": [obey("plain")]}}, "breaker": None},
        },
        dataset_types={name: {"format": "text"} for name in ("raw", "made-quick", "made-plain")},
    )


def told(site: Site) -> list[str]:
    """What the journal says of breakers, in order."""
    return [row.kind for row in site.rows(schema.journal) if row.kind.startswith("breaker.")]


def broken(site: Site) -> Path:
    return site.path / "broken"


async def fail(site: Site, running: Running, subruns: Iterable[int]) -> None:
    """Units fail until the breaker has paused their pipeline, and the station acts on it."""
    broken(site).touch()
    for subrun in subruns:
        site.arrive(subrun)
    await site.until(lambda: OPEN in told(site), "the breaker opens")
    await running.until_steered()


async def test_it_pauses_itself_others_go_on_and_a_canary_closes_it(new_site: NewSite) -> None:
    """V17, V18 (breaker: failures, canary_s): told in ledger, journal, health; a bad canary opens it again."""
    site = new_site(fragile(canary_s=1.5))
    async with site.running(slots=2) as running:
        await fail(site, running, range(4))
        (given,) = site.read(overrides.in_force)
        assert (given.effect, given.by) == ("pause of dqm", BREAKER)
        assert "stages failed, within 10 min; the newest, quick: " in given.why
        site.arrive(7, run=2)
        await site.until(lambda: site.units().get("run=2 subrun=7") == "done", "the other pipeline goes on")
        site.arrive(8)
        await site.until(lambda: told(site)[:3] == [OPEN, HALF_OPEN, OPEN], "the canary fails")
        rows = {row["name"]: row for row in (await running.get("/api/status"))["health"]}
        assert rows["pipeline dqm"]["status"] in ("down", "degraded")
        assert "failed again: " in rows["pipeline dqm"]["cause"]
        assert "`p3s release dqm`" in rows["pipeline dqm"]["action"]
        assert "commands" not in rows
        await running.until_steered()
        failed = list(site.units().values()).count("failed")
        for subrun in (9, 10):
            site.arrive(subrun)
        broken(site).unlink()
        await site.until(lambda: told(site)[-1] == CLOSED, "a canary closes it")
        await site.until(lambda: {"run=1 subrun=9", "run=1 subrun=10"} <= done(site), "what had waited is done")
        assert list(site.units().values()).count("failed") <= failed + 1
        assert site.read(overrides.in_force) == ()
        assert "pipeline dqm" not in json.dumps((await running.get("/api/status"))["health"])


def done(site: Site) -> set[str]:
    return {name for name, state in site.units().items() if state == "done"}


async def test_it_outlives_the_station_and_is_released_by_command(new_site: NewSite) -> None:
    """V17, V18 (canary_s: null): nothing of it starts before that, on the next station too; then the window is new."""
    site = new_site(fragile(canary_s=None))
    async with site.running() as running:
        await fail(site, running, range(3))
    attempts = site.count(schema.attempt)
    site.arrive(5)
    async with site.running() as running:
        assert [one.pipeline for one in running.station.breakers.facts()] == ["dqm"]
        site.arrive(6, run=2)
        await site.until(lambda: {"run=2 subrun=6"} <= done(site))
        await site.until(lambda: site.stages().get(("run=1 subrun=5", "quick")) == "queued")
        assert site.count(schema.attempt) == attempts + 1
        Steering(site.experiment, site.ledger, by="anna").release("dqm", why="a try")
        await site.until(lambda: site.units()["run=1 subrun=5"] == "failed")
        await site.until(lambda: told(site) == [OPEN, CLOSED], "it hears of the command")
        broken(site).unlink()
        site.arrive(8)
        await site.until(lambda: "run=1 subrun=8" in done(site))
    assert told(site) == [OPEN, CLOSED]


async def test_a_pause_of_somebody_elses_is_left_alone(new_site: NewSite) -> None:
    """V17, S9: what people set wins; a limit of theirs is in force again when the breaker has closed."""
    site = new_site(fragile(canary_s=0.5))
    Steering(site.experiment, site.ledger, by="anna").limit("dqm", 5, why="leave room")
    async with site.running() as running:
        await fail(site, running, range(3))
        broken(site).unlink()
        site.arrive(4)
        await site.until(lambda: told(site) and told(site)[-1] == CLOSED)
        (given,) = site.read(overrides.in_force)
        assert (given.effect, given.by, given.why) == ("limit 5 of dqm", "anna", "leave room")


async def test_without_a_breaker_nothing_pauses(new_site: NewSite) -> None:
    """V18 (breaker: null): all of them are tried; and one that was open is lifted."""
    site = new_site(fragile(canary_s=None))
    async with site.running() as running:
        await fail(site, running, range(3))
    declared = fragile()
    declared["pipelines"]["dqm"]["breaker"] = None
    site.declare(declared)
    async with site.running():
        for subrun in range(10, 18):
            site.arrive(subrun)
        await site.until(lambda: list(site.units().values()).count("failed") >= 11)
    assert site.read(overrides.in_force) == ()


async def test_few_failures_among_many_do_not_pause(new_site: NewSite) -> None:
    """V18 (breaker.share): three of five are enough in number, and below the share."""
    site = new_site(fragile(share=0.7))
    async with site.running():
        for subrun in range(2):
            site.arrive(subrun)
        await site.until_done(2)
        broken(site).touch()
        for subrun in range(2, 5):
            site.arrive(subrun)
        await site.until_settled(5)
        broken(site).unlink()
        site.arrive(5)
        await site.until_done(3)
    assert told(site) == []
