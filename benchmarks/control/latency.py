"""From the creation of a flow run to the first step of its one stage: our agent, and what Prefect has by itself."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import func, select

from benchmarks import rig
from benchmarks.control.server import Server, agent, kept, prefect, until
from benchmarks.table import Row, percentile
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import schema

RUNS = 40
# A run of these takes seconds.
SLOW_RUNS = 8
WANTED_P50_S, WANTED_P95_S = 0.8, 1.5
_PATIENCE_S = 120.0
_RIVALS = Path(__file__).parent / "rivals.py"


def run(runs: int = RUNS, slow_runs: int = SLOW_RUNS) -> list[Row]:
    """p50 and p95 of each; the wanted numbers are those of the agent."""
    with tempfile.TemporaryDirectory(prefix="p3s-bench-") as folder:
        home = rig.make_home(Path(folder) / "home")
        with prefect(home) as server:
            # They read their settings from it.
            os.environ |= {name: server.environment[name] for name in ("PREFECT_API_URL", "PREFECT_HOME")}
            ours = _ours(home, server, runs)
            found = {
                "flow.serve()": _served(home, server, slow_runs),
                "process worker": _worker(home, server, slow_runs),
                "DaskTaskRunner, in a warm process": _dask(home, slow_runs),
            }
    wanted = f"(wanted: {WANTED_P50_S:g} s, {WANTED_P95_S:g} s)"
    return [
        Row("creation to first step", "p50, p95", ""),
        Row("our agent", _told(ours), wanted),
        *(
            Row(name, _told(took), f"{percentile(took, 50) / percentile(ours, 50):.1f}x")
            for name, took in found.items()
        ),
    ]


def _told(took: list[float]) -> str:
    return f"{percentile(took, 50):.2f} s, {percentile(took, 95):.2f} s"


def _ours(home: Home, server: Server, runs: int) -> list[float]:
    """Each run asks for one new pass of one unit."""
    with rig.cluster(home) as cluster, rig.station(home, cluster.station), agent(home, server):
        rig.place(home, 1, 1)
        until(lambda: rig.number_done(home) >= 1, _PATIENCE_S)
        made = until(lambda: _deployment(server, "bench"), _PATIENCE_S)
        asked = {"group": "run=1", "which": "all"}
        return [_one_of_ours(home, server, made, asked) for _ in range(runs)]


def _one_of_ours(home: Home, server: Server, deployment_id: str, parameters: dict[str, str]) -> float:
    before, begun = _last_start(home), time.time()
    made = server.ask(f"/deployments/{deployment_id}/create_flow_run", {"parameters": parameters})
    started = until(lambda: _last_start(home) > before and _last_start(home), _PATIENCE_S)
    _until_ended(server, made["id"])
    return started - begun


def _last_start(home: Home) -> float:
    """When the newest attempt's payload started."""
    ledger = home.ledger(home.read())
    try:
        with ledger.reading() as connection:
            return connection.scalar(select(func.max(schema.attempt.c.started_at))) or 0.0
    finally:
        ledger.close()


def _served(home: Home, server: Server, runs: int) -> list[float]:
    command = [sys.executable, str(_RIVALS), "served"]
    with kept(command, server.environment, home.path / "serve.log"):
        made = until(lambda: _deployment(server, "served"), _PATIENCE_S)
        return [_one_deployed(home, server, made) for _ in range(runs)]


def _worker(home: Home, server: Server, runs: int) -> list[float]:
    server.ask("/work_pools/", {"name": "processes", "type": "process", "base_job_template": _process_template()})
    flow = server.ask("/flows/", {"name": "one-stage"})
    content = {
        "name": "by-worker",
        "flow_id": flow["id"],
        "entrypoint": f"{_RIVALS}:one_stage",
        "work_pool_name": "processes",
        "pull_steps": [],
    }
    made = server.ask("/deployments/", content)["id"]
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "processes"]
    with kept(command, server.environment, home.path / "worker.log"):
        return [_one_deployed(home, server, made) for _ in range(runs)]


def _process_template() -> dict[str, object]:
    from prefect.workers.process import ProcessWorker

    return ProcessWorker.get_default_base_job_template()


def _one_deployed(home: Home, server: Server, deployment_id: str) -> float:
    path = home.path / f"noted-{time.time_ns()}"
    begun = time.time()
    made = server.ask(f"/deployments/{deployment_id}/create_flow_run", {"parameters": {"path": str(path)}})
    until(lambda: path.exists() and path.read_text(), _PATIENCE_S)
    _until_ended(server, made["id"])
    return float(path.read_text()) - begun


def _dask(home: Home, runs: int) -> list[float]:
    from dask.distributed import LocalCluster
    from prefect_dask.task_runners import DaskTaskRunner

    from benchmarks.control.rivals import one_stage_on_dask

    with LocalCluster(n_workers=rig.WORKERS, threads_per_worker=1, dashboard_address=None) as cluster:
        flow = one_stage_on_dask.with_options(task_runner=DaskTaskRunner(address=cluster.scheduler_address))
        return [_one_call(home, flow) for _ in range(runs)]


def _one_call(home: Home, flow: Callable[[str], object]) -> float:
    path = home.path / f"noted-{time.time_ns()}"
    begun = time.time()
    flow(str(path))
    return float(path.read_text()) - begun


def _deployment(server: Server, name: str) -> str | None:
    found = server.ask("/deployments/filter", {"deployments": {"name": {"any_": [name]}}})
    return str(found[0]["id"]) if found else None


def _until_ended(server: Server, run_id: str) -> None:
    def has_ended() -> bool:
        (found,) = server.ask("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
        return found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

    until(has_ended, _PATIENCE_S)
