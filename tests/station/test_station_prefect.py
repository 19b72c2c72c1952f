"""Prefect's server and the agent come and go while the station works."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from clusters import die_with_parent
from prefect_servers import PrefectProcess
from sites import NewSite, Site, declare, obey, total
from sqlalchemy import select

from p3s_prefect.adapters.ledger import agent_cursor, schema

pytestmark = pytest.mark.sockets

OUTAGE_S = float(os.environ.get("P3S_OUTAGE_S", "60"))
# One run is a flow run; it must be smaller than what is recorded by stage.
RUN = 20
PAUSED_RUN = 900
# Longer than Prefect's clients try again, so that whoever talked to the server has given up.
GONE_S = 30.0
QUEUES = "/work_pools/p3s/queues"
EVERY_S = 0.5
# What waited for Prefect in the first third of the outage would be given up.
DEADLINE_S = min(40.0, OUTAGE_S * 2 / 3)
PATIENCE_S = 180.0


@pytest.fixture
def prefect(tmp_path: Path) -> Iterator[PrefectProcess]:
    """A server of its own, to be killed."""
    with closing(PrefectProcess(tmp_path / "prefect")) as server:
        server.start()
        server.until_up()
        yield server


class Agent:
    """The agent as a process of its own, with the command of `p3s up`."""

    def __init__(self, site: Site, prefect: PrefectProcess) -> None:
        self._site, self._prefect = site, prefect
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._site.path / "agent.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "p3s_prefect.cli",
                    "agent",
                    "--home",
                    str(self._site.path),
                ],
                env=os.environ | {"PREFECT_API_URL": self._prefect.api, "PREFECT_HOME": str(self._site.path / "p")},
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()


class Load:
    """Files that arrive one after the other, in runs."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.arrived = 0

    async def run(self) -> None:
        while True:
            self._site.arrive(self.arrived % RUN, run=1 + self.arrived // RUN)
            self.arrived += 1
            await asyncio.sleep(EVERY_S)

    def complete(self) -> None:
        """The rest of the last run."""
        while self.arrived % RUN:
            self._site.arrive(self.arrived % RUN, run=1 + self.arrived // RUN)
            self.arrived += 1


def behind(site: Site) -> int:
    """Lines of the journal that are not recorded."""
    return int(site.read(lambda connection: agent_cursor.record_facts(connection, time.time())).behind)


@pytest.mark.timeout(900 + OUTAGE_S)
async def test_an_outage_of_prefect_delays_nothing_and_leaves_no_gap(
    new_site: NewSite, prefect: PrefectProcess
) -> None:
    """V21, V24: the server is gone under load, the agent is killed meanwhile, and the server once more while it catches
    up: every stage is done in time, and afterwards the record has each attempt once, with the ledger's times. What was
    paused in Prefect before stays paused, until it is resumed there."""
    stages = {"quick": {"steps": [obey()], "deadline_s": DEADLINE_S}, "total": total()}
    site = new_site(
        declare(
            instrument={"closing": {"count": RUN}},
            stream={"rules": [{"when": {"run": PAUSED_RUN}, "pipelines": ["calm"]}, {"pipelines": ["dqm"]}]},
            pipelines={
                "dqm": {"stages": stages, "order": "oldest-first"},
                "calm": {"class": "calm", "stages": {"slow": {"steps": [obey("slow")]}}},
            },
            classes={"calm": {"priority": 100}},
            dataset_types={kind: {"format": "text"} for kind in ("raw", "made-quick", "made-slow", "total")},
            prefect={"api_url": prefect.api},
            pilots={"workers": 2},
        )
    )
    load = Load(site)
    with closing(Agent(site, prefect)) as agent:
        agent.start()
        async with site.running(slots=2) as running:
            arriving = asyncio.create_task(load.run())
            await site.until(lambda: prefect.flow_runs("test"), "a flow run", PATIENCE_S)
            await site.until(lambda: is_deployed(prefect, "test"), "the deployment, and its pool", PATIENCE_S)
            # As `p3s deploy` makes it.
            prefect.change("POST", QUEUES, {"name": "calm", "is_paused": True})
            await site.until(lambda: pauses(site) == ["calm"], "the pause", PATIENCE_S)
            await running.until_steered()
            await asyncio.to_thread(prefect.kill)
            site.arrive(0, run=PAUSED_RUN)
            before, gone_at = load.arrived, time.time()
            await asyncio.sleep(OUTAGE_S / 2)
            agent.kill()
            agent.start()
            await asyncio.sleep(OUTAGE_S / 2)
            assert behind(site) > 0
            came = load.arrived - before
            await site.until_done(load.arrived - 10, patience_s=PATIENCE_S)
            prefect.start()
            await asyncio.to_thread(prefect.until_up)
            back_at = time.time()
            # Killed with events that it has accepted and not recorded.
            seen = behind(site)
            await site.until(lambda: behind(site) < seen, "catching up", PATIENCE_S)
            await asyncio.to_thread(prefect.kill)
            prefect.start()
            await asyncio.to_thread(prefect.until_up)
            arriving.cancel()
            load.complete()
            await site.until_done(load.arrived, patience_s=PATIENCE_S)
            # Of the highest priority, all the time.
            assert site.stages()[f"run={PAUSED_RUN} subrun=0", "slow"] == "queued"
            assert pauses(site) == ["calm"]
            prefect.change("PATCH", f"{QUEUES}/calm", {"is_paused": False})
            await site.until_settled(load.arrived + load.arrived // RUN + 1, patience_s=PATIENCE_S)
            await site.until(lambda: behind(site) == 0, "the record", PATIENCE_S)
    during = [row for row in site.rows(schema.attempt) if gone_at < row.opened_at < back_at]
    assert came > 20
    assert len(during) > came / 2
    assert set(site.stages().values()) == {"done"}
    assert {row.state for row in site.rows(schema.attempt)} == {"done"}
    assert recorded(prefect) == expected(site)


@pytest.mark.timeout(600)
async def test_a_run_that_waits_for_units_outlives_the_server(
    new_site: NewSite, prefect: PrefectProcess, tmp_path: Path
) -> None:
    """V21, S2: it asks the station once, and ends as its units do, when the server is back; none hangs at Running."""
    gate = tmp_path / "gate"
    site = new_site(declare({"quick": {"steps": [{**obey(), "timeout_s": 300}]}}, prefect={"api_url": prefect.api}))
    with closing(Agent(site, prefect)) as agent:
        agent.start()
        async with site.running():
            gate.touch()
            site.arrive(0, f"until {gate}")
            await site.until_done(1)
            gate.unlink()
            await site.until(lambda: is_deployed(prefect, "test"), "the deployment", PATIENCE_S)
            (found,) = prefect.ask("/deployments/filter", {"deployments": {"name": {"any_": ["test"]}}})
            parameters = {"group": "run=1", "which": "all"}
            asked = prefect.ask(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})

            def state() -> str:
                return str(prefect.get(f"/flow_runs/{asked['id']}")["state_type"])

            await site.until(
                lambda: site.count(schema.attempt, state="running") == 1, "the unit runs again", PATIENCE_S
            )
            await site.until(lambda: state() == "RUNNING", "the run waits", PATIENCE_S)
            await asyncio.to_thread(prefect.kill)
            await asyncio.sleep(GONE_S)
            prefect.start()
            await asyncio.to_thread(prefect.until_up)
            gate.touch()
            await site.until(lambda: state() in ("COMPLETED", "FAILED", "CRASHED"), "the run ends", PATIENCE_S)
            assert state() == "COMPLETED"
    assert site.count(schema.request) == 1
    assert site.count(schema.attempt) == 2


def is_deployed(prefect: PrefectProcess, name: str) -> bool:
    """Whether the deployment of an experiment's first pipeline is there."""
    return len(prefect.ask("/deployments/filter", {"deployments": {"name": {"any_": [name]}}})) == 1


def pauses(site: Site) -> list[str]:
    """The classes that are paused."""
    rows = site.rows(schema.override)
    return [row.work_class for row in rows if row.kind == "pause" and row.ended_at is None]


def recorded(prefect: PrefectProcess) -> dict[tuple[str, str], Any]:
    """Every task run of complete runs by the names of its flow run and its own: times and history."""
    found = {}
    for flow_run in prefect.flow_runs("test").values():
        if flow_run["name"].startswith("calm "):
            continue
        for name, run in prefect.task_runs(flow_run).items():
            history = prefect.states(run)
            # That it was queued is told where it was seen.
            assert len(set(history)) == len(history) <= 4
            times = (datetime.fromisoformat(run[time]).timestamp() for time in ("start_time", "end_time"))
            found[flow_run["name"], name] = (flow_run["state_type"], *times, history[-2:])
    return found


def expected(site: Site) -> dict[tuple[str, str], Any]:
    """The same from the ledger."""
    query = (
        select(schema.attempt, schema.stage_run.c.stage, schema.sub_job.c.data_id)
        .join(schema.stage_run, schema.stage_run.c.id == schema.attempt.c.stage_run_id)
        .join(schema.sub_job, schema.sub_job.c.id == schema.stage_run.c.sub_job_id)
        .where(schema.stage_run.c.stage != "slow")
    )
    found = {}
    for row in site.read(lambda connection: connection.execute(query).all()):
        run, _, subrun = row.data_id.partition(" ")
        times = (pytest.approx(row.started_at, abs=2e-6), pytest.approx(row.ended_at, abs=2e-6))
        history = [("RUNNING", "Running"), ("COMPLETED", "Completed")]
        found[f"dqm {run} pass 0", f"{row.stage} {subrun}".strip()] = ("COMPLETED", *times, history)
    return found
