"""The experiment file read again while a station runs: all or nothing, and what is open finishes as it began (S9)."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sites import Declared, NewSite, Site, declare, obey, total
from typer.testing import CliRunner, Result

from p3s_prefect.adapters.ledger import overrides, requests, schema
from p3s_prefect.cli.asking import await_answer
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.errors import BadName, ExperimentFileErrors, ServiceError
from p3s_prefect.core.records import SubJobFact

pytestmark = pytest.mark.sockets


async def reload(site: Site, declared: Declared) -> requests.Request:
    """Writes the file, asks the station to read it, and returns its answer."""
    site.declare(declared)
    return await asyncio.to_thread(await_answer, site.ledger, "reload", by="ana", why="a test")


async def typed(site: Site, *arguments: str) -> Result:
    """A command of `p3s`, about the site's home."""
    return await asyncio.to_thread(CliRunner().invoke, commands(), [*arguments, "--home", str(site.path)])


def begun(notes: Path) -> Counter[str]:
    """How often each unit's step has begun, as it noted itself."""
    return Counter(line.split()[3] for line in notes.read_text().splitlines() if line.startswith("begin"))


def pipelines(notes: Path, **fields: Any) -> Declared:
    """Two stages, one of them per group, whose payload notes what it does."""
    quick = {"steps": [obey(notes=str(notes))], "retries": 0, "backoff_s": 0.01, **fields}
    return declare({"quick": quick, "total": total()}, instrument={"closing": {"count": 4}}, pipeline={"limit": 2})


async def test_what_is_open_finishes_on_what_it_started_with(new_site: NewSite, tmp_path: Path) -> None:
    """S9, V23, P22: running and queued units keep steps and retries; the next have the new ones, in a new pass."""
    gate, old, new = tmp_path / "gate", tmp_path / "old", tmp_path / "new"
    site = new_site(pipelines(old))
    async with site.running():
        for subrun in range(2):
            site.arrive(subrun, f"until {gate}")
        await site.until(lambda: Counter(site.stages("quick").values())["running"] == 2)
        # Fails after the reload, and is not tried again, as its definition says.
        site.arrive(2, "fail")
        await site.until(lambda: Counter(site.stages("quick").values())["queued"] == 1)
        answered = await reload(site, pipelines(new, retries=2))
        assert answered.is_granted
        assert "pipelines.dqm.stages.quick.retries: 0 -> 2" in answered.answer
        site.arrive(3, "fail")
        await site.until(lambda: len(site.units()) == 4)
        gate.touch()
        # The run closes with its fourth unit: its total is made by the new definition, and gathers both passes.
        await site.until_settled(5)
    assert site.units() == {f"run=1 subrun={n}": "done" if n < 2 else "failed" for n in range(4)}
    assert begun(old) == {"subrun=0": 1, "subrun=1": 1, "subrun=2": 1}
    assert begun(new) == {"subrun=3": 3}
    assert site.text("total", "run=1").splitlines()[0] == "done=2 failed=2"
    first, second = site.rows(schema.production_pass)
    assert (first.number, second.number) == (0, 1)
    assert first.run_collection.rpartition("/")[2] not in second.run_collection
    passes = {(row.per, row.data_id): row.pass_id for row in site.rows(schema.sub_job)}
    assert [passes["unit", f"run=1 subrun={n}"] for n in range(4)] == [first.id, first.id, first.id, second.id]
    assert passes["group", "run=1"] == second.id
    told = next(row for row in site.rows(schema.journal) if row.kind == "reload.granted")
    assert (told.detail["by"], told.detail["why"], told.detail["answer"]) == ("ana", "a test", answered.answer)


