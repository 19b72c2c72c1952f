"""`p3s deploy`: brought to what files say, told, and again without any change; on a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployed_sites import DeployedSite
from prefect_servers import PrefectProcess
from typer.testing import CliRunner

from p3s_prefect.adapters.deployment_files import overlay_names, read_deployments, read_overlay
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.prefect_pools import pools
from p3s_prefect.blocks import CentralStore, Pilots
from p3s_prefect.blocks.site import at_site
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.deployment import Applied, overlaid
from p3s_prefect.core.errors import BadName, ExperimentFileErrors, ServiceError

pytestmark = pytest.mark.sockets

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 300
_POLL_S = 0.2


def became(applied: Sequence[Applied]) -> set[str]:
    return {str(one.became) for one in applied}


def changed(applied: Sequence[Applied]) -> dict[str, tuple[str, ...]]:
    return {one.name: one.changes for one in applied if one.became == "updated"}


def ended(program: str, *arguments: str, cwd: Path, **environment: str) -> str:
    """What a program says that ends well."""
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def queues(prefect: PrefectProcess, pool: str) -> list[tuple[str, int | None, bool]]:
    """Its queues, the one that goes first first."""
    found = sorted(prefect.ask(f"/work_pools/{pool}/queues/filter"), key=lambda one: int(one["priority"]))
    return [(one["name"], one["concurrency_limit"], one["is_paused"]) for one in found]


def pools_in(prefect: PrefectProcess) -> list[dict[str, Any]]:
    """All that they are, but for what their workers make of them."""
    varying = {"status", "updated"}
    return [{key: one[key] for key in one.keys() - varying} for one in prefect.ask("/work_pools/filter")]


def deployment(prefect: PrefectProcess, name: str) -> dict[str, Any]:
    (found,) = prefect.ask("/deployments/filter", {"deployments": {"name": {"any_": [name]}}})
    return dict(found)


def test_the_command_and_prefect_itself_come_to_the_same(prefect: PrefectProcess, site: DeployedSite) -> None:
    """S2: looked at, made, and nothing to do; `prefect deploy --all` works on the same file, and changes nothing."""
    own = {"PREFECT_API_URL": prefect.api, "PREFECT_HOME": str(site.path / "prefect")}
    before = pools_in(prefect)

    looked = json.loads(ended("p3s", "deploy", "--dry-run", "--json", cwd=site.path, **own))
    assert {one["became"] for one in looked["applied"]} == {"created"}
    assert pools_in(prefect) == before

    told = ended("p3s", "deploy", cwd=site.path, **own)
    assert f"{len(looked['applied'])} created." in told
    assert [name for name, _, _ in queues(prefect, "p3s")] == ["alerts", "dqm", "default"]
    assert deployment(prefect, "produce")["parameters"] == {"home": str(site.path), "site": site.name}

    assert f"{len(looked['applied'])} unchanged." in ended("p3s", "deploy", cwd=site.path, **own)
    before_bytes = (ROOT / "prefect.yaml").read_bytes()
    ended("prefect", "--no-prompt", "deploy", "--all", cwd=ROOT, **own)
    assert (ROOT / "prefect.yaml").read_bytes() == before_bytes
    again = json.loads(ended("p3s", "deploy", "--json", cwd=site.path, **own))
    assert {one["became"] for one in again["applied"]} == {"unchanged"}, again


def test_a_changed_experiment_changes_its_queues(prefect: PrefectProcess, site: DeployedSite) -> None:
    """S2: a new class between the others, a new limit: told with the old value and the new one."""
    assert became(site.deploy()) == {"created"}
    assert queues(prefect, site.pool) == [("alerts", 4, False), ("dqm", None, False), ("default", None, False)]

    site.declare("{dqm: {priority: 10}, urgent: {priority: 50}, alerts: {priority: 100, limit: 2}}")
    looked = site.deploy(dry_run=True)
    assert [name for name, _, _ in queues(prefect, site.pool)] == ["alerts", "dqm", "default"]
    told = site.deploy()
    assert told == looked
    assert [one.name for one in told if one.became == "created"] == [f"{site.pool}/urgent"]
    assert changed(told) == {
        f"{site.pool}/alerts": ("concurrency_limit 4 -> 2",),
        f"{site.pool}/dqm": ("priority 2 -> 3",),
        f"{site.pool}/default": ("priority 3 -> 4",),
    }
    assert [name for name, _, _ in queues(prefect, site.pool)] == ["alerts", "urgent", "dqm", "default"]
    assert became(site.deploy()) == {"unchanged"}


def test_every_order_of_classes_is_reached(prefect: PrefectProcess, site: DeployedSite) -> None:
    """S2: Prefect moves others on where a priority is taken; the last word is that of the file."""
    site.deploy()
    for first, second in (("a", "b"), ("b", "a")):
        site.declare(f"{{{first}: {{priority: 9}}, {second}: {{priority: 8}}, default: {{priority: 10}}}}")
        site.deploy()
        names = [name for name, _, _ in queues(prefect, site.pool)]
        assert [name for name in names if name in ("a", "b", "default")] == ["default", first, second]
        assert became(site.deploy()) == {"unchanged"}


def test_what_people_set_in_prefect_and_no_file_names_stays(prefect: PrefectProcess, site: DeployedSite) -> None:
    """S2: a paused queue, a pool's template, a paused deployment, a trigger that is switched off."""
    site.deployment = {"triggers": [{"type": "event", "expect": ["some.event"]}]}
    site.deploy()
    flow = deployment(prefect, site.name)
    (trigger,) = prefect.get(f"/automations/related-to/prefect.deployment.{flow['id']}")
    template = prefect.get(f"/work_pools/{site.pool}")["base_job_template"]
    template["job_configuration"]["mine"] = 1
    for path, content in (
        (f"/work_pools/{site.pool}/queues/dqm", {"is_paused": True}),
        (f"/work_pools/{site.pool}", {"base_job_template": template}),
        (f"/deployments/{flow['id']}", {"paused": True}),
        (f"/automations/{trigger['id']}", {"enabled": False}),
    ):
        prefect.change("PATCH", path, content)

    assert became(site.deploy()) == {"unchanged"}
    site.declare("{dqm: {priority: 10, limit: 3}, alerts: {priority: 100, limit: 4}}")
    site.overlay = {"deployments": {site.name: {"concurrency_limit": 5}}}
    assert set(changed(site.deploy())) == {f"{site.pool}/dqm", f"produce/{site.name}"}
    assert ("dqm", 3, True) in queues(prefect, site.pool)
    assert deployment(prefect, site.name)["paused"]
    (trigger,) = prefect.get(f"/automations/related-to/prefect.deployment.{flow['id']}")
    assert not trigger["enabled"]
    (pool,) = prefect.ask("/work_pools/filter", {"work_pools": {"name": {"any_": [site.pool]}}})
    assert pool["base_job_template"] == template


