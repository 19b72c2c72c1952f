"""What is asked of a running station: process, retry, cancel."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sites import NewSite, Site, declare, obey, total
from sqlalchemy import update
from supervised import begin
from typer.testing import CliRunner, Result

from p3s_prefect.adapters.ledger import requests, schema
from p3s_prefect.adapters.ledger.weighted_rows import group_values
from p3s_prefect.adapters.steering import Steering
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.asking import ProcessAsked
from p3s_prefect.core.errors import NoSuchRecord

pytestmark = pytest.mark.sockets

STAGES = {
    "quick": {"steps": [obey("quick")], "retries": 0},
    "deep": {"after": ["quick"], "steps": [obey("deep")], "retries": 0},
    "total": total(),
}


async def ask(site: Site, kind: str, once: str | None = None, **detail: Any) -> requests.Request:
    """The answer to a request."""
    with site.ledger.transaction() as connection:
        number = requests.ask(connection, kind, by="ana", why="", now=time.time(), detail=detail, once=once)

    def answered() -> requests.Request | None:
        found: requests.Request = site.read(lambda connection: requests.look_up(connection, number))
        return found if found.is_granted is not None else None

    found: requests.Request = await site.until(answered, f"an answer to {kind}")
    return found


def process(site: Site, *units: str, which: str = "missing", once: str | None = None) -> Any:
    wanted = ProcessAsked.of("dqm", "run=1", list(units), which)
    return ask(site, "process", once, **wanted.detail())


def attempts(site: Site) -> Counter[tuple[str, str]]:
    """Number of attempts by data id and stage."""
    unit_of = {row.id: row.data_id for row in site.rows(schema.sub_job)}
    run_of = {row.id: (unit_of[row.sub_job_id], row.stage) for row in site.rows(schema.stage_run)}
    return Counter(run_of[row.stage_run_id] for row in site.rows(schema.attempt))


async def test_a_retry_runs_what_failed_and_what_waited_for_it_and_nothing_else(
    new_site: NewSite, tmp_path: Path
) -> None:
    """B3: 1 of 10 sub-jobs failed: that one runs again in its pass, its dependants start, and nothing else runs."""
    mended = tmp_path / "mended"
    site = new_site(declare(STAGES, instrument={"closing": {"count": 10}}, classes={"spare": {}}))
    async with site.running(slots=2):
        for subrun in range(9):
            site.arrive(subrun)
        site.arrive(9, f"quick: unless {mended}")
        await site.until_settled(11)
        assert site.stages()["run=1 subrun=9", "quick"] == "failed"
        assert site.stages()["run=1 subrun=9", "deep"] == "blocked"
        before = attempts(site)
        mended.write_text("")
        # A class without pipelines is nothing, and not everything.
        for kind in ("retry", "cancel"):
            assert not (await ask(site, kind, target="class:spare")).is_granted
        answer = await ask(site, "retry", target="run=1 subrun=9")
        assert (answer.is_granted, answer.answer) == (True, "1 unit tried again")
        await site.until(lambda: site.units()["run=1 subrun=9"] == "done", "the retried unit done")
        again = await ask(site, "retry", target="run=1")
        assert not again.is_granted
        assert "nothing of it has failed" in again.answer
    assert attempts(site) - before == {("run=1 subrun=9", "quick"): 1, ("run=1 subrun=9", "deep"): 1}
    assert site.count(schema.production_pass) == 1


async def test_what_failed_in_an_open_unit_is_tried_again_though_its_deadline_has_passed(
    new_site: NewSite, tmp_path: Path
) -> None:
    """P8, B3: another branch of the unit still runs; deadlines count from the retry on, also at the next station."""
    mended, gate, last = tmp_path / "mended", tmp_path / "gate", tmp_path / "last"
    in_time = {"deadline_s": 3600, "stop_at_deadline": True}
    stages = {
        "left": {"steps": [obey("left")], "retries": 0, **in_time},
        "right": {"steps": [obey("right")]},
        "both": {"after": ["left", "right"], "steps": [obey("both")], **in_time},
    }
    site = new_site(declare(stages))
    left = ("run=1 subrun=1", "left")
    async with site.running(slots=2):
        site.arrive(1, f"left: unless {mended}\nleft: until {gate}\nright: until {last}")
        await site.until(lambda: site.stages().get(left) == "failed", "left failed")
        with site.ledger.transaction() as connection:
            connection.execute(update(schema.sub_job).values(taken_at=schema.sub_job.c.taken_at - 7200))
        mended.write_text("")
        assert (await ask(site, "retry", target="dqm/left run=1 subrun=1")).is_granted
        await site.until(lambda: site.stages()[left] != "queued" and attempts(site)[left] == 2, "left begins again")
        await asyncio.sleep(0.5)
        assert site.stages()[left] == "running"
    assert site.stages()[left] == "queued"
    async with site.running(slots=2):
        gate.write_text("")
        await site.until(lambda: site.stages()[left] not in ("queued", "running"), "left ended")
        assert site.stages()[left] == "done"
        last.write_text("")
        await site.until_done(1)
    assert {stage: number for (_, stage), number in attempts(site).items()} == {"left": 3, "right": 2, "both": 1}


async def test_missing_units_are_processed_though_the_prescale_left_them_out(new_site: NewSite) -> None:
    """B2, P10: those without results go into a new pass, whatever their age; what is done is left alone."""
    stages = {"quick": {"steps": [obey("quick")], "prescale": 0.5, "deadline_s": 60}, "total": total()}
    site = new_site(declare(stages, instrument={"closing": {"count": 8}}))
    async with site.running(slots=2):
        for subrun in range(8):
            site.arrive(subrun)
        await site.until_settled(9)
        left_out = [unit for unit, state in site.units().items() if state == "prescaled"]
        assert 0 < len(left_out) < 8
        answer = await process(site)
        assert answer.answer == f"{len(left_out)} units begin in pass 1; left as they are: {8 - len(left_out)} done"
        await site.until_settled(9 + len(left_out) + 1)
        assert len(answer.detail["sub_jobs"]) == 9
        assert set(site.units().values()) == {"done"}
        assert "done=8" in site.text("total", "run=1")
        assert (await process(site)).answer.startswith("nothing to begin")
    assert [row.number for row in site.rows(schema.production_pass)] == [0, 1]
    assert max(attempts(site).values()) == 2  # the total, once in each pass


async def test_what_is_asked_for_by_hand_stands_for_itself(new_site: NewSite) -> None:
    """P6, P10: and where nothing is left out any more, each unit does, however it came in."""
    stages = {"quick": {"steps": [obey("quick")], "prescale": 0.5}, "total": total()}
    site = new_site(declare(stages, instrument={"closing": {"count": 8}}))
    async with site.running(slots=2):
        for subrun in range(8):
            site.arrive(subrun)
        await site.until_settled(9)
        left_out = [unit for unit, state in site.units().items() if state == "prescaled"]
        await process(site, left_out[0])
        await site.until_settled(11)
        await process(site)
        await site.until_settled(12 + len(left_out) - 1)
        await process(site, which="all")
        await site.until_settled(12 + len(left_out) - 1 + 9)
    let_in = 8 - len(left_out)
    assert 0 < let_in < 7
    weights = [row.value for row in site.rows(schema.summary_value) if row.name == "weight"]
    assert weights == [2 * let_in, 2 * let_in + 1, 8, 8]
    (length,) = site.read(lambda connection: group_values(connection, "run=1"))
    assert (length.seen, length.left_out, length.estimate.error) == (8, 0, 0)


async def test_a_request_is_typed(new_site: NewSite) -> None:
    """P10, B3: what was left out runs, and is waited for; the exit code tells whether all is done, JSON what became."""
    stages = {"quick": {"steps": [obey("quick")], "prescale": 1e-9, "retries": 0}}
    site = new_site(declare(stages))

    async def typed(*words: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, commands(), ["request", *words, "--home", str(site.path)])

    async with site.running(slots=2):
        site.arrive(0)
        site.arrive(1, "fail")
        await site.until_settled(2)
        assert set(site.units().values()) == {"prescaled"}
        done = await typed("run=1 subrun=0", "--wait", "--by", "ana", "--why", "is wanted")
        assert (done.exit_code, done.stdout) == (0, "1 unit begins in pass 1.\nEnded: 1 done.\n")
        failed = await typed("dqm", "run=1", "--wait")
        assert failed.exit_code == 1
        assert "Ended: 1 done, 1 failed." in failed.stdout
        assert re.search(r"run=1 subrun=1 +1 +failed +\S", failed.stdout)
        again = await typed("run=1", "--all", "--wait", "--json")
        assert again.exit_code == 1
        said = json.loads(again.stdout)
        assert said["ok"] is False
        ended = said["ended"]
        assert sorted((one["data_id"], one["pass"], one["state"]) for one in ended) == [
            ("run=1 subrun=0", 2, "done"),
            ("run=1 subrun=1", 2, "failed"),
        ]
        unknown = await typed("run=1 subrun=7")
        assert isinstance(unknown.exception, NoSuchRecord)
    assert site.units()["run=1 subrun=0"] == "done"
    (asked,) = [row for row in site.rows(schema.request) if row.why == "is wanted"]
    assert (asked.asked_by, asked.is_granted) == ("ana", True)


async def test_what_was_asked_for_stays_asked_for_when_the_configuration_changes(new_site: NewSite) -> None:
    """P10, V23: its deadlines count from the beginning of the new pass, and who waits for it waits for that one."""
    stages = {"quick": {"steps": [obey("quick")], "deadline_s": 600}, "total": total()}
    closing = {"closing": {"count": 1}}
    site = new_site(declare(stages, instrument=closing))
    async with site.running(slots=2) as running:
        site.arrive(0, age_s=3600)
        await site.until_settled(2)
        assert site.units()["run=1 subrun=0"] == "expired"
        steering = Steering(site.experiment, site.ledger, by="ana")
        steering.pause("dqm", why="so that it waits")
        await running.until_steered()
        waiting = begin("request", "run=1", "--wait", "--home", str(site.path))
        await site.until(lambda: len(site.rows(schema.sub_job)) == 4, "the request let in")
        again = await process(site)
        assert again.answer == "nothing to begin: 1 under way or waiting"
    complaints = waiting.stderr
    assert complaints is not None
    assert await asyncio.to_thread(lambda: any("no station runs here" in line for line in complaints))
    site.declare(declare(stages | {"quick": stages["quick"] | {"priority": 1}}, instrument=closing))
    steering.release("dqm")
    async with site.running(slots=2):
        await site.until_done(1)
        said, complained = await asyncio.to_thread(waiting.communicate)
    assert waiting.returncode == 0, complained
    assert said.splitlines()[0] == "1 unit begins in pass 1."
    assert said.splitlines()[1].startswith("2 of it wait: pause of dqm by ")
    assert said.splitlines()[2:] == ["Ended: 2 done."]
    units = [row for row in site.rows(schema.sub_job) if row.per == "unit"]
    assert [row.state for row in units] == ["expired", "cancelled", "done"]
    assert [row.asked_at is None for row in units] == [True, False, False]


async def test_who_asks_for_units_waits_for_these_and_what_is_made_anew_with_them(
    new_site: NewSite, tmp_path: Path
) -> None:
    """B3: not for a group's totals that others hold up; where the group has closed, for those that come anew."""
    gate = tmp_path / "gate"
    site = new_site(declare(STAGES, instrument={"closing": {"count": 2}}))
    async with site.running(slots=2):
        site.arrive(0)
        site.arrive(1, f"deep: until {gate}")
        await site.until(lambda: site.units().get("run=1 subrun=0") == "done" and ("run=1", "total") in site.stages())
        one = await process(site, "run=1 subrun=0")
        every = await process(site)
        gate.write_text("")
        await site.until_settled(3)
        anew = await process(site, "run=1 subrun=0", which="all")
        await site.until_settled(5)
    number_of = {row.id: row.data_id for row in site.rows(schema.sub_job)}
    asked = [{number_of[number] for number in found.detail["sub_jobs"]} for found in (one, every, anew)]
    assert asked == [
        {"run=1 subrun=0"},
        {"run=1 subrun=0", "run=1 subrun=1", "run=1"},
        {"run=1 subrun=0", "run=1"},
    ]
    assert min(anew.detail["sub_jobs"]) > max(every.detail["sub_jobs"])