async def test_units_that_wait_are_let_in_again_by_a_restart_only(new_site: NewSite, tmp_path: Path) -> None:
    """S9, V23: after a reload and a restart, what was still open under the old file goes on in a pass of the new."""
    old, new = tmp_path / "old", tmp_path / "new"
    site = new_site(pipelines(old))
    hold = {"quick": {"steps": [obey(notes=str(new))], "prescale": 1.0}}
    async with site.running():
        site.arrive(0, f"until {tmp_path / 'never'}")
        await site.until(lambda: Counter(site.stages("quick").values())["running"] == 1)
        assert (await reload(site, declare(hold))).is_granted
    async with site.running():
        (tmp_path / "never").touch()
        await site.until_done(1)
    assert Counter(row.state for row in site.rows(schema.sub_job)) == {"cancelled": 1, "done": 1}
    assert "subrun=0" in new.read_text()


WRONG: dict[str, tuple[Declared, str]] = {
    "mistake": (declare({"quick": {"steps": [obey()], "after": ["slow"]}}), "slow"),
    "restart": (declare(station={"lease_s": 60}), "station.lease_s"),
    "both": (declare({"quick": {"steps": [obey()], "prescale": 0.5}}, station={"lease_s": 60}), "station.lease_s"),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_file_changes_nothing(new_site: NewSite, wrong: str) -> None:
    """S9, S8: it is refused in the words of `p3s check`, and good data go on by the old one."""
    declared, word = WRONG[wrong]
    site = new_site(declare())
    async with site.running() as running:
        before = running.station.experiment
        answered = await reload(site, declared)
        assert answered.is_granted is False
        assert word in answered.answer
        if wrong == "mistake":
            with pytest.raises(ExperimentFileErrors) as errors:
                site.home.read()
            assert answered.answer == str(errors.value)
        assert running.station.experiment is before
        site.arrive(0)
        await site.until_done(1)
        (row,) = (row for row in site.rows(schema.journal) if row.kind == "reload.refused")
        assert row.detail["answer"] == answered.answer
        # And the next good one is taken.
        assert (await reload(site, declare({"quick": {"steps": [obey()], "retries": 7}}))).is_granted
        site.arrive(1)
        await site.until_done(2)
    assert len({row.run_collection for row in site.rows(schema.production_pass)}) == 2


async def test_streams_pipelines_and_classes_come_and_go(new_site: NewSite) -> None:
    """S9, P2: another place is watched, and the old one no more; nothing that was seen before is taken twice."""
    site = new_site(declare())
    async with site.running() as running:
        site.arrive(0)
        await site.until_done(1)
        changed = declare(stream={"directory": "elsewhere", "rules": [{"pipelines": ["fast", "dqm"]}]})
        changed["pipelines"]["fast"] = {**changed["pipelines"]["dqm"], "class": "alerts"}
        changed["classes"] = {"alerts": {"priority": 5}}
        answered = await reload(site, changed)
        assert answered.is_granted
        assert "classes.alerts: added" in answered.answer
        assert "pipelines.fast: added" in answered.answer
        (source,) = (await running.get("/api/status"))["station"]["sources"]
        assert source["directory"].endswith("elsewhere")
        elsewhere = site.path / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        site.arrive(5)
        (site.incoming / site.name(1)).write_text("old place, as another file")
        for subrun in (0, 7):
            (elsewhere / f".{subrun}.tmp").write_text(f"data of 1 {subrun}")
            (elsewhere / f".{subrun}.tmp").rename(elsewhere / site.name(subrun))
        await site.until_done(3)
        assert {row.pipeline for row in site.rows(schema.job)} == {"dqm", "fast"}
        # Back again: what lay in the old place meanwhile is found.
        assert (await reload(site, declare())).is_granted
        await site.until(lambda: site.units().get("run=1 subrun=5") == "done")
    assert Counter(row.verdict for row in site.rows(schema.arrival))["conflict"] == 0
    assert sorted(site.units()) == [f"run=1 subrun={n}" for n in (0, 1, 5, 7)]


async def test_the_command_tells_what_was_taken_over_or_why_not(new_site: NewSite) -> None:
    """S9: as words and as JSON; it fails when the station refuses."""
    site = new_site(declare())
    run = partial(typed, site, "reload", "--why", "a test")
    async with site.running() as running:
        await site.until(site.home.station)
        site.declare(declare({"quick": {"steps": [obey()], "retries": 7}}))
        taken = await run()
        assert taken.exit_code == 0
        assert "pipelines.dqm.stages.quick.retries: 1 -> 7" in taken.output
        assert json.loads((await run("--json")).output) == {"ok": True, "answer": ["nothing has changed"]}
        site.declare(declare(station={"lease_s": 60}))
        told = await run("--json")
        assert told.exit_code == 1
        assert "station.lease_s" in json.loads(told.output)["answer"][0]
        refused = await run()
        assert isinstance(refused.exception, ServiceError)
        assert "nothing has changed" in str(refused.exception)
        site.declare(declare(ledger={"url": "sqlite:///other.db"}))
        refused = await run()
        assert "ledger.url" in str(refused.exception)
        assert not (site.path / "other.db").exists()
        assert running.station.experiment.pipelines["dqm"].stages["quick"].retries == 7


async def test_commands_go_by_what_is_in_force_whatever_became_of_the_file(new_site: NewSite) -> None:
    """S9, S8: with mistakes in it, or gone, a shift can look and act; `p3s status` says that it was edited."""
    site = new_site(declare())
    async with site.running():
        await site.until(site.home.station)
        good = site.home.experiment_file.read_text()
        site.arrive(0)
        await site.until_done(1)
        assert not json.loads((await typed(site, "status", "--json")).output)["is_edited"]
        wrong = lambda: site.home.experiment_file.write_text("pipelines: [")  # noqa: E731 -- beside its like
        for spoil, says in ((wrong, "has mistakes"), (site.home.experiment_file.unlink, "is gone")):
            spoil()
            told = await typed(site, "status")
            assert (told.exit_code, says in told.output) == (0, True)
            assert "run=1 subrun=0" in (await typed(site, "list", "units")).output
            assert "set by" in (await typed(site, "limits")).output
            assert (await typed(site, "pause", "dqm", "--why", "a test")).exit_code == 0
            assert site.read(overrides.in_force)
            assert (await typed(site, "release", "dqm")).exit_code == 0
            assert not site.read(overrides.in_force)
            assert (await typed(site, "reload")).exit_code == 1
        # What is in order, and not in force yet, is not used either.
        site.declare(declare({"other": {"steps": [obey("other")]}}))
        assert "`p3s reload` has it take the file over" in (await typed(site, "status")).output
        refused = await typed(site, "pause", "dqm/other", "--why", "a test")
        assert isinstance(refused.exception, BadName)
        assert "is there after `p3s reload`" in refused.exception.fix
        assert (await typed(site, "reload")).exit_code == 0
        assert (await typed(site, "pause", "dqm/other", "--why", "a test")).exit_code == 0
        assert site.home.experiment_file.read_text() != good
        assert not site.home.is_edited()
    assert (await typed(site, "status")).exit_code == 0


async def test_a_text_comes_into_force_with_the_station_that_reads_it(new_site: NewSite) -> None:
    """S9: not before it is taken over; and nothing of it is left when the station has ended."""
    site = new_site(declare())
    kept = site.home.run / "experiment.yaml"
    async with site.running() as running:
        await site.until(site.home.station)
        assert kept.read_text() == site.home.experiment_file.read_text()
        before, gate = kept.read_text(), running.station.intake.gate
        async with gate.inside():
            answer = asyncio.create_task(reload(site, declare({"other": {"steps": [obey("other")]}})))
            await site.until(lambda: any(site.home.run.glob(".experiment.*.yaml")))
            assert kept.read_text() == before
        assert (await answer).is_granted
        assert kept.read_text() == site.home.experiment_file.read_text()
    assert not kept.exists()


async def test_a_request_of_before_the_start_is_answered(new_site: NewSite) -> None:
    """S9: whoever asked a station that was killed is not left waiting; it has read the file."""
    site = new_site(declare())
    with site.ledger.transaction() as connection:
        number = requests.ask(connection, "reload", by="ana", why="", now=1.0)
    async with site.running():
        answered = await site.until(
            lambda: (found := site.read(lambda c: requests.look_up(c, number))).is_granted is not None and found
        )
        assert answered.is_granted
        assert answered.answer == "nothing has changed"


async def test_a_program_that_was_edited_gets_a_new_collection(new_site: NewSite, tmp_path: Path) -> None:
    """S9, V23: the file is the same, and what it names is not."""
    script = tmp_path / "home" / "step.sh"
    script.parent.mkdir(exist_ok=True)
    script.write_text("#!/bin/sh\ntrue\n")
    script.chmod(0o755)
    step = {"name": "work", "command": ["./step.sh"], "inputs": {"raw": "raw"}}
    site = new_site(declare({"quick": {"steps": [step]}}))
    async with site.running():
        site.arrive(0)
        await site.until_done(1)
        script.write_text("#!/bin/sh\ntrue # better\n")
        answered = await reload(site, site.declared)
        assert answered.answer == "program ./step.sh: edited"
        site.arrive(1)
        await site.until_done(2)
    assert len({row.configuration_id for row in site.rows(schema.run_collection)}) == 2


async def test_a_restart_with_another_file_makes_the_totals_once(new_site: NewSite) -> None:
    """V23, P22: the run that was open goes on in a pass of the new file, and its totals are of that pass alone."""
    stages = {"quick": {"steps": [obey()]}, "total": total()}
    site = new_site(declare(stages, instrument={"closing": {"count": 2}}))
    async with site.running():
        site.arrive(0)
        await site.until_done(1)
    site.declare(declare(stages | {"quick": {"steps": [obey()], "retries": 7}}, instrument={"closing": {"count": 2}}))
    async with site.running():
        site.arrive(1)
        await site.until_settled(3)
    totals = [row for row in site.rows(schema.sub_job) if row.per == "group"]
    assert [row.pass_id for row in totals] == [site.rows(schema.production_pass)[-1].id]
    assert site.text("total", "run=1").splitlines()[0] == "done=2"


async def test_nothing_is_lost_or_doubled_when_it_happens_again_and_again(new_site: NewSite) -> None:
    """S9, P2: sources are stopped and begun anew while files arrive, and definitions change under them."""
    files = {True: declare(stream={"list_every_s": 0.4}), False: declare({"quick": {"steps": [obey()], "retries": 7}})}
    site = new_site(files[True])
    async with site.running():
        for subrun in range(80):
            site.arrive(subrun)
            if subrun % 10 == 9:
                assert (await reload(site, files[subrun % 20 == 19])).is_granted
        await site.until_done(80)
    assert Counter(row.verdict for row in site.rows(schema.arrival)) == {"taken": 80}
    assert len(site.rows(schema.sub_job)) == site.count(schema.attempt) == 80
    assert site.count(schema.production_pass) > 2


async def test_a_unit_that_is_half_let_in_is_of_the_file_under_which_it_began(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S9: it is in the ledger, and the dispatcher has not heard of it, when its only stage is renamed."""
    site = new_site(declare())
    async with site.running() as running:
        handout, gate, go_on = running.station.handout, running.station.intake.gate, asyncio.Event()
        add = handout.add

        async def add_late(fact: SubJobFact) -> None:
            await go_on.wait()
            await add(fact)

        monkeypatch.setattr(handout, "add", add_late)
        site.arrive(0)
        await site.until(lambda: len(site.units()) == 1)
        answer = asyncio.create_task(reload(site, declare({"other": {"steps": [obey("other")]}})))
        await site.until(lambda: answer.done() or not gate._open.is_set())
        assert not answer.done()
        site.arrive(1)
        go_on.set()
        assert (await answer).is_granted
        await site.until_done(2)
    assert site.stages() == {("run=1 subrun=0", "quick"): "done", ("run=1 subrun=1", "other"): "done"}