@pytest.mark.parametrize(
    "times", [{"cron": "0 12 * * *", "timezone": "Atlantic/Canary"}, {"interval": 3600}, {"rrule": "FREQ=DAILY"}]
)
def test_a_schedule_comes_and_goes(prefect: PrefectProcess, site: DeployedSite, times: Mapping[str, Any]) -> None:
    """S2: with the overlay that has it; unchanged in between."""
    site.overlay = {"deployments": {site.name: {"schedules": [dict(times)]}}}
    site.deploy()
    (made,) = deployment(prefect, site.name)["schedules"]
    assert {
        key: str(made["schedule"][key]).removesuffix(".0").endswith(str(value)) for key, value in times.items()
    } == dict.fromkeys(times, True)
    assert became(site.deploy()) == {"unchanged"}
    site.overlay = {}
    assert set(changed(site.deploy())) == {f"produce/{site.name}"}
    assert deployment(prefect, site.name)["schedules"] == []
    assert became(site.deploy()) == {"unchanged"}


def test_triggers_change_and_go(prefect: PrefectProcess, site: DeployedSite) -> None:
    """S2: as declared now, and nobody else's."""

    def names() -> list[str]:
        path = f"{prefect.api}/automations/related-to/prefect.deployment.{deployment(prefect, site.name)['id']}"
        return sorted(one["name"] for one in httpx.get(path).json())

    site.deployment = {"triggers": [{"type": "event", "expect": ["some.event"]}]}
    site.deploy()
    (mine,) = httpx.get(
        f"{prefect.api}/automations/related-to/prefect.deployment.{deployment(prefect, site.name)['id']}"
    ).json()
    kept = {key: mine[key] for key in ("trigger", "actions")} | {"name": "somebody else's"}
    prefect.change("POST", "/automations/", kept)
    assert became(site.deploy()) == {"unchanged"}

    site.deployment = {"triggers": [{"type": "event", "expect": ["another.event"]}]}
    assert changed(site.deploy()) == {f"produce/{site.name}": ("triggers 1 -> 1",)}
    assert names() == [f"{site.name}__automation_1", "somebody else's"]
    site.deployment = {}
    assert changed(site.deploy()) == {f"produce/{site.name}": ("triggers 1 -> 0",)}
    assert names() == ["somebody else's"]


