"""What people do in Prefect acts on a station that runs, through the agent: real server, real agent process."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import browser
import pytest
from clusters import die_with_parent
from prefect_servers import PrefectProcess
from sites import NewSite, Running, Site, declare, obey, total
from test_station_prefect import Agent

from p3s_prefect.adapters.ledger import schema

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(600)]

STAGES = {"quick": {"steps": [obey("quick")], "retries": 0}, "total": total()}
PATIENCE_S = 120.0
# As Prefect's page is made.
SWITCH = "document.querySelector('.p-toggle input')"
RETRY = "[...document.querySelectorAll('button')].filter(one => one.innerText.trim() === 'Retry')[{}]"


def declared(prefect: PrefectProcess, name: str, stages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return declare(
        stages,
        pipeline={"class": "dqm"},
        prefect={"api_url": prefect.api, "pool": name},
        classes={"dqm": {"priority": 10}, "alerts": {"priority": 100}},
        **more,
    ) | {"experiment": name}


def say(prefect: PrefectProcess, run: dict[str, Any], kind: str, name: str) -> Any:
    """What the buttons of the page do."""
    answer = prefect.change("POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": kind, "name": name}})
    assert answer["status"] == "ACCEPT", answer
    return answer


def deployment(prefect: PrefectProcess, name: str) -> dict[str, Any] | None:
    found = prefect.ask("/deployments/filter", {"deployments": {"name": {"any_": [name]}}})
    return found[0] if found else None


def run(prefect: PrefectProcess, name: str, **parameters: Any) -> str:
    """Runs a pipeline's deployment by hand, and returns the id of the run."""
    found = deployment(prefect, name)
    assert found is not None
    made = prefect.ask(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})
    return str(made["id"])


def look(prefect: PrefectProcess, run_id: str) -> dict[str, Any]:
    return dict(prefect.get(f"/flow_runs/{run_id}"))


async def ended(site: Site, prefect: PrefectProcess, run_id: str) -> tuple[str, str]:
    """Type and message of a run's last state."""
    terminal = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    await site.until(lambda: look(prefect, run_id)["state_type"] in terminal, "the run ends", PATIENCE_S)
    state = look(prefect, run_id)["state"]
    return state["type"], state["message"]


def in_force(site: Site) -> set[tuple[str, str | None, int | None, str]]:
    return {
        (row.kind, row.work_class, row.value, row.given_by)
        for row in site.rows(schema.override)
        if row.ended_at is None
    }


