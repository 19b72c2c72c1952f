"""A production that a worker runs in a process of its own is cancelled from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from batches import Batch
from clusters import below, die_with_parent

pytestmark = pytest.mark.sockets

POOL = "to-be-cancelled"
_PATIENCE_S = 300


def until(happened: Callable[[], Any]) -> None:
    stop_at = time.monotonic() + _PATIENCE_S
    while not happened():
        assert time.monotonic() < stop_at
        time.sleep(0.1)


@contextmanager
def worker(environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process worker of the pool."""
    command = [str(Path(sys.executable).with_name("prefect")), "worker", "start", "--pool", POOL, "--type", "process"]
    with (tmp_path / "worker.log").open("wb") as log:
        found = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
        )
    try:
        yield found
    finally:
        # How Prefect's worker ends is not ours, and takes its time; what it has started ends with it.
        for process in below(found.pid):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        found.kill()
        found.wait()


def test_flow_run_cancel_ends_everything(prefect_api: str, tmp_path: Path) -> None:
    """S2: `prefect flow-run cancel`: the run is shown as cancelled, its attempt as stopped, and no process is left."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    batch = Batch.of(tmp_path / "home", {0: "hang"})
    # It would look for runs every 10 s.
    looking = {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    environment = os.environ | looking | {"PREFECT_API_URL": prefect_api, "PREFECT_HOME": str(tmp_path / "prefect")}
    with get_client(sync_client=True) as client, worker(environment, tmp_path) as process:
        until(lambda: any(pool.name == POOL for pool in client.read_work_pools()))
        flow_id = client.create_flow_from_name("produce")
        deployment = client.create_deployment(
            flow_id, "cancelled", entrypoint="p3s_prefect.flows.produce.produce", work_pool_name=POOL
        )
        parameters = {"files": batch.files, "home": str(batch.path)}
        run = client.create_flow_run_from_deployment(deployment, parameters=parameters)
        until(lambda: batch.hangs)
        processes = below(process.pid)
        client.set_flow_run_state(run.id, Cancelling())
        until(lambda: client.read_flow_run(run.id).state.is_final())
        _, alive = psutil.wait_procs(processes, timeout=_PATIENCE_S)
        assert client.read_flow_run(run.id).state.is_cancelled()
    assert [found.cmdline() for found in alive] == []
    assert batch.attempts("quick") == ["stopped"]
    assert batch.states()["run=1 subrun=0", "quick"] == "queued"
