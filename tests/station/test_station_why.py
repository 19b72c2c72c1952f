"""`p3s why` beside a station that works: what it says is what the station then does (B12)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from sites import NewSite, Site, declare, obey, total
from typer.testing import CliRunner

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.api import open_experiment
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.selection import sample_number
from p3s_prefect.core.why_facts import Reason

pytestmark = pytest.mark.sockets


async def why(site: Site, *words: str) -> Any:
    """What `p3s why --json` prints, in a thread: it asks the station, which runs here."""
    arguments = ["why", *words, "--home", str(site.path), "--json"]
    result = await asyncio.to_thread(CliRunner().invoke, commands(), arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.output)


async def reasons(site: Site, stage: str, *words: str) -> list[Reason]:
    found = [one for sub_job in (await why(site, *words))["sub_jobs"] for one in sub_job["stages"]]
    return [Reason(**reason) for one in found if one["stage"] == stage for reason in one["reasons"]]


async def test_it_explains_the_queue_of_a_working_station(new_site: NewSite) -> None:
    """B12: behind what runs, then behind others, then paused; what it says would release it does."""
    site = new_site(declare({"quick": {"steps": [obey()]}, "total": total()}, pipeline={"limit": 1}))
    async with site.running(slots=2) as running:
        site.arrive(0, f"until {site.path}/go")
        await site.until(lambda: site.stages().get(("run=1 subrun=0", "quick")) == "running")
        for subrun in (1, 2):
            site.arrive(subrun, age_s=60 - subrun)
        await site.until(lambda: len(site.rows(schema.sub_job)) == 3)
        (with_pilot,) = await reasons(site, "quick", "run=1", "subrun=0")
        assert with_pilot.why.startswith("it has been with a pilot for ")
        limit, place = await reasons(site, "quick", "run=1", "subrun=2")
        assert limit.why == "pipeline dqm is at its limit: 1 of its stages run, and 1 may at once"
        assert limit.rule == "pipelines.dqm.limit: 1"
        assert place.why == (
            "1 go before it in the queue (1 in the order oldest-first); 1 stage is with the pilots, which have 2 slots"
        )
        (ahead,) = await reasons(site, "total", "run=1")
        assert ahead.why == "it runs once, when the group has closed; 3 of 3 units are open"
        paused = ["pause", "run=1", "subrun=2", "--why", "look first", "--by", "anna", "--home", str(site.path)]
        assert CliRunner().invoke(commands(), paused).exit_code == 0
        pause, *_ = await reasons(site, "quick", "dqm/quick", "run=1", "subrun=2")
        assert "it is paused, as a part of run=1 subrun=2, by anna since" in pause.why
        assert '"look first"' in pause.why
        # The slot becomes free only once the station knows of it.
        await running.until_steered()
        (site.path / "go").touch()
        await site.until_done(2)
        assert site.stages()["run=1 subrun=2", "quick"] == "queued"
        command = pause.release.split("`")[1].removeprefix("p3s ").split()
        assert CliRunner().invoke(commands(), [*command, "--home", str(site.path)]).exit_code == 0
        await site.until_done(3)
        (done,) = await reasons(site, "quick", "run=1", "subrun=2")
        assert done.why == "its results are published"


async def test_it_explains_what_was_dropped_and_what_never_came(new_site: NewSite) -> None:
    """B12: prescaled, failed, blocked, never seen; and that the station is down, once it is."""
    stages = {
        "quick": {"steps": [obey("quick")], "retries": 0},
        "deep": {"after": ["quick"], "prescale": 0.5, "steps": [obey("deep")], "retries": 0},
    }
    site = new_site(declare(stages, seed=3))
    u = {n: sample_number(DataId.of(run=1, subrun=n), 3) for n in range(50)}
    kept = next(n for n in u if u[n] < 0.5)
    left_out = next(n for n in u if u[n] >= 0.5)
    async with site.running():
        site.arrive(kept, "quick: fail")
        site.arrive(left_out)
        await site.until_settled(2)
        (prescaled,) = await reasons(site, "deep", "run=1", f"subrun={left_out}")
        assert prescaled.why == f"its number {u[left_out]:.4g} is not below 0.5, the prescale of stage deep"
        (failed,) = await reasons(site, "quick", "run=1", f"subrun={kept}")
        assert failed.why == "it failed once: step obey: ValueError: the data asked for it"
        log_key = failed.release.removeprefix("Its log is ").partition(" in the store")[0]
        assert b"the data asked for it" in site.store.read_bytes(log_key)
        (blocked,) = await reasons(site, "deep", "run=1", f"subrun={kept}")
        assert blocked.why == "it needs quick, which is failed: step obey: ValueError: the data asked for it"
        never, _near = (await why(site, "run=1", "subrun=777"))["reasons"]
        assert "stream camera would bring it as r001_0777.txt" in never["why"]
    site.arrive(900)
    with open_experiment(site.path) as books:
        first, _near, last = books.why("run=1 subrun=900").reasons
    assert first.why == "r001_0900.txt stands in incoming, and was not taken yet"
    assert last.why == "no station runs here"