def test_files_that_are_announced_are_produced_where_the_blocks_say(
    prefect: PrefectProcess, site: DeployedSite
) -> None:
    """S2, S5: an event, its run in a process of its own, and the results in the store of the site's block."""
    (trigger,) = next(one for one in read_deployments() if one.name == "produce").triggers
    site.deployment = {"triggers": [trigger | {"name": f"{site.name} files", "expect": [f"{site.name}.ready"]}]}
    site.deploy()
    elsewhere = site.path / "elsewhere" / "store"
    elsewhere.parent.mkdir()
    CentralStore(directory=str(elsewhere)).save(site.name, overwrite=True)
    (site.path / "incoming").mkdir()
    files = [site.path / "incoming" / f"run1_{part}.dat" for part in range(2)]
    for file in files:
        file.write_text("12345")

    announce(prefect, f"{site.name}.ready", files=[str(file) for file in files])
    run = triggered(prefect, site.name)
    assert run["parameters"]["files"] == [str(file) for file in files]
    own = {"PREFECT_API_URL": prefect.api, "PREFECT_HOME": str(site.path / "prefect")}
    ended("prefect", "worker", "start", "--pool", site.pool, "--run-once", cwd=site.path.parent, **own)

    (run,) = prefect.ask("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    assert run["state"]["type"] == "COMPLETED", run["state"]
    sizes = [path.read_text().strip() for path in elsewhere.glob("runs/**/size.*") if path.is_file()]
    assert sizes == ["5", "5"], sorted(elsewhere.glob("runs/**/*"))
    assert not (site.path / "store" / "runs").exists()


def announce(prefect: PrefectProcess, event: str, **payload: Any) -> None:
    content = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event,
        "resource": {"prefect.resource.id": "p3s.test"},
        "payload": payload,
    }
    prefect.change("POST", "/events", [content])


def triggered(prefect: PrefectProcess, name: str) -> dict[str, Any]:
    """The first run of a deployment, as soon as there is one."""
    chosen = {"deployments": {"id": {"any_": [deployment(prefect, name)["id"]]}}}
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        if found := prefect.ask("/flow_runs/filter", chosen):
            return dict(found[0])
        time.sleep(_POLL_S)
    raise AssertionError("the event has started nothing")


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a type of workers that is not installed": ({"type": "proces"}, {}, "Did you mean process"),
    "a flow that is not there": ({}, {"entrypoint": "p3s_prefect.flows.produce.prodce"}, "Correct the entrypoint"),
    "a module that is not there": ({}, {"entrypoint": "p3s_prefect.flows.absent.flow"}, "Correct the entrypoint"),
    "a schedule without times": ({}, {"schedules": [{"slug": "nightly"}]}, "cron"),
    "a schedule that is none": ({}, {"schedules": [{"cron": "at noon"}]}, "cron"),
    "a trigger of no kind": ({}, {"triggers": [{"type": "evnt"}]}, "event-triggers"),
    "a trigger with another's name": ({}, {"triggers": [{"type": "event", "name": "else"}]}, "Begin it with"),
}


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("case", WRONG)
def test_what_prefect_does_not_take_is_told(site: DeployedSite, case: str, dry_run: bool) -> None:
    """S8: what, where and what to do; not a traceback of somebody else's."""
    pool, own, fix = WRONG[case]
    site.overlay = {"pools": {site.pool: {"type": "process"} | pool}}
    site.deployment = own
    with pytest.raises(ServiceError) as told:
        site.deploy(dry_run=dry_run)
    assert fix in told.value.fix


def test_a_pool_of_another_type_is_not_touched(prefect: PrefectProcess, site: DeployedSite) -> None:
    """S8: a type cannot be changed, and what waits there may be somebody's."""
    site.deploy()
    site.overlay = {"pools": {site.pool: {"type": "p3s"}}}
    with pytest.raises(ServiceError, match="has the type process, not p3s"):
        site.deploy()
    (pool,) = prefect.ask("/work_pools/filter", {"work_pools": {"name": {"any_": [site.pool]}}})
    assert pool["type"] == "process"


def test_blocks_that_are_not_there_are_told(site: DeployedSite) -> None:
    """S8: a run that names a site that nobody has deployed."""
    with pytest.raises(ServiceError, match="no usable block p3s-pilots/absent") as told:
        at_site(Home(site.path).read(), "absent")
    assert "p3s deploy" in told.value.fix