async def test_all_units_are_processed_anew_and_an_open_job_is_never_doubled(new_site: NewSite, tmp_path: Path) -> None:
    """B2: earlier passes stay as they are; asking again, with the same word or another, adds nothing while it runs."""
    gate = tmp_path / "gate"
    gate.write_text("")
    site = new_site(declare(STAGES, instrument={"closing": {"count": 2}}))
    async with site.running(slots=2):
        for subrun in range(2):
            site.arrive(subrun, f"quick: until {gate}")
        await site.until_settled(3)
        first = site.rows(schema.dataset)
        gate.unlink()
        one = await process(site, which="all", once="flow run 1")
        assert (await process(site, which="all", once="flow run 1")).id == one.id
        other = await process(site, which="all")
        assert other.answer.startswith("nothing to begin")
        assert other.detail["sub_jobs"] == one.detail["sub_jobs"]
        gate.write_text("")
        await site.until_settled(6)
    assert site.rows(schema.dataset)[: len(first)] == first
    assert len(site.rows(schema.dataset)) == 2 * len(first)
    assert [row.number for row in site.rows(schema.production_pass)] == [0, 1]


async def test_cancelling_gives_up_what_is_open_and_kills_what_runs(new_site: NewSite, tmp_path: Path) -> None:
    """S2: what ended stays; running payloads are killed and do not come back."""
    site = new_site(declare(STAGES, instrument={"closing": {"count": 4}}))
    async with site.running(slots=2):
        site.arrive(0)
        await site.until_done(1)
        for subrun in range(1, 4):
            site.arrive(subrun, "hang")
        await site.until(lambda: Counter(site.stages().values())["running"] == 3, "they hang")
        (pass_row,) = site.rows(schema.production_pass)
        assert (await ask(site, "cancel", pass_id=pass_row.id)).is_granted
        await site.until_settled(5)
        assert not (await ask(site, "cancel", pass_id=pass_row.id)).is_granted
        # The slots are clean.
        site.arrive(0, run=2)
        await site.until(lambda: site.units().get("run=2 subrun=0") == "done", "the next unit")
    assert Counter(site.stages().values())["cancelled"] == 3 * 2 + 1
    assert {row.state for row in site.rows(schema.attempt)} == {"done", "stopped"}


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (("dqmm", "run=1", [], "missing"), "there is no pipeline 'dqmm'"),
        (("dqm", "run=7", [], "missing"), "no group run=7"),
        (("dqm", "run=1", ["run=1 subrun=9"], "all"), "no unit run=1 subrun=9"),
        (("dqm", "run=1", ["run=2 subrun=1"], "all"), "is not of run=1"),
        (("dqm", "run=1 subrun=1", [], "all"), "is no group"),
    ],
)
async def test_what_does_not_exist_is_refused_in_words(new_site: NewSite, wanted: Any, words: str) -> None:
    """S8: names and data ids that do not exist; nothing is begun."""
    site = new_site()
    async with site.running(slots=1):
        site.arrive(1)
        await site.until_done(1)
        answer = await ask(site, "process", **ProcessAsked.of(*wanted).detail())
    assert not answer.is_granted
    assert words in answer.answer
    assert site.count(schema.sub_job) == 1