async def test_a_run_asks_the_station_waits_and_ends_as_the_units_do(
    new_site: NewSite, prefect: PrefectProcess, tmp_path: Path
) -> None:
    """S2, B3: a failed unit fails the run in words; its retry tries again what failed; nonsense is refused."""
    mended = tmp_path / "mended"
    site = new_site(declared(prefect, "asked", STAGES, instrument={"closing": {"count": 3}}))
    with closing(Agent(site, prefect)) as agent:
        agent.start()
        async with site.running(slots=2):
            for subrun in range(2):
                site.arrive(subrun)
            site.arrive(2, f"unless {mended}")
            await site.until_settled(4)
            await site.until(lambda: deployment(prefect, "asked"), "the deployment", PATIENCE_S)
            number = run(prefect, "asked", group="run=1", which="all")
            kind, message = await ended(site, prefect, number)
            assert kind == "FAILED"
            assert "1 of 4 stage runs gave no results" in message
            assert "quick of run=1 subrun=2 failed" in message
            mended.write_text("")
            say(prefect, look(prefect, number), "SCHEDULED", "AwaitingRetry")
            await site.until(lambda: look(prefect, number)["state_type"] == "COMPLETED", "the retry", PATIENCE_S)
            for wrong, words in (
                ({"group": "run=7"}, "no group run=7"),
                ({"group": "run=1", "which": "some"}, "'missing', 'failed' or 'all'"),
                ({"group": "run=1", "units": ["run=1 subrun=9"]}, "no unit run=1 subrun=9"),
            ):
                kind, message = await ended(site, prefect, run(prefect, "asked", **wrong))
                assert (kind, words in message) == ("FAILED", True), message
    assert [row.number for row in site.rows(schema.production_pass)] == [0, 1]
    # The second time in pass 1, after one in each pass.
    assert site.count(schema.attempt) == 4 + 4 + 1
    tables = prefect.every("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [number]}}})
    assert [table["key"] for table in tables] == ["request", "request"]


async def test_a_worker_that_prefects_own_commands_start_asks_the_station(
    new_site: NewSite, prefect: PrefectProcess, tmp_path: Path
) -> None:
    """S2: `prefect work-pool create --type p3s`, and `prefect worker start` on a machine without `p3s up`."""
    pool = "by-hand"
    environment = os.environ | {"PREFECT_API_URL": prefect.api, "PREFECT_HOME": str(tmp_path / "prefect")}
    command = [str(Path(sys.executable).with_name("prefect")), "--no-prompt"]
    create = [*command, "work-pool", "create", pool, "--type", "p3s"]
    made = await asyncio.to_thread(subprocess.run, create, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    site = new_site(declare(STAGES, instrument={"closing": {"count": 1}}))
    async with site.running():
        site.arrive(0)
        await site.until_settled(2)
        flow = prefect.change("POST", "/flows/", {"name": f"process {pool}"})
        asked: dict[str, Any] = {"name": pool, "flow_id": flow["id"], "work_pool_name": pool}
        deployed = prefect.change("POST", "/deployments/", asked | {"entrypoint": "p3s_prefect.flows.process.process"})
        parameters = {"pipeline": "dqm", "group": "run=1", "which": "all", "home": str(site.path)}
        wanted = prefect.ask(f"/deployments/{deployed['id']}/create_flow_run", {"parameters": parameters})
        start = [*command, "worker", "start", "--pool", pool, "--name", "mine"]
        with begun(start, environment, tmp_path / "worker.log"):
            assert await ended(site, prefect, wanted["id"]) == ("COMPLETED", "1 unit begins in pass 1; 2 done")
            (seen,) = prefect.ask(f"/work_pools/{pool}/workers/filter")
            assert (seen["name"], seen["status"]) == ("mine", "ONLINE")
    assert [row.number for row in site.rows(schema.production_pass)] == [0, 1]


@contextmanager
def begun(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """A program that is ended again."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
        )
    with process:
        try:
            yield
        finally:
            process.kill()


async def test_the_buttons_of_prefects_page_steer_the_station(
    new_site: NewSite, prefect: PrefectProcess, tmp_path: Path
) -> None:
    """S2: the work pool's switch pauses and resumes all, and Retry at the run that failed tries it again."""
    browser.program()
    mended = tmp_path / "mended"
    site = new_site(declared(prefect, "pressed", STAGES, instrument={"closing": {"count": 1}}))

    def failed() -> Any:
        found = prefect.flow_runs("pressed").get("dqm run=1 pass 0")
        return found if found is not None and found["state_type"] == "FAILED" else None

    with closing(Agent(site, prefect)) as agent:
        agent.start()
        async with site.running():
            site.arrive(0, f"unless {mended}")
            recorded = await site.until(failed, "the run that failed", PATIENCE_S)
            mended.touch()
            with ExitStack() as opened:
                page = await asyncio.to_thread(opened.enter_context, browser.chromium(tmp_path / "browser"))
                page.open(f"{prefect.url}/work-pools/work-pool/pressed")
                await asyncio.to_thread(switch, page, prefect, "pressed", to_paused=True)
                await site.until(lambda: in_force(site) == {("pause", None, None, "prefect")}, "the pause", PATIENCE_S)
                await asyncio.to_thread(switch, page, prefect, "pressed", to_paused=False)
                await site.until(lambda: in_force(site) == set(), "it is resumed", PATIENCE_S)
                page.open(f"{prefect.url}/runs/flow-run/{recorded['id']}")
                # A dialogue asks whether it is meant, once the page is ready for the first press.
                asks = f"(({RETRY.format(0)})?.click(), !!({RETRY.format(1)}))"
                await asyncio.to_thread(page.until, lambda: page.find(asks))
                await asyncio.to_thread(page.press, RETRY.format(1))
                await site.until_done(1, patience_s=PATIENCE_S)
    (asked,) = site.rows(schema.request)
    assert (asked.kind, asked.asked_by, asked.is_granted) == ("retry", "prefect", True)


def switch(page: browser.Page, prefect: PrefectProcess, pool: str, *, to_paused: bool) -> None:
    """Presses the switch of the pool's page; again where nothing happens, as the page was not ready for it."""
    for _ in range(10):
        page.press(SWITCH)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            if prefect.get(f"/work_pools/{pool}")["is_paused"] is to_paused:
                return
            time.sleep(0.1)
    raise AssertionError(page.text())


@pytest.mark.alone
async def test_a_paused_queue_stops_its_class_within_two_seconds(new_site: NewSite, prefect: PrefectProcess) -> None:
    """S2, V18 (pool): pause and limit of queues act on their classes, by the pool that the experiment file names."""
    site = new_site(declared(prefect, "paused", {"quick": {"steps": [obey("quick")]}}))
    queue = "/work_pools/paused/queues/dqm"
    with closing(Agent(site, prefect)) as agent:
        agent.start()
        async with site.running(slots=2) as running:
            site.arrive(0)
            await site.until(lambda: deployment(prefect, "paused"), "the deployment", PATIENCE_S)
            arriving = asyncio.create_task(feed(site))
            delays_s = [await stopped_after(site, running, prefect, queue) for _ in range(3)]
            arriving.cancel()
            assert sorted(delays_s)[1] < 2, delays_s
            assert in_force(site) == set()
            prefect.change("PATCH", queue, {"concurrency_limit": 1})
            await site.until(lambda: in_force(site) == {("limit", "dqm", 1, "prefect")}, "the limit", PATIENCE_S)
            prefect.change("PATCH", "/work_pools/paused", {"is_paused": True})
            await site.until(lambda: ("pause", None, None, "prefect") in in_force(site), "the pause of all", PATIENCE_S)
            prefect.change("PATCH", "/work_pools/paused", {"is_paused": False})
            prefect.change("PATCH", queue, {"concurrency_limit": None})
            await site.until(lambda: in_force(site) == set(), "all lifted", PATIENCE_S)


async def feed(site: Site) -> None:
    """Half of what two slots can do, and no end to it."""
    for subrun in itertools.count(1):
        site.arrive(subrun, "sleep 0.1")
        await asyncio.sleep(0.1)


async def stopped_after(site: Site, running: Running, prefect: PrefectProcess, queue: str) -> float:
    """Pauses a queue while its units run, and resumes it: how long [s] its units went on being handed out."""
    seen = site.count(schema.attempt)
    await site.until(lambda: site.count(schema.attempt) > seen + 2, "units run", PATIENCE_S)
    paused_at = time.time()
    prefect.change("PATCH", queue, {"is_paused": True})
    await site.until(lambda: in_force(site) == {("pause", "dqm", None, "prefect")}, "the pause", PATIENCE_S)
    await running.until_steered()
    await site.until(lambda: site.count(schema.attempt, state="running") == 0, "nothing runs", PATIENCE_S)
    last = max(row.opened_at for row in site.rows(schema.attempt))
    await site.until(lambda: site.count(schema.stage_run, state="queued") > 2, "units wait", PATIENCE_S)
    assert max(row.opened_at for row in site.rows(schema.attempt)) == last
    prefect.change("PATCH", queue, {"is_paused": False})
    await site.until(lambda: in_force(site) == set(), "it is resumed", PATIENCE_S)
    return float(last - paused_at)


async def test_queues_in_another_order_give_their_classes_another_priority(
    new_site: NewSite, prefect: PrefectProcess
) -> None:
    """P10, S2: which stands before which decides; what was declared counts again when they stand as before."""
    site = new_site(declared(prefect, "ordered", {"quick": {"steps": [obey("quick")]}}))
    queues = "/work_pools/ordered/queues"

    def seen_first(name: str) -> bool:
        return [row.priority for row in site.rows(schema.prefect_queue) if row.name == name] == [1]

    with closing(Agent(site, prefect)) as agent:
        agent.start()
        async with site.running():
            site.arrive(0)
            await site.until(lambda: deployment(prefect, "ordered"), "the deployment", PATIENCE_S)
            prefect.change("POST", queues, {"name": "alerts", "priority": 1})
            await site.until(lambda: seen_first("alerts"), "the declared order is seen", PATIENCE_S)
            assert in_force(site) == set()
            prefect.change("PATCH", f"{queues}/dqm", {"priority": 1})
            swapped = {("priority", "dqm", 100, "prefect"), ("priority", "alerts", 10, "prefect")}
            await site.until(lambda: in_force(site) == swapped, "the other order", PATIENCE_S)
            prefect.change("PATCH", f"{queues}/alerts", {"priority": 1})
            await site.until(lambda: in_force(site) == set(), "as declared", PATIENCE_S)


async def test_a_recorded_run_is_retried_and_cancelled_from_prefect(
    new_site: NewSite, prefect: PrefectProcess, tmp_path: Path
) -> None:
    """S2, B3: Retry of the run that records a job asks for what failed; Cancel gives up what is open."""
    mended = tmp_path / "mended"
    site = new_site(declared(prefect, "steered", STAGES, instrument={"closing": {"count": 2}}))

    def recorded(name: str, kind: str) -> dict[str, Any] | None:
        found = prefect.flow_runs("steered").get(name)
        return found if found is not None and found["state_type"] == kind else None

    with closing(Agent(site, prefect)) as agent:
        agent.start()
        async with site.running(slots=2):
            site.arrive(0)
            site.arrive(1, f"unless {mended}")
            failed = await site.until(lambda: recorded("dqm run=1 pass 0", "FAILED"), "the record", PATIENCE_S)
            mended.write_text("")
            say(prefect, failed, "SCHEDULED", "AwaitingRetry")
            done = await site.until(lambda: recorded("dqm run=1 pass 0", "COMPLETED"), "the retry", PATIENCE_S)
            say(prefect, done, "SCHEDULED", "AwaitingRetry")
            refused = "nothing of it has failed"
            await site.until(
                lambda: refused in (look(prefect, done["id"])["state"]["message"] or ""), "refused", PATIENCE_S
            )
            assert look(prefect, done["id"])["state_type"] == "COMPLETED"
            site.arrive(0, "hang", run=2)
            site.arrive(1, "hang", run=2)
            running = await site.until(lambda: recorded("dqm run=2 pass 0", "RUNNING"), "run 2", PATIENCE_S)
            say(prefect, running, "CANCELLING", "Cancelling")
            await site.until(lambda: recorded("dqm run=2 pass 0", "CANCELLED"), "cancelled", PATIENCE_S)
    assert {state for (unit, _), state in site.stages().items() if "run=2" in unit} == {"cancelled"}
    assert set(site.units().values()) == {"done", "cancelled"}


async def test_an_agent_that_is_killed_leaves_nothing_at_running(
    new_site: NewSite, prefect: PrefectProcess, tmp_path: Path
) -> None:
    """S2: its successor takes the run up, which asks for nothing a second time."""
    gate = tmp_path / "gate"
    site = new_site(declared(prefect, "killed", {"quick": {"steps": [obey("quick")]}}))
    with closing(Agent(site, prefect)) as agent:
        agent.start()
        async with site.running(slots=2):
            gate.write_text("")
            site.arrive(0, f"until {gate}")
            await site.until_done(1)
            await site.until(lambda: deployment(prefect, "killed"), "the deployment", PATIENCE_S)
            gate.unlink()
            number = run(prefect, "killed", group="run=1", which="all")
            await site.until(lambda: site.count(schema.request, is_granted=True) == 1, "it waits", PATIENCE_S)
            agent.kill()
            assert look(prefect, number)["state_type"] == "RUNNING"
            agent.start()
            resumed = lambda: look(prefect, number)["run_count"] == 2  # noqa: E731
            await site.until(resumed, "its successor goes on", PATIENCE_S)
            gate.write_text("")
            kind, message = await ended(site, prefect, number)
            assert kind == "COMPLETED", message
    assert [row.kind for row in site.rows(schema.request)] == ["process"]
    assert site.count(schema.production_pass) == 2