def test_pilots_of_an_overlay_are_those_of_the_block(site: DeployedSite) -> None:
    """S5, S8: they go before the experiment file; a field that the block has not is told."""
    site.overlay = {"pilots": {"cluster_class": "dask_jobqueue.SLURMCluster", "cluster_kwargs": {"cores": 2}}}
    site.deploy()
    found = Pilots.load(site.name)
    assert (found.workers, found.cluster_class, found.cluster_kwargs) == (
        1,
        "dask_jobqueue.SLURMCluster",
        {"cores": 2},
    )
    site.overlay = {"pilots": {"workers": "many"}}
    with pytest.raises(ServiceError, match=r"pilots\.workers"):
        site.deploy()


def test_runs_without_a_worker_are_told_by_status(
    prefect: PrefectProcess, site: DeployedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P19: a deployment for a pool without workers, a run that waits there, and a worker that comes."""
    monkeypatch.setenv("PREFECT_API_URL", prefect.api)
    site.deploy()
    with closing(Home(site.path).ledger(Home(site.path).read())) as ledger:
        ledger.migrate()

    def row() -> dict[str, str]:
        """The row of the pool; there is none where the server was too busy to answer within some seconds."""
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            told = CliRunner().invoke(commands(), ["status", "--json", "--home", str(site.path)])
            assert told.exit_code == 0, told.output
            for one in json.loads(told.output)["health"]:
                if one["name"] == f"pool {site.pool}":
                    return dict(one)
        raise AssertionError(f"p3s status has no row for the pool {site.pool}")

    assert (row()["status"], row()["actual"]) == ("ok", "no worker, nothing waits")
    flow = deployment(prefect, site.name)
    prefect.ask(
        f"/deployments/{flow['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}, "parameters": {"files": []}}
    )
    assert (row()["status"], row()["actual"]) == ("degraded", "no worker, 1 run waits")
    assert f"prefect worker start --pool {site.pool}" in row()["action"]
    prefect.change("POST", f"/work_pools/{site.pool}/workers/heartbeat", {"name": "w"})
    assert (row()["status"], row()["actual"]) == ("ok", "a worker, 1 run waits")


def test_status_does_not_stand_on_prefect(prefect: PrefectProcess) -> None:
    """V21: no server, one that hides its interface elsewhere, and something else at the address."""
    for url in ("http://127.0.0.1:9/api", f"{prefect.url}/absent", prefect.url):
        assert pools(url) == ()


def test_no_server_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S8: before Prefect is imported, with what to do."""
    site = DeployedSite(path=tmp_path)
    site.declare()
    with pytest.raises(ServiceError, match="has no Prefect server"):
        CliRunner().invoke(commands(), ["deploy", "--home", str(tmp_path)], catch_exceptions=False)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(ServiceError, match="no Prefect server answers at"):
        CliRunner().invoke(commands(), ["deploy", "--home", str(tmp_path)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("pols: {}", "line 1|:1: pols"),
        ("pools: {p: {type: process, concurrency_limit: many}}", "concurrency_limit"),
        ("pools: {p: {type: process, queues: all}}", "queues"),
        ("pools: {}", "pools"),
        ("- pools", "not a mapping"),
    ],
)
def test_a_wrong_overlay_names_the_place(tmp_path: Path, text: str, what: str) -> None:
    """S8: as in an experiment file."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ExperimentFileErrors, match=what) as told:
        read_overlay(str(file))
    assert str(file) in str(told.value)


def test_what_prefect_yaml_may_have_and_we_do_not_apply_is_refused(tmp_path: Path) -> None:
    """S8: never passed over in silence."""
    text = (ROOT / "prefect.yaml").read_text()
    for line in ("build: []", "push: []"):
        (tmp_path / "prefect.yaml").write_text(f"{text}\n{line}\n")
        with pytest.raises(ExperimentFileErrors, match="is not a key here"):
            read_deployments(tmp_path / "prefect.yaml")


def test_an_overlay_that_is_not_shipped_is_told() -> None:
    """S8: those that are, and the nearest one."""
    with pytest.raises(BadName, match="no overlay 'slrum'") as told:
        read_overlay("slrum")
    assert "Did you mean slurm?" in told.value.fix
    with pytest.raises(ExperimentFileErrors, match="no such file") as missing:
        read_overlay("slrum.yaml")
    assert "--home" not in missing.value.fix


@pytest.mark.parametrize("name", overlay_names())
def test_every_shipped_overlay_fits_the_shipped_deployments(name: str) -> None:
    """S5: each pool that a deployment names is there, and the pilots are what the block takes."""
    assert name in CliRunner().invoke(commands(), ["deploy", "--help"], env={"COLUMNS": "200"}).output
    overlay = read_overlay(name)
    assert overlaid(read_deployments(), overlay)
    assert Pilots(**overlay.pilots)
